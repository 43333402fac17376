package flows

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/nodetest"
)

var (
	sameAddress = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	owner       = floatip.Owner{Namespace: "prod", Name: "vm", UID: "u"}
	floating    = netip.MustParseAddr("192.168.100.50")
	floating6   = netip.MustParseAddr("2001:db8:100::50")
	bindings    = nodetest.Describe(owner, floating, floating6).Bindings
)

func tuple(source, destination string) Tuple {
	s, d := netip.MustParseAddrPort(source), netip.MustParseAddrPort(destination)
	return Tuple{Source: s.Addr(), Destination: d.Addr(), SourcePort: s.Port(), DestinationPort: d.Port()}
}

// connections are all kinds that a pod may have.
func connections() []Entry {
	established := &TCP{State: 3, ScaleOriginal: 7, ScaleReply: 9, FlagsOriginal: 0x0b, FlagsReply: 0x0b}
	return []Entry{
		{
			Protocol: unix.IPPROTO_TCP, Original: tuple("203.0.113.9:4711", "192.168.100.50:22"),
			Reply: tuple("10.0.2.2:22", "203.0.113.9:4711"), Timeout: 400000, Status: seenReply | assured, TCP: established,
		},
		{
			Protocol: unix.IPPROTO_TCP, Original: tuple("10.0.2.2:40000", "203.0.113.9:443"),
			Reply: tuple("203.0.113.9:443", "192.168.100.50:40000"), Timeout: 400000, Status: seenReply | assured, Mark: 5, TCP: established,
			Labels: []byte{0x02, 15: 0x80},
		},
		{ // its port was taken
			Protocol: unix.IPPROTO_TCP, Original: tuple("10.0.2.2:40001", "203.0.113.9:443"),
			Reply: tuple("203.0.113.9:443", "192.168.100.50:1025"), Timeout: 100, Status: 0,
			// Not answered yet: the kernel takes scales from the two sides together only.
			TCP: &TCP{State: 1, FlagsOriginal: 0x0b, FlagsReply: 0x08},
		},
		{ // the guest and its own floating address
			Protocol: unix.IPPROTO_TCP, Original: tuple("10.0.2.2:40002", "192.168.100.50:80"),
			Reply: tuple("10.0.2.2:80", "192.168.100.50:40002"), Timeout: 400000, Status: seenReply | assured, TCP: established,
		},
		{
			Protocol: unix.IPPROTO_UDP, Original: tuple("10.0.2.2:5000", "203.0.113.9:53"),
			Reply: tuple("203.0.113.9:53", "192.168.100.50:5000"), Timeout: 25, Status: seenReply,
		},
		{
			Protocol: unix.IPPROTO_ICMP, Timeout: 25, Status: seenReply,
			Original: Tuple{Source: netip.MustParseAddr("10.0.2.2"), Destination: netip.MustParseAddr("203.0.113.9"), ID: 77, Type: 8},
			Reply:    Tuple{Source: netip.MustParseAddr("203.0.113.9"), Destination: floating, ID: 77},
		},
		{
			Protocol: unix.IPPROTO_TCP, Original: tuple("[2001:db8:bad::9]:4711", "[2001:db8:100::50]:22"),
			Reply: tuple("[fd10:0:2::2]:22", "[2001:db8:bad::9]:4711"), Timeout: 400000, Status: seenReply | assured, TCP: established,
		},
	}
}

// TestCopy: what was written into one pod is read there as it was, and the kernel translates by it.
func TestCopy(t *testing.T) {
	p := nodetest.NewWorld(t).AddNode("10").AddPod("1", "100.0.0.1")
	nodetest.Translate(t, p, floating, floating6)
	// The kernel keeps labels where a rule sets one (net/netfilter/nf_conntrack_labels.c).
	p.Run("nft add table ip labels", "nft add chain ip labels out { type filter hook output priority 0 ; }",
		"nft add rule ip labels out ct label set 1")
	table, err := Open(p.File)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	want := map[Key]Entry{}
	for _, e := range connections() {
		if err := e.Check(bindings); err != nil {
			t.Errorf("an honest connection is refused: %v", err)
		}
		for _, keep := range []bool{false, false, true} { // written again it stays the same
			if err := table.Put(e, keep); err != nil {
				t.Fatal(err)
			}
		}
		want[e.Key()] = e
	}
	compare := func(when string) {
		t.Helper()
		have := map[Key]Entry{}
		entries, err := Read(p.File, bindings)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if left := want[e.Key()].Timeout; e.Timeout <= left && e.Timeout+10 > left {
				e.Timeout = left
			}
			have[e.Key()] = e
		}
		if diff := cmp.Diff(want, have, sameAddress); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	compare("copied")
	gone := connections()[0]
	for range 2 { // gone already: fine
		if err := table.Remove(gone.Key()); err != nil {
			t.Error(err)
		}
	}
	delete(want, gone.Key())
	compare("one removed")
	if err := table.Relax(gone); err != nil {
		t.Errorf("relax what is not there: %v", err)
	}
}

