package leg

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	vishnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat"
)

// Node is the kernel of the node. What is there is read each time, or was a moment ago (Holding); what is remembered besides saves
// work alone. Not for concurrent use.
type Node struct {
	ns      *os.File // nil: the process's own
	sysctls sysctls
	netlink *netlink.Handle

	texts  nat.Texts
	guards guardTexts
}

// Open returns the Node of the network namespace ns, or of the process where ns is nil. sysctlDir is DefaultSysctls or
// the same directory mounted elsewhere. It fails without the right to enter ns.
func Open(ns *os.File, sysctlDir string) (*Node, error) {
	handle, err := handleAt(ns)
	if err != nil {
		return nil, fmt.Errorf("netlink socket of the node: %w", err)
	}
	return &Node{ns: ns, sysctls: sysctls{dir: sysctlDir, ns: ns}, netlink: handle}, nil
}

// Close closes the sockets. The kernel's state stays.
func (n *Node) Close() { n.netlink.Close() }

func handleAt(ns *os.File) (*netlink.Handle, error) {
	if ns == nil {
		return netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	}
	return netlink.NewHandleAt(vishnetns.NsHandle(int(ns.Fd())), unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
}

// Plug makes sure that the veth pair of the pod exists, with its other end in the pod's namespace. It reports whether
// it had to make one. What an earlier pod or a crash left under the same name is replaced. h, which Holding has returned, follows.
func (n *Node) Plug(h *Holding, pod string, podNS *os.File) (bool, error) {
	inside, err := handleAt(podNS)
	if err != nil {
		return false, fmt.Errorf("netlink socket of pod %s: %w", pod, err)
	}
	defer inside.Close()
	outer, err := n.link(PortName(pod))
	if err != nil {
		return false, err
	}
	inner, err := linkByName(inside, nat.LegInterface)
	if err != nil {
		return false, err
	}
	if isPair(outer, inner, podMAC(pod)) {
		return false, nil
	}
	if outer != nil {
		h.outdated = true // what hung on the link goes with it
		if err := n.netlink.LinkDel(outer); err != nil {
			return false, fmt.Errorf("remove stale link %s: %w", outer.Attrs().Name, err)
		}
		if inner, err = linkByName(inside, nat.LegInterface); err != nil {
			return false, err
		}
	}
	if inner != nil {
		return false, ErrForeignLink
	}
	return true, n.addPair(h, pod, podNS)
}

// isPair reports whether the two links are the ends of one veth pair, by the index that each has of the other.
func isPair(outer, inner netlink.Link, ether mac) bool {
	if outer == nil || inner == nil || outer.Type() != "veth" || inner.Type() != "veth" {
		return false
	}
	return outer.Attrs().ParentIndex == inner.Attrs().Index && inner.Attrs().ParentIndex == outer.Attrs().Index &&
		inner.Attrs().HardwareAddr.String() == net.HardwareAddr(ether[:]).String()
}

// addPair makes the pair. Nothing comes in by it until Apply says which sources may.
func (n *Node) addPair(h *Holding, pod string, podNS *os.File) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = PortName(pod), nodeMAC[:]
	ether := podMAC(pod)
	err := n.netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: nat.LegInterface, PeerHardwareAddr: ether[:], PeerNamespace: netlink.NsFd(int(podNS.Fd())),
	})
	if err != nil {
		return fmt.Errorf("plug %s into pod %s: %w", nat.LegInterface, pod, err)
	}
	link, err := n.netlink.LinkByName(attrs.Name)
	if err == nil {
		err = n.writeGuards(map[string][]netip.Addr{attrs.Name: nil})
	}
	if err == nil {
		err = n.netlink.LinkSetUp(link) // the other end shall have a carrier as soon as it is up
	}
	if err != nil {
		h.outdated = true
		return fmt.Errorf("port %s of pod %s: %w", attrs.Name, pod, err)
	}
	h.plugged(link)
	return nil
}

// link returns the link with this name, or nil.
func (n *Node) link(name string) (netlink.Link, error) { return linkByName(n.netlink, name) }

func linkByName(h *netlink.Handle, name string) (netlink.Link, error) {
	l, err := h.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for link %s: %w", name, err)
	}
	return l, nil
}

const (
	// activation bounds the wait for a link to become usable: the kernel gives it its queue on a worker thread
	// (net/core/link_watch.c), and drops what is sent before. It takes well under a millisecond on an idle machine.
	activation = 250 * time.Millisecond
	// activationPoll is the pause between two looks. The kernel would tell by RTM_NEWLINK, but only a socket that was opened
	// before, one in the namespace of each pod: more to make and to close than the few looks that the wait takes.
	activationPoll = 100 * time.Microsecond
)

// awaitUsable waits until so many links have their queues, at most for activation for all of them together. A link that has
// none by then will get it: the first packets may be lost, and nothing else.
func awaitUsable(links int, usable func(link int) (bool, error)) error {
	deadline := time.Now().Add(activation)
	var errs []error
	for n := range links {
		ok, err := usable(n)
		for !ok && err == nil && time.Now().Before(deadline) {
			time.Sleep(activationPoll)
			ok, err = usable(n)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func isUsable(h *netlink.Handle, name string) (bool, error) {
	link, err := h.LinkByName(name)
	if err != nil {
		return false, fmt.Errorf("wait for %s: %w", name, err)
	}
	return link.Attrs().OperState == netlink.OperUp, nil
}

// AwaitPods waits a moment until the legs in the namespaces of pods can be sent by: those whose links ApplyPod has just set up.
func AwaitPods(pods []*os.File) error {
	return awaitUsable(len(pods), func(n int) (bool, error) {
		h, err := handleAt(pods[n])
		if err != nil {
			return false, fmt.Errorf("netlink socket of a pod: %w", err)
		}
		defer h.Close()
		return isUsable(h, nat.LegInterface)
	})
}
