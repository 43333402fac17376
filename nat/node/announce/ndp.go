package announce

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/mdlayher/ndp"

	"floatip.io/floatip/nat/node/netns"
)

// allNodes is where unsolicited advertisements go (RFC 4861 section 7.2.6).
var allNodes = netip.MustParseAddr("ff02::1")

// neighbour announces IPv6 addresses on one NIC. Solicitations, those of duplicate address detection among them, are
// answered by the kernel's proxy entries, which also join the solicited-node groups.
type neighbour struct{ conn *ndp.Conn }

// listenNeighbour needs a link-local address on the NIC: it is the source of what is sent.
func listenNeighbour(ns *os.File, name string) (*neighbour, error) {
	n := new(neighbour)
	err := netns.Do(ns, func() error {
		nic, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		n.conn, _, err = ndp.Listen(nic, ndp.LinkLocal)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ICMPv6 socket on %s: %w", name, err)
	}
	return n, nil
}

// advertisement says that address is at own, and replaces what hosts knew before (override, RFC 4861 section 4.4).
func advertisement(own net.HardwareAddr, address netip.Addr) *ndp.NeighborAdvertisement {
	return &ndp.NeighborAdvertisement{
		Override: true, TargetAddress: address,
		Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: own}},
	}
}

func (n *neighbour) announce(own net.HardwareAddr, address netip.Addr) error {
	return n.conn.WriteTo(advertisement(own, address), nil, allNodes)
}
