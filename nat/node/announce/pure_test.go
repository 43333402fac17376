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

func TestReact(t *testing.T) {
	pack := func(op arp.Operation, mac net.HardwareAddr, sender, target netip.Addr) *arp.Packet {
		p, err := arp.NewPacket(op, mac, sender, make(net.HardwareAddr, 6), target)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	answerTo := func(target netip.Addr) reaction {
		p, err := arp.NewPacket(arp.OperationReply, ownMAC, ours, otherMAC, target)
		if err != nil {
			t.Fatal(err)
		}
		return reaction{answer: p}
	}
	conflict := reaction{conflict: &Conflict{Address: ours, MAC: otherMAC, NIC: "red0"}}
	for _, tt := range []struct {
		name string
		in   *arp.Packet
		want reaction
	}{
		{"a request for ours is answered", pack(arp.OperationRequest, otherMAC, asker, ours), answerTo(asker)},
		{"a probe for ours is answered", pack(arp.OperationRequest, otherMAC, zero, ours), answerTo(zero)},
		{"a request for another is not", pack(arp.OperationRequest, otherMAC, asker, free), reaction{}},
		{"a reply is not", pack(arp.OperationReply, otherMAC, asker, ours), reaction{}},
		{"a foreign announcement of ours is a conflict", pack(arp.OperationRequest, otherMAC, ours, ours), conflict},
		{"a foreign reply from ours is a conflict", pack(arp.OperationReply, otherMAC, ours, asker), conflict},
		{"a foreign request from ours is a conflict", pack(arp.OperationRequest, otherMAC, ours, free), conflict},
		{"our own packet, reflected by the switch, is nothing", pack(arp.OperationRequest, ownMAC, ours, ours), reaction{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := react(tt.in, ownMAC, "red0", func(a netip.Addr) bool { return a == ours })
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(reaction{}), compareAddresses); diff != "" {
				t.Errorf("reaction (-want +got):\n%s", diff)
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
