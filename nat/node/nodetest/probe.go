package nodetest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// Probe sends an ARP probe (RFC 5227 section 2.1.1) on the link and returns the Ethernet address of the one who
// answers.
func (n *Namespace) Probe(link string, a netip.Addr, wait time.Duration) (string, error) {
	own := n.Get(link).Attrs()
	var c *packet.Conn
	err := n.try(func() (err error) {
		c, err = packet.Listen(&net.Interface{Index: own.Index}, packet.Datagram, unix.ETH_P_ARP, nil)
		return err
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	p, err := arp.NewPacket(arp.OperationRequest, own.HardwareAddr, netip.IPv4Unspecified(), make(net.HardwareAddr, 6), a)
	if err != nil {
		return "", err
	}
	raw, err := p.MarshalBinary()
	if err != nil {
		return "", err
	}
	everyone := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	if _, err := c.WriteTo(raw, &packet.Addr{HardwareAddr: everyone}); err != nil {
		return "", err
	}
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return "", err
	}
	for buf := make([]byte, 1500); ; {
		size, _, err := c.ReadFrom(buf)
		if err != nil {
			return "", err
		}
		var answer arp.Packet
		if answer.UnmarshalBinary(buf[:size]) == nil && answer.Operation == arp.OperationReply && answer.SenderIP == a &&
			string(answer.TargetHardwareAddr) == string(own.HardwareAddr) {
			return answer.SenderHardwareAddr.String(), nil
		}
	}
}

// Claim announces an address from the link, as somebody does who takes it.
func (n *Namespace) Claim(link string, a netip.Addr) {
	n.t.Helper()
	own := n.Get(link).Attrs()
	p, err := arp.NewPacket(arp.OperationRequest, own.HardwareAddr, a, make(net.HardwareAddr, 6), a)
	if err != nil {
		n.t.Fatal(err)
	}
	raw, err := p.MarshalBinary()
	if err != nil {
		n.t.Fatal(err)
	}
	n.Do(func() error {
		c, err := packet.Listen(&net.Interface{Index: own.Index}, packet.Datagram, unix.ETH_P_ARP, nil)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.WriteTo(raw, &packet.Addr{HardwareAddr: net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}})
		return err
	})
}

// SendMarked sends one UDP packet that carries the mark, from a source address of the namespace.
func (n *Namespace) SendMarked(mark int, source, address string) {
	n.t.Helper()
	n.Do(func() error {
		d := net.Dialer{
			LocalAddr: &net.UDPAddr{IP: net.ParseIP(source)},
			Control: func(_, _ string, raw syscall.RawConn) error {
				var set error
				err := raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) })
				return errors.Join(err, set)
			},
		}
		c, err := d.DialContext(context.Background(), "udp", address)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("here I am"))
		return err
	})
}
