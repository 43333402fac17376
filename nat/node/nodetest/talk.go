package nodetest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// patience bounds the waits for the kernel.
const patience = time.Minute

// settle waits until the host address answers. New links lose packets for a moment, bridges above all, and a lost
// packet costs a second.
func (n *Namespace) settle(address string) {
	n.t.Helper()
	if missing(address) {
		return
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		c, err := n.Dial(net.JoinHostPort(address, "1"), 50*time.Millisecond)
		if err == nil {
			c.Close()
		}
		if err == nil || errors.Is(err, unix.ECONNREFUSED) {
			return
		}
	}
	n.t.Fatalf("%s does not answer", address)
}

// WaitUp waits until the kernel calls a link up.
func (n *Namespace) WaitUp(link string) {
	n.t.Helper()
	if !Until(patience, func() bool { return n.Get(link).Attrs().OperState == netlink.OperUp }) {
		n.t.Fatalf("%s does not come up within %s", link, patience)
	}
}

// Serve answers each TCP connection to address inside the namespace with "<who> sees <address of the client>".
func (n *Namespace) Serve(who, address string) {
	n.t.Helper()
	l := n.Listen(address)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			fmt.Fprintf(c, "%s sees %s", who, host)
			c.Close()
		}
	}()
}

// Ask connects from the namespace to address and returns what Serve says there.
func (n *Namespace) Ask(address string, patience time.Duration) (string, error) {
	c, err := n.Dial(address, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	said, err := io.ReadAll(c)
	return string(said), err
}

// Dial opens a TCP connection from the namespace.
func (n *Namespace) Dial(address string, patience time.Duration) (net.Conn, error) {
	var c net.Conn
	err := n.try(func() (err error) {
		c, err = net.DialTimeout("tcp", address, patience)
		return err
	})
	return c, err
}

// AnnounceSelf sends what qemu sends for a guest that has arrived by migration: a RARP request for its own address
// (qemu net/announce.c, announce_self_create). It returns when it was about to.
func (n *Namespace) AnnounceSelf(link string) (at time.Time) {
	n.t.Helper()
	own := n.Get(link).Attrs()
	everyone := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	frame := slices.Concat(everyone, own.HardwareAddr, []byte{0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3},
		own.HardwareAddr, make([]byte, 4), own.HardwareAddr, make([]byte, 22))
	n.Do(func() error {
		c, err := packet.Listen(&net.Interface{Index: own.Index}, packet.Raw, 0, nil)
		if err != nil {
			return err
		}
		defer func() { go c.Close() }() // takes ten milliseconds and more, which nobody shall count as the agent's
		at = time.Now()
		_, err = c.WriteTo(frame, &packet.Addr{HardwareAddr: everyone})
		return err
	})
	return at
}
