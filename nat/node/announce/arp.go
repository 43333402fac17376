package announce

import (
	"net"
	"net/netip"

	"github.com/mdlayher/arp"
)

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Conflict is somebody else's claim to one of our addresses.
type Conflict struct {
	Address netip.Addr
	// MAC of the one who claims it.
	MAC net.HardwareAddr
	// NIC on which it was heard.
	NIC string
}

// reaction is what one ARP packet calls for. Zero: nothing.
type reaction struct {
	answer   *arp.Packet
	conflict *Conflict
}

// react decides about a packet that arrived on a NIC with the Ethernet address own. held says which addresses are ours.
//
// A request for one of ours is answered to the one who asked; a probe, whose sender address is 0.0.0.0, likewise
// (RFC 5227 section 2.1.1 makes any answer a conflict for the prober). Any packet from one of our addresses that comes
// from another Ethernet address is a conflict (RFC 5227 section 2.4).
func react(p *arp.Packet, own net.HardwareAddr, nic string, held func(netip.Addr) bool) reaction {
	if string(p.SenderHardwareAddr) == string(own) {
		return reaction{}
	}
	if held(p.SenderIP) {
		return reaction{conflict: &Conflict{Address: p.SenderIP, MAC: p.SenderHardwareAddr, NIC: nic}}
	}
	if p.Operation != arp.OperationRequest || !held(p.TargetIP) {
		return reaction{}
	}
	answer, err := arp.NewPacket(arp.OperationReply, own, p.TargetIP, p.SenderHardwareAddr, p.SenderIP)
	if err != nil {
		return reaction{} // a packet with addresses of other lengths than Ethernet's and IPv4's
	}
	return reaction{answer: answer}
}

// announcements returns what is broadcast for address: the request that RFC 5227 section 2.3 asks for, and a reply,
// since some stacks learn from one of them only (RFC 5944 section 4.6 allows both forms).
func announcements(own net.HardwareAddr, address netip.Addr) ([]*arp.Packet, error) {
	request, err := arp.NewPacket(arp.OperationRequest, own, address, make(net.HardwareAddr, len(own)), address)
	if err != nil {
		return nil, err
	}
	reply, err := arp.NewPacket(arp.OperationReply, own, address, broadcast, address)
	if err != nil {
		return nil, err
	}
	return []*arp.Packet{request, reply}, nil
}
