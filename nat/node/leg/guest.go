package leg

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// resolved are the states of a neighbour whose hardware address the kernel knows (include/uapi/linux/neighbour.h). One
// that is stale was heard before: that is enough to know that the guest has taken its address.
const resolved = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE | netlink.NUD_PERMANENT

// useNeighbour is NTF_USE: the kernel resolves the entry as if a packet were to be sent (net/core/neighbour.c). So
// somebody without a raw socket can ask who has an address.
const useNeighbour = 0x01

// GuestAnswers reports whether the guest behind the bridge of a pod has taken its fixed address: whether the pod's
// kernel has heard of it by ARP or neighbour discovery. If not, the kernel is made to ask, and a later call may find
// the answer. A bridge that does not exist yet is no error: KubeVirt makes it when the pod runs.
func GuestAnswers(ns *os.File, bridge string, fixed netip.Addr) (bool, error) {
	h, err := handleAt(ns)
	if err != nil {
		return false, fmt.Errorf("netlink socket of a pod: %w", err)
	}
	defer h.Close()
	link, err := linkByName(h, bridge)
	if err != nil || link == nil {
		return false, err
	}
	family := unix.AF_INET
	if fixed.Is6() {
		family = unix.AF_INET6
	}
	list, err := again(func() ([]netlink.Neigh, error) { return h.NeighList(link.Attrs().Index, family) })
	if err != nil {
		return false, fmt.Errorf("neighbours on %s: %w", bridge, err)
	}
	for _, n := range list {
		if a, _ := netip.AddrFromSlice(n.IP); a.Unmap() == fixed {
			if n.State&resolved != 0 {
				return true, nil
			}
			if n.State&netlink.NUD_INCOMPLETE != 0 {
				return false, nil // being asked for
			}
		}
	}
	err = h.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: family, IP: net.IP(fixed.AsSlice()),
		State: netlink.NUD_NONE, Flags: useNeighbour,
	})
	if err != nil {
		return false, fmt.Errorf("ask for %s on %s: %w", fixed, bridge, err)
	}
	return false, nil
}

// MeetGuest tells the kernel of a pod the Ethernet address of a guest that has come with its fixed addresses. Its first packets
// to the guest need not wait for an answer to ARP or neighbour discovery then, which the kernel repeats once in a second. What
// it is told it takes for something that it has heard once, and asks the guest itself when it has used it for a while.
func MeetGuest(ns *os.File, bridge string, mac net.HardwareAddr, fixed ...netip.Addr) error {
	h, err := handleAt(ns)
	if err != nil {
		return fmt.Errorf("netlink socket of a pod: %w", err)
	}
	defer h.Close()
	link, err := linkByName(h, bridge)
	if err != nil || link == nil {
		return err
	}
	var errs []error
	for _, a := range fixed {
		errs = append(errs, h.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_STALE, IP: net.IP(a.AsSlice()), HardwareAddr: mac,
		}))
	}
	return errors.Join(errs...)
}
