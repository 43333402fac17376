package announce

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/netns"
)

// onlyNeighbours lets neighbour solicitations and advertisements through, and nothing else of IPv6: a NIC forwards a
// lot of it.
var onlyNeighbours = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 6, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: icmpv6, SkipTrue: 4},
	bpf.LoadAbsolute{Off: headerLen, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: typeSolicit, SkipTrue: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: typeAdvert, SkipTrue: 1},
	bpf.RetConstant{Val: 1500},
	bpf.RetConstant{Val: 0},
}

// neighbourWire is the wire of IPv6.
type neighbourWire struct {
	frames
	groups *groups
}

func openNeighbour(ns *os.File, n nic) (wire, error) {
	f, err := openFrames(ns, n, unix.ETH_P_IPV6, onlyNeighbours)
	if err != nil {
		return nil, fmt.Errorf("socket for neighbour discovery: %w", err)
	}
	return neighbourWire{f, &groups{ns: ns, index: n.index, in: map[netip.Addr]int{}}}, nil
}

func (w neighbourWire) receive() (heard, bool, error) {
	for {
		raw, from, err := w.read()
		if err != nil || raw == nil {
			return heard{}, false, err
		}
		m, ok := parseNeighbour(raw)
		if !ok {
			continue
		}
		if h, ok := hearNeighbour(m, from, w.own); ok {
			return h, true, nil
		}
	}
}

func (w neighbourWire) answer(h heard) error {
	raw, to, err := answerNeighbour(w.own, h)
	return w.sendPacket(raw, to, err)
}

func (w neighbourWire) announce(a netip.Addr) error {
	raw, to, err := announceNeighbour(w.own, a)
	return w.sendPacket(raw, to, err)
}

func (w neighbourWire) defend(a netip.Addr) error { return w.announce(a) }

func (w neighbourWire) probe(a netip.Addr) error {
	raw, to, err := probeNeighbour(a)
	return w.sendPacket(raw, to, err)
}

func (w neighbourWire) sendPacket(raw []byte, to net.HardwareAddr, err error) error {
	if err != nil {
		return err
	}
	return w.send(raw, to)
}

func (w neighbourWire) listen(addresses []netip.Addr) error { return w.groups.set(addresses) }

func (w neighbourWire) close() error { return errors.Join(w.frames.close(), w.groups.close()) }

// groupsPerSocket memberships fit into the memory that the kernel grants one socket (net.core.optmem_max, 20 KiB on
// older kernels; a membership takes about 60 bytes, struct ipv6_mc_socklist in include/net/if_inet6.h).
const groupsPerSocket = 128

// groups are the solicited-node groups that the NIC is in. The kernel reports them to switches that snoop (MLD, RFC 3810),
// and sets the NIC's filter.
type groups struct {
	ns      *os.File
	index   int
	sockets []int
	used    []int              // memberships by socket
	in      map[netip.Addr]int // group to socket
}

// set joins the groups of the addresses, and leaves all others.
func (g *groups) set(addresses []netip.Addr) error {
	want := map[netip.Addr]bool{}
	for _, a := range addresses {
		want[groupOf(a)] = true
	}
	for group, at := range g.in {
		if want[group] {
			continue
		}
		if err := g.change(at, group, unix.IPV6_LEAVE_GROUP); err != nil {
			return err
		}
		delete(g.in, group)
		g.used[at]--
	}
	for group := range want {
		if _, joined := g.in[group]; joined {
			continue
		}
		at, err := g.socket()
		if err != nil {
			return err
		}
		if err := g.change(at, group, unix.IPV6_JOIN_GROUP); err != nil {
			return err
		}
		g.in[group] = at
		g.used[at]++
	}
	return nil
}

func (g *groups) change(at int, group netip.Addr, option int) error {
	request := &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(g.index)}
	if err := unix.SetsockoptIPv6Mreq(g.sockets[at], unix.IPPROTO_IPV6, option, request); err != nil {
		return fmt.Errorf("change membership of group %s: %w", group, os.NewSyscallError("setsockopt", err))
	}
	return nil
}

// socket returns one with room for another membership.
func (g *groups) socket() (int, error) {
	for at, used := range g.used {
		if used < groupsPerSocket {
			return at, nil
		}
	}
	var fd int
	err := netns.Do(g.ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return 0, err
	}
	g.sockets, g.used = append(g.sockets, fd), append(g.used, 0)
	return len(g.sockets) - 1, nil
}

func (g *groups) close() error {
	var errs []error
	for _, fd := range g.sockets {
		errs = append(errs, unix.Close(fd))
	}
	g.sockets, g.used, g.in = nil, nil, map[netip.Addr]int{}
	return errors.Join(errs...)
}
