package announce

import (
	"net"
	"net/netip"
	"testing"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ndp"
	"golang.org/x/sys/unix"
)

// TestOtherVLAN: the provider's network is the untagged one of a trunk. What a VLAN without a device on this node says of the
// same addresses is neither answered nor a claim.
func TestOtherVLAN(t *testing.T) {
	t.Parallel()
	l := newLAN(t, nil)
	l.responder.Set([]netip.Addr{ours, ours6}, nil)
	l.hear("announcement", announcementOf(ours))
	tagged := func(to net.HardwareAddr, kind uint16, packet []byte) {
		const vlan = 200
		l.world.Host.SendFrame("eth0", to, unix.ETH_P_8021Q, append([]byte{0, vlan, byte(kind >> 8), byte(kind)}, packet...))
	}
	claim, err := announcement(l.host.own, ours)
	if err != nil {
		t.Fatal(err)
	}
	request, err := arp.NewPacket(arp.OperationRequest, l.host.own, asker.Next(), make(net.HardwareAddr, 6), ours)
	if err != nil {
		t.Fatal(err)
	}
	solicit := message{asker6.Next(), groupOf(ours6), &ndp.NeighborSolicitation{TargetAddress: ours6}}
	for _, p := range []*arp.Packet{claim, request} {
		raw, err := p.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		tagged(broadcast, unix.ETH_P_ARP, raw)
	}
	for _, m := range []message{{ours6, allNodes, advertisement(l.host.own, ours6, false)}, solicit} {
		raw, err := packetOf(m)
		if err != nil {
			t.Fatal(err)
		}
		tagged(multicastMAC(m.destination), unix.ETH_P_IPV6, raw)
	}
	l.ask(asker, ours)
	solicit.source = asker6
	l.say6(solicit)
	// What was said before was heard before.
	l.hear("answer", func(p *arp.Packet) bool { return l.toHost(p) && p.TargetIP == asker })
	l.hear6("answer", func(m message) bool { return m.destination == asker6 && advertises(m, ours6) })
	for family, have := range l.responder.Figures() {
		if have.Answers != 1 || have.Claims != 0 {
			t.Errorf("IPv%d: %d answers and %d claims, want the answer to the one who asked untagged", family, have.Answers, have.Claims)
		}
	}
}
