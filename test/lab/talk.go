package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Serve answers on TCP and UDP ports of the namespace, both families: whoever asks is told the address and port that it
// is seen as.
func (n *Namespace) Serve(t testing.TB, ports ...int) {
	t.Helper()
	for _, port := range ports {
		address := net.JoinHostPort("::", strconv.Itoa(port))
		var l net.Listener
		var p net.PacketConn
		err := n.Do(func() (err error) {
			if l, err = net.Listen("tcp", address); err != nil {
				return err
			}
			p, err = net.ListenPacket("udp", address)
			return err
		})
		if err != nil {
			t.Fatalf("serve in namespace %s: %v", n.name, err)
		}
		t.Cleanup(func() { l.Close(); p.Close() })
		go answerTCP(l)
		go answerUDP(p)
	}
}

func answerTCP(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Fprint(conn, seen(conn.RemoteAddr()))
		conn.Close()
	}
}

func answerUDP(p net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		_, from, err := p.ReadFrom(buf)
		if err != nil {
			return
		}
		p.WriteTo([]byte(seen(from)), from)
	}
}

func seen(a net.Addr) string {
	from, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return err.Error()
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port()).String()
}

// Ask calls a server made by Serve over "tcp" or "udp" and returns the address that it is seen as; sourcePort 0 lets
// the kernel choose. Over "icmp" it pings and returns what it pinged.
func (n *Namespace) Ask(protocol, to string, port, sourcePort int, patience time.Duration) (netip.AddrPort, error) {
	if protocol == "icmp" {
		return n.ping(netip.MustParseAddr(to), patience)
	}
	conn, err := n.Dial(protocol, to, port, sourcePort, patience)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if protocol == "udp" {
		if _, err := conn.Write([]byte("?")); err != nil {
			return netip.AddrPort{}, err
		}
	}
	buf := make([]byte, 128)
	m, err := conn.Read(buf)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(string(buf[:m]))
}

// Dial opens a connection from the namespace.
func (n *Namespace) Dial(protocol, to string, port, sourcePort int, patience time.Duration) (conn net.Conn, err error) {
	d := net.Dialer{Timeout: patience}
	if sourcePort != 0 {
		if d.LocalAddr = (&net.TCPAddr{Port: sourcePort}); protocol == "udp" {
			d.LocalAddr = &net.UDPAddr{Port: sourcePort}
		}
	}
	err = n.Do(func() (err error) {
		conn, err = d.Dial(protocol, net.JoinHostPort(to, strconv.Itoa(port)))
		return err
	})
	return conn, err
}

func (n *Namespace) ping(to netip.Addr, patience time.Duration) (netip.AddrPort, error) {
	family, protocol, request, reply := unix.AF_INET, unix.IPPROTO_ICMP, byte(8), byte(0)
	var address unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{}}
	if to.Is4() {
		address = &unix.SockaddrInet4{Addr: to.As4()}
	} else {
		family, protocol, request, reply = unix.AF_INET6, unix.IPPROTO_ICMPV6, 128, 129
		address = &unix.SockaddrInet6{Addr: to.As16()}
	}
	got := make([]byte, 2048)
	err := n.Do(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0o644); err != nil {
			return err
		}
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, protocol) // the kernel fills in the checksum
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		timeout := unix.NsecToTimeval(int64(patience))
		return errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
			unix.Sendto(fd, []byte{request, 0, 0, 0, 0, 0, 0, 1, 'f', 'i', 'p'}, 0, address),
			receive(fd, got))
	})
	if err == nil && got[0] != reply {
		err = fmt.Errorf("ICMP type %d instead of an echo reply", got[0])
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("ping %s: %w", to, err)
	}
	return netip.AddrPortFrom(to, 0), nil
}

func receive(fd int, buf []byte) error {
	_, _, err := unix.Recvfrom(fd, buf, 0)
	return err
}

// Echo answers on a TCP port of the namespace with what it is sent, for connections that stay open.
func (n *Namespace) Echo(t testing.TB, port int) {
	t.Helper()
	var l net.Listener
	err := n.Do(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort("::", strconv.Itoa(port)))
		return err
	})
	if err != nil {
		t.Fatalf("serve in namespace %s: %v", n.name, err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
}

// Alive reports whether an Echo server still answers on conn within patience.
func Alive(conn net.Conn, patience time.Duration) bool {
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write([]byte("!")); err != nil {
		return false
	}
	_, err := conn.Read(make([]byte, 1))
	return err == nil
}
