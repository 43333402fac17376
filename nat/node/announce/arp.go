package announce

import (
	"net"
	"net/netip"

	"github.com/mdlayher/arp"
)

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// heard is what one packet of another host says, in either family.
type heard struct {
	// from is the Ethernet address of the host.
	from net.HardwareAddr
	// claims is the address that it says it has. The zero Addr: none.
	claims netip.Addr
	// asks is the address that it wants to reach, or to have. The zero Addr: none.
	asks netip.Addr
	// probe: it wants to have it.
	probe bool
	// asker is the address that it asks from, of no meaning for a probe.
	asker netip.Addr
}

// hearARP reads a packet that arrived on a NIC with the Ethernet address own. It returns false for those that say
// nothing, and for our own, which a switch may reflect.
//
// Any packet with a sender address claims it (RFC 5227 section 2.4). A request without one is a probe (section 2.1.1).
func hearARP(p *arp.Packet, own net.HardwareAddr) (heard, bool) {
	if string(p.SenderHardwareAddr) == string(own) {
		return heard{}, false
	}
	h := heard{from: p.SenderHardwareAddr, asker: p.SenderIP}
	if !p.SenderIP.IsUnspecified() {
		h.claims = p.SenderIP
	}
	if p.Operation == arp.OperationRequest && p.TargetIP != p.SenderIP {
		h.asks, h.probe = p.TargetIP, p.SenderIP.IsUnspecified()
	}
	return h, h.claims.IsValid() || h.asks.IsValid()
}

// answerARP tells the host that asked. A probe is answered in the same way: any answer is a conflict for the one who
// probes (RFC 5227 section 2.1.1).
func answerARP(own net.HardwareAddr, h heard) (*arp.Packet, error) {
	return arp.NewPacket(arp.OperationReply, own, h.asks, h.from, h.asker)
}

// probeARP asks whether anybody has the address, and spoils no cache: it has no sender address (RFC 5227 section 2.1.1).
func probeARP(own net.HardwareAddr, address netip.Addr) (*arp.Packet, error) {
	return arp.NewPacket(arp.OperationRequest, own, netip.IPv4Unspecified(), make(net.HardwareAddr, len(own)), address)
}

// announcement is the request that RFC 5227 section 2.3 calls an announcement.
func announcement(own net.HardwareAddr, address netip.Addr) (*arp.Packet, error) {
	return arp.NewPacket(arp.OperationRequest, own, address, make(net.HardwareAddr, len(own)), address)
}

// gratuitousReply is the other form of an announcement, since some stacks learn from one of them only (RFC 5944 section
// 4.6 allows both).
func gratuitousReply(own net.HardwareAddr, address netip.Addr) (*arp.Packet, error) {
	return arp.NewPacket(arp.OperationReply, own, address, broadcast, address)
}
