package announce

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	vishnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/netns"
)

// nic is what must stay the same for a socket to stay useful.
type nic struct {
	index   int
	mac     string
	running bool // up and with a carrier
}

// finder looks NICs up in one namespace.
type finder struct{ handle *netlink.Handle }

func newFinder(ns *os.File) (finder, error) {
	if ns == nil {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		return finder{h}, err
	}
	h, err := netlink.NewHandleAt(vishnetns.NsHandle(int(ns.Fd())), unix.NETLINK_ROUTE)
	return finder{h}, err
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
	return nic{index: a.Index, mac: string(a.HardwareAddr), running: a.RawFlags&unix.IFF_RUNNING != 0}, nil
}

// socket sends and receives ARP packets on one NIC.
type socket struct {
	name string
	ns   *os.File
	nic  nic
	conn *packet.Conn
	six  *neighbour // nil until an IPv6 address is announced
	buf  []byte
}

// listen opens a socket of the kind whose Ethernet header is the kernel's business: it puts the NIC's address into it.
func listen(ns *os.File, name string, n nic) (*socket, error) {
	s := &socket{name: name, ns: ns, nic: n, buf: make([]byte, 1500)}
	err := netns.Do(ns, func() (err error) {
		s.conn, err = packet.Listen(&net.Interface{Index: n.index}, packet.Datagram, unix.ETH_P_ARP, nil)
		return err
	})
	if err != nil {
		return nil, err
	}
	// Our own packets would look like those of somebody who plays them back.
	if err := s.ignoreOutgoing(); err != nil {
		s.conn.Close()
		return nil, fmt.Errorf("set PACKET_IGNORE_OUTGOING: %w", err)
	}
	return s, nil
}

func (s *socket) ignoreOutgoing() error {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	})
	return errors.Join(err, set)
}

func (s *socket) mac() net.HardwareAddr { return net.HardwareAddr(s.nic.mac) }

// receive returns the next well-formed packet, or nil when the deadline passed.
func (s *socket) receive() (*arp.Packet, error) {
	for {
		n, _, err := s.conn.ReadFrom(s.buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		p := new(arp.Packet)
		if p.UnmarshalBinary(s.buf[:n]) == nil && p.HardwareAddrLength == 6 && p.IPLength == 4 {
			return p, nil
		}
	}
}

func (s *socket) send(p *arp.Packet, to net.HardwareAddr) error {
	raw, err := p.MarshalBinary()
	if err != nil {
		return err
	}
	_, err = s.conn.WriteTo(raw, &packet.Addr{HardwareAddr: to})
	return err
}

func (s *socket) announce(address netip.Addr) error {
	if address.Is6() {
		return s.announce6(address)
	}
	packets, err := announcements(s.mac(), address)
	if err != nil {
		return err
	}
	for _, p := range packets {
		if err := s.send(p, broadcast); err != nil {
			return err
		}
	}
	return nil
}

func (s *socket) announce6(address netip.Addr) (err error) {
	if s.six == nil {
		if s.six, err = listenNeighbour(s.ns, s.name); err != nil {
			return err
		}
	}
	return s.six.announce(s.mac(), address)
}

// close closes what is open.
func (s *socket) close() {
	s.conn.Close()
	if s.six != nil {
		s.six.conn.Close()
	}
}

// wake ends a receive that waits.
func (s *socket) wake() error { return s.conn.SetReadDeadline(time.Unix(1, 0)) }