// TestCheck: the receiver takes nothing that could touch anybody but the guest that moves.
func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name string
		bend func(*Entry)
	}{
		{"another address of the pool", func(e *Entry) { e.Original.Destination = netip.MustParseAddr("192.168.100.51") }},
		{"another guest", func(e *Entry) { e.Reply.Source = netip.MustParseAddr("10.0.2.3") }},
		{"the pod itself", func(e *Entry) { e.Reply.Source = netip.MustParseAddr("100.0.0.1") }},
		{"another port of the guest", func(e *Entry) { e.Reply.SourcePort = 80 }},
		{"another client", func(e *Entry) { e.Reply.Destination = netip.MustParseAddr("203.0.113.10") }},
		{"another port of the client", func(e *Entry) { e.Reply.DestinationPort++ }},
		{"no translation at all", func(e *Entry) { e.Reply.Source = e.Original.Destination }},
		{"two families", func(e *Entry) { e.Original.Source = netip.MustParseAddr("2001:db8::1") }},
		{"no address", func(e *Entry) { e.Original.Source, e.Reply.Destination = netip.Addr{}, netip.Addr{} }},
		{"a life without end", func(e *Entry) { e.Timeout = 1 << 31 }},
		{"no life", func(e *Entry) { e.Timeout = 0 }},
		{"long labels", func(e *Entry) { e.Labels = make([]byte, 1000) }},
		{"TCP without a state", func(e *Entry) { e.TCP = nil }},
		{"a state that does not exist", func(e *Entry) { e.TCP = &TCP{State: 99} }},
		{"the state of another protocol", func(e *Entry) { e.SCTP = &SCTP{} }},
	} {
		e := connections()[0]
		tt.bend(&e)
		if err := e.Check(bindings); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: have %v, want ErrForeign", tt.name, err)
		}
	}
	if err := connections()[0].Check(bindings[1:]); !errors.Is(err, ErrForeign) {
		t.Errorf("an address that does not move: have %v, want ErrForeign", err)
	}
}

// TestChanges: only what has changed is sent again.
func TestChanges(t *testing.T) {
	now, entries := time.Unix(1000, 0), connections()
	var l Ledger
	if c := l.Update(entries, now); len(c.Put) != len(entries) || len(c.Remove) != 0 {
		t.Errorf("at first: have %d and %d, want all", len(c.Put), len(c.Remove))
	}
	for i := range entries { // they run down as the copies do
		entries[i].Timeout--
	}
	if c := l.Update(entries, now.Add(time.Second)); len(c.Put)+len(c.Remove) != 0 {
		t.Errorf("nothing has happened: have %+v", c)
	}
	entries[4].Timeout = 120 // somebody answered
	closed := *entries[0].TCP
	closed.State = 5
	entries[0].TCP = &closed
	gone := entries[1].Key()
	entries = append(entries[:1], entries[2:]...)
	c := l.Update(entries, now.Add(2*time.Second))
	want := Changes{Put: []Entry{entries[0], entries[3]}, Remove: []Key{gone}}
	if diff := cmp.Diff(want, c, sameAddress); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

// BenchmarkRead is what one look at the source costs: the kernel walks the hash table of the whole node.
func BenchmarkRead(b *testing.B) {
	for _, connections := range []int{10, 1000} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			ns := nodetest.NewNamespace(b)
			table, err := Open(ns.File)
			if err != nil {
				b.Fatal(err)
			}
			defer table.Close()
			for i := range connections {
				e := Entry{
					Protocol: unix.IPPROTO_UDP, Original: tuple("203.0.113.9:1", "192.168.100.50:22"),
					Reply: tuple("10.0.2.2:22", "203.0.113.9:1"), Timeout: 1000, Status: seenReply,
				}
				e.Original.SourcePort, e.Reply.DestinationPort = uint16(i), uint16(i)
				if err := table.Put(e, false); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				if list, err := Read(ns.File, bindings); err != nil || len(list) != connections {
					b.Fatalf("have %d connections, %v", len(list), err)
				}
			}
		})
	}
}
