package leg

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// clockTick is the unit of the times that the kernel tells of neighbours and forwarding entries: USER_HZ is 100 on all
// architectures that matter (include/asm-generic/param.h).
const clockTick = 10 * time.Millisecond

// looks bounds how often a time is read again that came out too vague, since the reader had to wait for the processor.
const looks = 20

// GuestHeard returns when the bridge of a pod last had a frame from one of macs, which are in the form of
// net.HardwareAddr.String. The bridge notes it with each frame (net/bridge/br_fdb.c, br_fdb_update), so nobody has to
// listen. It is known to 10 ms, and not at all, false, where the bridge does not learn addresses, or has forgotten it:
// PinGuest is against that.
func GuestHeard(ns *os.File, bridge string, macs []string) (heard time.Time, known bool, err error) {
	h, err := handleAt(ns)
	if err != nil {
		return heard, false, fmt.Errorf("netlink socket of a pod: %w", err)
	}
	defer h.Close()
	for range looks {
		asked := time.Now()
		entries, err := guestEntries(h, bridge, macs)
		if err != nil || len(entries) == 0 {
			return time.Time{}, false, err
		}
		if time.Since(asked) > clockTick/2 {
			continue // by when was the age that the kernel told?
		}
		for _, e := range entries {
			// Parts of a tick are cut off.
			if at := asked.Add(-time.Duration(e.Updated)*clockTick - clockTick/2); at.After(heard) {
				heard = at
			}
		}
		return heard, true, nil
	}
	return time.Time{}, false, nil
}

// PinGuest has the bridge of a pod remember when it last heard its guest, and reports whether it does. By itself it forgets
// what it knows of a port that has no carrier any more (br_stp_disable_port, net/bridge/br_stp_if.c), and qemu ends as soon as
// its guest has left. Of entries that somebody has made permanent it forgets nothing, and notes the time of each frame all the
// same. A guest that was not heard yet cannot be pinned. Pinning counts as a frame, so it is done long before it matters.
func PinGuest(ns *os.File, bridge string, macs []string) (bool, error) {
	h, err := handleAt(ns)
	if err != nil {
		return false, fmt.Errorf("netlink socket of a pod: %w", err)
	}
	defer h.Close()
	entries, err := guestEntries(h, bridge, macs)
	if err != nil {
		return false, err
	}
	var errs []error
	for _, e := range entries {
		if e.State&netlink.NUD_NOARP != 0 {
			continue
		}
		err := h.NeighSet(&netlink.Neigh{
			LinkIndex: e.LinkIndex, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, State: netlink.NUD_NOARP, HardwareAddr: e.HardwareAddr,
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("pin %s on %s in a pod: %w", e.HardwareAddr, bridge, err))
		}
	}
	return len(entries) > 0 && len(errs) == 0, errors.Join(errs...)
}

// guestEntries are the forwarding entries of a guest on its bridge.
func guestEntries(h *netlink.Handle, bridge string, macs []string) ([]netlink.Neigh, error) {
	link, err := linkByName(h, bridge)
	if err != nil || link == nil {
		return nil, err
	}
	entries, err := again(func() ([]netlink.Neigh, error) { return h.NeighList(0, unix.AF_BRIDGE) })
	if err != nil {
		return nil, fmt.Errorf("list forwarding entries of %s in a pod: %w", bridge, err)
	}
	return slices.DeleteFunc(entries, func(e netlink.Neigh) bool {
		return e.MasterIndex != link.Attrs().Index || !slices.Contains(macs, e.HardwareAddr.String())
	}), nil
}
