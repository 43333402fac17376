package announce

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/mdlayher/ndp"
)

// allNodes is where unsolicited advertisements go, and those that answer a probe (RFC 4861 section 7.2.4 and 7.2.6).
var allNodes = netip.MustParseAddr("ff02::1")

const (
	headerLen   = 40  // of IPv6 (RFC 8200 section 3)
	icmpv6      = 58  // next header (RFC 4443)
	hopLimit    = 255 // of neighbour discovery: a packet that was forwarded is none (RFC 4861 section 7.1)
	typeSolicit = 135
	typeAdvert  = 136
)

// message is one neighbour solicitation or advertisement with the addresses that it travelled between.
type message struct {
	source, destination netip.Addr
	body                ndp.Message
}

// parseNeighbour reads an IPv6 packet. It returns false for all that RFC 4861 section 7.1 has a host discard, and for
// packets with extension headers, which nobody sends here.
func parseNeighbour(packet []byte) (message, bool) {
	if len(packet) < headerLen || packet[0]>>4 != 6 || packet[6] != icmpv6 || packet[7] != hopLimit {
		return message{}, false
	}
	source, _ := netip.AddrFromSlice(packet[8:24])
	destination, _ := netip.AddrFromSlice(packet[24:40])
	length := int(binary.BigEndian.Uint16(packet[4:6]))
	if length < 24 || len(packet) < headerLen+length {
		return message{}, false
	}
	raw := packet[headerLen : headerLen+length]
	if raw[1] != 0 || checksum(source, destination, raw) != 0 {
		return message{}, false
	}
	body, err := ndp.ParseMessage(raw)
	if err != nil {
		return message{}, false
	}
	return message{source, destination, body}, true
}

// checksum returns the Internet checksum with the pseudo-header of IPv6 (RFC 8200 section 8.1): 0 for a message that
// carries the right one.
func checksum(source, destination netip.Addr, raw []byte) uint16 {
	sum := uint32(len(raw)) + icmpv6
	add := func(b []byte) {
		for ; len(b) > 1; b = b[2:] {
			sum += uint32(b[0])<<8 | uint32(b[1])
		}
		if len(b) == 1 {
			sum += uint32(b[0]) << 8
		}
	}
	add(source.AsSlice())
	add(destination.AsSlice())
	add(raw)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// hearNeighbour reads a message that came in a frame of the Ethernet address from, on a NIC with the address own.
//
// An advertisement claims its target, and a solicitation that carries the sender's Ethernet address claims the sender's:
// whoever hears it enters it into his cache (RFC 4861 section 7.2.3). A solicitation from nowhere is a probe (RFC 4862
// section 5.4.3); it must be sent to the group of its target and may carry no address (RFC 4861 section 7.1.1).
func hearNeighbour(m message, from, own net.HardwareAddr) (heard, bool) {
	h := heard{from: from, asker: m.source}
	switch body := m.body.(type) {
	case *ndp.NeighborAdvertisement:
		if body.TargetAddress.IsMulticast() {
			return heard{}, false
		}
		h.claims = body.TargetAddress
		if at := linkAddress(body.Options, ndp.Target); at != nil {
			h.from = at
		}
	case *ndp.NeighborSolicitation:
		at := linkAddress(body.Options, ndp.Source)
		h.asks, h.probe = body.TargetAddress, m.source.IsUnspecified()
		switch {
		case body.TargetAddress.IsMulticast():
			return heard{}, false
		case h.probe && (at != nil || m.destination != groupOf(body.TargetAddress)):
			return heard{}, false
		case at != nil:
			h.claims, h.from = m.source, at
		}
	default:
		return heard{}, false
	}
	return h, string(from) != string(own) && string(h.from) != string(own)
}

// linkAddress returns the Ethernet address that a message carries, or nil.
func linkAddress(options []ndp.Option, direction ndp.Direction) net.HardwareAddr {
	for _, o := range options {
		if l, ok := o.(*ndp.LinkLayerAddress); ok && l.Direction == direction && len(l.Addr) == 6 {
			return l.Addr
		}
	}
	return nil
}

// groupOf returns the solicited-node multicast address (RFC 4291 section 2.7.1).
func groupOf(a netip.Addr) netip.Addr {
	raw := [16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff}
	full := a.As16()
	copy(raw[13:], full[13:])
	return netip.AddrFrom16(raw)
}

// multicastMAC returns where a frame to an IPv6 group goes (RFC 2464 section 7).
func multicastMAC(group netip.Addr) net.HardwareAddr {
	raw := group.As16()
	return net.HardwareAddr{0x33, 0x33, raw[12], raw[13], raw[14], raw[15]}
}

// advertisement says that address is at own. It overrides what hosts knew before, also as an answer: the address has
// one holder, and its last one may have been on another node. It is no router's (RFC 4861 section 4.4).
func advertisement(own net.HardwareAddr, address netip.Addr, solicited bool) *ndp.NeighborAdvertisement {
	return &ndp.NeighborAdvertisement{
		Override: true, Solicited: solicited, TargetAddress: address,
		Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: own}},
	}
}

// packetOf puts a message into an IPv6 packet.
func packetOf(m message) ([]byte, error) {
	raw, err := ndp.MarshalMessageChecksum(m.body, m.source, m.destination)
	if err != nil {
		return nil, err
	}
	packet := make([]byte, headerLen, headerLen+len(raw))
	packet[0] = 6 << 4
	binary.BigEndian.PutUint16(packet[4:], uint16(len(raw)))
	packet[6], packet[7] = icmpv6, hopLimit
	copy(packet[8:], m.source.AsSlice())
	copy(packet[24:], m.destination.AsSlice())
	return append(packet, raw...), nil
}

// answerNeighbour returns the packet that answers h, and the Ethernet address that it goes to. The source is the address
// itself. Who probes has no address yet, so all nodes are told (RFC 4861 section 7.2.4, RFC 4862 section 5.4.3).
func answerNeighbour(own net.HardwareAddr, h heard) (packet []byte, to net.HardwareAddr, err error) {
	if h.probe {
		return announceNeighbour(own, h.asks)
	}
	packet, err = packetOf(message{h.asks, h.asker, advertisement(own, h.asks, true)})
	return packet, h.from, err
}

// announceNeighbour returns an unsolicited advertisement.
func announceNeighbour(own net.HardwareAddr, address netip.Addr) (packet []byte, to net.HardwareAddr, err error) {
	packet, err = packetOf(message{address, allNodes, advertisement(own, address, false)})
	return packet, multicastMAC(allNodes), err
}

// probeNeighbour asks whether anybody has the address (RFC 4862 section 5.4.2).
func probeNeighbour(address netip.Addr) (packet []byte, to net.HardwareAddr, err error) {
	group := groupOf(address)
	packet, err = packetOf(message{netip.IPv6Unspecified(), group, &ndp.NeighborSolicitation{TargetAddress: address}})
	return packet, multicastMAC(group), err
}
