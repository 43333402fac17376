package flows

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Lengths of headers, in bytes.
const (
	ethernetHeader = 14
	ipv4Header     = 20
	ipv6Header     = 40
)

// FrameKey reads protocol, addresses and ports of the packet in an Ethernet frame, false where it has none: fragments, protocols without
// ports, and IPv6 packets with extension headers.
func FrameKey(frame []byte) (Key, bool) {
	if len(frame) < ethernetHeader {
		return Key{}, false
	}
	packet := frame[ethernetHeader:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		return packetKey4(packet)
	case unix.ETH_P_IPV6:
		if len(packet) < ipv6Header {
			return Key{}, false
		}
		return portsKey(packet[6], packet[8:24], packet[24:40], packet[ipv6Header:])
	}
	return Key{}, false
}

func packetKey4(packet []byte) (Key, bool) {
	if len(packet) < ipv4Header {
		return Key{}, false
	}
	header := int(packet[0]&0xf) * 4
	const fragment = 0x3fff // more fragments, or an offset (RFC 791 section 3.1)
	if header < ipv4Header || len(packet) < header || binary.BigEndian.Uint16(packet[6:])&fragment != 0 {
		return Key{}, false
	}
	return portsKey(packet[9], packet[12:16], packet[16:20], packet[header:])
}

func portsKey(protocol uint8, source, destination, payload []byte) (Key, bool) {
	if !hasPorts(protocol) || len(payload) < 4 {
		return Key{}, false
	}
	from, _ := netip.AddrFromSlice(source)
	to, _ := netip.AddrFromSlice(destination)
	return Key{protocol, Tuple{
		Source: from, SourcePort: binary.BigEndian.Uint16(payload),
		Destination: to, DestinationPort: binary.BigEndian.Uint16(payload[2:]),
	}}, true
}
