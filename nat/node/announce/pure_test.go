package announce

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/arp"
)

var (
	ownMAC   = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	otherMAC = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	ours     = netip.MustParseAddr("192.168.100.50")
	asker    = netip.MustParseAddr("192.168.100.200")
	free     = netip.MustParseAddr("192.168.100.77")
	zero     = netip.IPv4Unspecified()
)

var compareAddresses = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestHearARP(t *testing.T) {
	pack := func(op arp.Operation, mac net.HardwareAddr, sender, target netip.Addr) *arp.Packet {
		p, err := arp.NewPacket(op, mac, sender, make(net.HardwareAddr, 6), target)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, tt := range []struct {
		name string
		in   *arp.Packet
		want heard
	}{
		{"a request asks, and claims the sender's address", pack(arp.OperationRequest, otherMAC, asker, ours),
			heard{from: otherMAC, claims: asker, asks: ours, asker: asker}},
		{"a probe claims nothing", pack(arp.OperationRequest, otherMAC, zero, ours),
			heard{from: otherMAC, asks: ours, probe: true, asker: zero}},
		{"a reply claims and asks nothing", pack(arp.OperationReply, otherMAC, ours, asker),
			heard{from: otherMAC, claims: ours, asker: ours}},
		{"an announcement claims and asks nothing", pack(arp.OperationRequest, otherMAC, ours, ours),
			heard{from: otherMAC, claims: ours, asker: ours}},
		{"a reply without a sender says nothing", pack(arp.OperationReply, otherMAC, zero, ours), heard{}},
		{"our own packet, reflected by the switch, says nothing", pack(arp.OperationRequest, ownMAC, ours, ours), heard{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := hearARP(tt.in, ownMAC)
			if !ok {
				got = heard{}
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(heard{}), compareAddresses); diff != "" {
				t.Errorf("heard (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSchedule(t *testing.T) {
	start := time.Unix(1000, 0)
	var at []time.Duration
	for s := (schedule{since: start}); len(at) < 7; {
		due := s.due()
		at = append(at, due.Sub(start))
		s = s.next(due)
	}
	want := []time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond, 1100 * time.Millisecond, 2200 * time.Millisecond,
		122200 * time.Millisecond, 242200 * time.Millisecond}
	if diff := cmp.Diff(want, at); diff != "" {
		t.Errorf("announcements (-want +got):\n%s", diff)
	}
	late := schedule{since: start}.next(start.Add(time.Second))
	if due := late.due().Sub(start); due != 1100*time.Millisecond {
		t.Errorf("after a second of delay the next is due at %s, want 1.1s: what was missed is left out", due)
	}
}
