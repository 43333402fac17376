package nodetest

import (
	"net"
	"slices"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// SendFrame sends one Ethernet frame from the link: destination, the link's own address, type, payload.
func (n *Namespace) SendFrame(link string, to net.HardwareAddr, etherType uint16, payload []byte) {
	n.t.Helper()
	own := n.Get(link).Attrs()
	frame := slices.Concat(to, own.HardwareAddr, []byte{byte(etherType >> 8), byte(etherType)}, payload)
	n.Do(func() error {
		c, err := packet.Listen(&net.Interface{Index: own.Index}, packet.Raw, 0, nil)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.WriteTo(frame, &packet.Addr{HardwareAddr: to})
		return err
	})
}

// Frames returns the frames that arrive on the link, until the test ends. What nobody reads is dropped.
func (n *Namespace) Frames(link string) <-chan []byte {
	n.t.Helper()
	own := n.Get(link).Attrs()
	var c *packet.Conn
	n.Do(func() (err error) {
		c, err = packet.Listen(&net.Interface{Index: own.Index}, packet.Raw, unix.ETH_P_ALL, nil)
		return err
	})
	n.t.Cleanup(func() { c.Close() })
	heard := make(chan []byte, 256)
	go func() {
		for buf := make([]byte, 9000); ; {
			size, _, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			select {
			case heard <- slices.Clone(buf[:size]):
			default:
			}
		}
	}()
	return heard
}
