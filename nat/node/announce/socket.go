package announce

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	vishnetns "github.com/vishvananda/netns"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/netns"
)

// nic is what must stay the same for a socket to stay useful.
type nic struct {
	index   int
	mac     string
	running bool // up and with a carrier
	// active are the numbers of the ports by which the bonds below send, without those that send by all. When it is another
	// one, the switch behind that has not heard of us: the kernel speaks up for its own addresses alone (num_grat_arp in
	// Documentation/networking/bonding.rst).
	active string
}

// finder looks NICs up in one namespace.
type finder struct {
	ns     *os.File
	handle *netlink.Handle
}

func newFinder(ns *os.File) (finder, error) {
	if ns == nil {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		return finder{ns, h}, err
	}
	h, err := netlink.NewHandleAt(vishnetns.NsHandle(int(ns.Fd())), unix.NETLINK_ROUTE)
	return finder{ns, h}, err
}

func (f finder) find(name string) (nic, error) {
	l, err := f.handle.LinkByName(name)
	if err != nil {
		return nic{}, err
	}
	a := l.Attrs()
	if len(a.HardwareAddr) != 6 {
		return nic{}, fmt.Errorf("%s has no Ethernet address", name)
	}
	return nic{
		index: a.Index, mac: string(a.HardwareAddr), running: a.RawFlags&unix.IFF_RUNNING != 0, active: f.active(l, deepest),
	}, nil
}

// deepest is how many links may stand on each other (MAX_NEST_DEV of include/linux/netdevice.h).
const deepest = 8

// active looks for bonds from a link down, by what VLAN devices and their like stand on, and by the ports of bridges.
func (f finder) active(l netlink.Link, deep int) (ports string) {
	if deep == 0 {
		return ""
	}
	switch l := l.(type) {
	case *netlink.Bond:
		if l.ActiveSlave > 0 {
			return fmt.Sprint(l.ActiveSlave, " ")
		}
		return ""
	case *netlink.Bridge:
		for _, kind := range []string{"bond", "vlan"} {
			for _, port := range f.ports(l.Index, kind) {
				ports += f.active(port, deep-1)
			}
		}
		return ports
	}
	below := l.Attrs().ParentIndex
	if below == 0 || l.Type() == "veth" || l.Attrs().NetNsID >= 0 { // the other end, or a link elsewhere
		return ""
	}
	lower, err := f.handle.LinkByIndex(below)
	if err != nil {
		return ""
	}
	return f.active(lower, deep-1)
}

// ports are those of a bridge that are of a kind (IFLA_INFO_KIND). The kernel leaves the others out, which may be hundreds.
func (f finder) ports(bridge int, kind string) (list []netlink.Link) {
	_ = netns.Do(f.ns, func() error {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))))
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(kind))
		req.AddData(info)
		messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
		for _, m := range messages {
			if l, err := netlink.LinkDeserialize(nil, m); err == nil && l.Type() == kind && l.Attrs().MasterIndex == bridge {
				list = append(list, l)
			}
		}
		return err
	})
	slices.SortFunc(list, func(a, b netlink.Link) int { return a.Attrs().Index - b.Attrs().Index })
	return list
}

// frames sends and receives packets of one protocol on one NIC. The Ethernet header is the kernel's business: it puts
// the NIC's address into it.
type frames struct {
	conn *packet.Conn
	own  net.HardwareAddr
	buf  []byte
}

// toThisHost drops what is for others. The kernel says so as well of each frame of a VLAN for which the NIC has no device, and
// hands it over without its tag (__netif_receive_skb_core in net/core/dev.c): what is said there is not said on this network.
var toThisHost = []bpf.Instruction{
	bpf.LoadExtension{Num: bpf.ExtType},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.PACKET_OTHERHOST, SkipTrue: 1},
	bpf.RetConstant{Val: 0},
}

// everything lets all of a protocol through.
var everything = []bpf.Instruction{bpf.RetConstant{Val: 1500}}

// openFrames makes a socket that hears what is for this host and passes the filter.
func openFrames(ns *os.File, n nic, protocol int, filter []bpf.Instruction) (frames, error) {
	f := frames{own: net.HardwareAddr(n.mac), buf: make([]byte, 1500)}
	program, err := bpf.Assemble(slices.Concat(toThisHost, filter))
	if err != nil {
		return frames{}, err
	}
	err = netns.Do(ns, func() (err error) {
		f.conn, err = packet.Listen(&net.Interface{Index: n.index}, packet.Datagram, protocol, &packet.Config{Filter: program})
		return err
	})
	if err != nil {
		return frames{}, err
	}
	// Our own packets would look like those of somebody who plays them back.
	if err := f.ignoreOutgoing(); err != nil {
		f.conn.Close()
		return frames{}, fmt.Errorf("set PACKET_IGNORE_OUTGOING: %w", err)
	}
	return f, nil
}

func (f frames) ignoreOutgoing() error {
	raw, err := f.conn.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	})
	return errors.Join(err, set)
}

// read returns the next packet and the Ethernet address that it came from, or nil when the deadline passed.
func (f frames) read() ([]byte, net.HardwareAddr, error) {
	n, from, err := f.conn.ReadFrom(f.buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	return f.buf[:n], from.(*packet.Addr).HardwareAddr, nil
}

func (f frames) send(raw []byte, to net.HardwareAddr) error {
	_, err := f.conn.WriteTo(raw, &packet.Addr{HardwareAddr: to})
	return err
}

// setDeadline ends a read that waits.
func (f frames) setDeadline(t time.Time) error { return f.conn.SetReadDeadline(t) }

func (f frames) interrupt() { f.conn.Close() }

func (f frames) close() error { return f.conn.Close() }

// arpWire is the wire of IPv4.
type arpWire struct{ frames }

func openARP(ns *os.File, n nic) (wire, error) {
	f, err := openFrames(ns, n, unix.ETH_P_ARP, everything)
	if err != nil {
		return nil, fmt.Errorf("ARP socket: %w", err)
	}
	return arpWire{f}, nil
}

func (w arpWire) receive() (heard, bool, error) {
	for {
		raw, _, err := w.read()
		if err != nil || raw == nil {
			return heard{}, false, err
		}
		p := new(arp.Packet)
		if p.UnmarshalBinary(raw) != nil || p.HardwareAddrLength != 6 || p.IPLength != 4 {
			continue
		}
		if h, ok := hearARP(p, w.own); ok {
			return h, true, nil
		}
	}
}

func (w arpWire) answer(h heard) error {
	p, err := answerARP(w.own, h)
	return w.sendPacket(p, err, h.from)
}

func (w arpWire) probe(a netip.Addr) error {
	p, err := probeARP(w.own, a)
	return w.sendPacket(p, err, broadcast)
}

func (w arpWire) defend(a netip.Addr) error {
	p, err := announcement(w.own, a)
	return w.sendPacket(p, err, broadcast)
}

func (w arpWire) announce(a netip.Addr) error {
	if err := w.defend(a); err != nil {
		return err
	}
	p, err := gratuitousReply(w.own, a)
	return w.sendPacket(p, err, broadcast)
}

// listen has nothing to do: ARP is broadcast.
func (arpWire) listen([]netip.Addr) error { return nil }

func (w arpWire) sendPacket(p *arp.Packet, err error, to net.HardwareAddr) error {
	if err != nil {
		return err
	}
	raw, err := p.MarshalBinary()
	if err != nil {
		return err
	}
	return w.send(raw, to)
}
