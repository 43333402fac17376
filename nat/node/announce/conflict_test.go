package announce

import (
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ndp"
)

// told collects what a Responder tells, by address.
type told struct {
	t    *testing.T
	mu   sync.Mutex // guards news
	news map[netip.Addr]chan Standing
}

func newTold(t *testing.T) *told { return &told{t: t, news: map[netip.Addr]chan Standing{}} }

func (c *told) listen(r *Responder) { r.Changed = func(a netip.Addr, s Standing) { c.of(a) <- s } }

func (c *told) of(a netip.Addr) chan Standing {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.news[a] == nil {
		c.news[a] = make(chan Standing, 100)
	}
	return c.news[a]
}

// await waits until the address is said to stand so.
func (c *told) await(a netip.Addr, state State) Standing {
	c.t.Helper()
	for timeout := time.After(patience); ; {
		select {
		case s := <-c.of(a):
			if s.State == state {
				return s
			}
		case <-timeout:
			c.t.Fatalf("%s is not said to be %s within %s", a, state, patience)
		}
	}
}

// TestFreeAddressWithinASecond probes with the real timing.
func TestFreeAddressWithinASecond(t *testing.T) {
	t.Parallel()
	c := newTold(t)
	l := newLAN(t, c.listen)
	probe := func(p *arp.Packet) bool { return p.SenderIP == zero && p.TargetIP == ours }
	began := time.Now()
	l.responder.Set(nil, []netip.Addr{ours, ours6})
	for range DefaultTiming.Probes {
		if p := l.hear("probe", probe); p.SenderHardwareAddr.String() != l.nodeMAC() {
			t.Errorf("probe comes from %s", p.SenderHardwareAddr)
		}
		l.hear6("probe", func(m message) bool { return m.source.IsUnspecified() })
	}
	c.await(ours, Free)
	t.Logf("free after %s", time.Since(began))
	if s, _ := l.responder.Standing(ours); !s.Announced.IsZero() {
		t.Error("announced before anybody asked for it")
	}
	// Nobody is answered as long as it is only tested.
	l.ask(asker, ours)
	l.responder.Set([]netip.Addr{free}, []netip.Addr{ours})
	l.hear("the other at work", announcementOf(free))
	l.ask(asker, free)
	if answer := l.hear("answer", l.toHost); answer.SenderIP != free {
		t.Errorf("%s was answered for while it was only tested", answer.SenderIP)
	}
	l.responder.Set([]netip.Addr{ours}, nil)
	l.hear("announcement", announcementOf(ours))
}

// quick is for tests that do not look at the timing. A host may take as long to answer as a busy machine lets it stand.
var quick = Timing{
	Probes: 3, Every: 10 * time.Millisecond, Wait: time.Second, Trial: time.Minute, Defend: 300 * time.Millisecond,
	Quiet: time.Second, Retry: 200 * time.Millisecond, RetryMost: 200 * time.Millisecond,
}

// TestTakenByAHost: the kernel of a real host has the address, and says so. When the host gives it up, it is ours.
func TestTakenByAHost(t *testing.T) {
	t.Parallel()
	c := newTold(t)
	l := newLAN(t, func(r *Responder) {
		c.listen(r)
		r.Timing = quick
	})
	l.world.Host.Address("eth0", ours.String()+"/24", ours6.String()+"/64")
	both := []netip.Addr{ours, ours6}
	l.responder.Set(nil, both)
	for _, a := range both {
		if s := c.await(a, Taken); s.Rival.String() != l.host.own.String() {
			t.Errorf("%s is taken by %s, want the host, %s", a, s.Rival, l.host.own)
		}
	}
	// Wherever it stands in, it is not answered for.
	l.responder.Set(both, nil)
	if s, _ := l.responder.Standing(ours); s.State != Taken {
		t.Errorf("%s is %s, want still Taken", ours, s.State)
	}
	l.world.Host.Remove("eth0", ours.String()+"/24")
	l.world.Host.Remove("eth0", ours6.String()+"/64")
	c.await(ours, Free)
	l.responder.Set(both, nil)
	l.hear("announcement", announcementOf(ours))
}

// TestLateHolder: the host with the address says nothing to probes, and defends itself against the announcement.
func TestLateHolder(t *testing.T) {
	t.Parallel()
	c := newTold(t)
	l := newLAN(t, func(r *Responder) {
		c.listen(r)
		r.Timing = quick
	})
	l.responder.Set(nil, []netip.Addr{ours})
	c.await(ours, Free)
	l.responder.Set([]netip.Addr{ours}, nil)
	l.hear("announcement", announcementOf(ours))
	l.claim(ours, l.host.own)
	c.await(ours, Taken)
	l.ask(asker, ours)
	l.responder.Set([]netip.Addr{ours, free}, nil)
	l.ask(asker, free)
	if answer := l.hear("answer", l.toHost); answer.SenderIP != free {
		t.Errorf("%s is answered for although another host has it", answer.SenderIP)
	}
}

// TestDefends: another host claims an address in use, by ARP and by advertisements. It is told once per interval.
func TestDefends(t *testing.T) {
	t.Parallel()
	c := newTold(t)
	l := newLAN(t, func(r *Responder) {
		c.listen(r)
		r.Timing = quick
	})
	l.responder.Set([]netip.Addr{ours, ours6}, nil)
	// The burst is over when these have been heard.
	for range 2 * len(burst) {
		l.hear("announcement", announcementOf(ours))
	}
	for range 5 {
		l.claim(ours, l.host.own)
		l.advertise(ours6)
	}
	for _, a := range []netip.Addr{ours, ours6} {
		if s := c.await(a, Contested); s.Rival.String() != l.host.own.String() {
			t.Errorf("rival for %s is %s, want the host", a, s.Rival)
		}
	}
	if p := l.hear("defence", announcementOf(ours)); p.Operation != arp.OperationRequest {
		t.Errorf("defence is a %s, want an announcement as in RFC 5227", p.Operation)
	}
	l.hear6("defence", func(m message) bool { return advertises(m, ours6) })
	l.until("all claims are heard", func() bool {
		f := l.responder.Figures()
		return f[4].Claims == 5 && f[6].Claims == 5
	})
	for family, f := range l.responder.Figures() {
		if f.Defences < 1 || f.Defences > 2 {
			t.Errorf("IPv%d: %d defences against 5 claims at once, want one, and one an interval later", family, f.Defences)
		}
	}
	l.ask(asker, ours)
	l.hear("answer", l.toHost)
	c.await(ours, Held)
}

// TestAnotherNodeIsNoRival: what a node of the cluster announces is a move, and not fought.
func TestAnotherNodeIsNoRival(t *testing.T) {
	t.Parallel()
	peer := net.HardwareAddr{2, 0, 0, 0, 0, 0x77}
	moves, c := make(chan Move, 10), newTold(t)
	l := newLAN(t, func(r *Responder) {
		c.listen(r)
		r.Timing = quick
		r.Moved = func(m Move) { moves <- m }
		r.Peer = func(mac net.HardwareAddr) (string, bool) { return "node11", mac.String() == peer.String() }
	})
	l.responder.Set([]netip.Addr{ours}, []netip.Addr{free})
	l.hear("responder at work", announcementOf(ours))
	l.claim(free, peer)
	l.claim(ours, peer)
	select {
	case m := <-moves:
		if m.Address != ours || m.Node != "node11" || m.NIC != "red0" || m.MAC.String() != peer.String() {
			t.Errorf("move is %+v", m)
		}
	case <-time.After(patience):
		t.Fatal("the announcement of another node was not told")
	}
	c.await(free, Free)
	if f := l.responder.Figures()[4]; f.Claims != 0 || f.Defences != 0 {
		t.Errorf("%d claims, %d defences; want none against a node", f.Claims, f.Defences)
	}
	if s, _ := l.responder.Standing(ours); s.State != Held {
		t.Errorf("%s is %s, want Held: who withdraws it is decided elsewhere", ours, s.State)
	}
}

// TestProbesOfNodesAreAnswered: a node that asks for an address in use is told so, in both families. An agent that does
// not know the nodes yet takes everybody for one, and keeps a DHCP client from taking the address all the same.
func TestProbesOfNodesAreAnswered(t *testing.T) {
	t.Parallel()
	l := newLAN(t, func(r *Responder) {
		r.Peer = func(net.HardwareAddr) (string, bool) { return "", true }
	})
	l.responder.Set([]netip.Addr{ours, ours6}, nil)
	l.hear("announcement", announcementOf(ours))
	l.hear6("announcement", func(m message) bool { return advertises(m, ours6) })
	l.ask(zero, ours)
	if answer := l.hear("answer to a probe", l.toHost); answer.SenderIP != ours || answer.SenderHardwareAddr.String() != l.nodeMAC() {
		t.Errorf("the answer says that %s has %s, want the node and %s", answer.SenderHardwareAddr, answer.SenderIP, ours)
	}
	l.say6(message{netip.IPv6Unspecified(), groupOf(ours6), &ndp.NeighborSolicitation{TargetAddress: ours6}})
	l.until("an advertisement in answer to a probe", func() bool { return l.responder.Figures()[6].Answers == 1 })
}

// TestNoProbeIntoNothing: as long as the NIC has no carrier an address is not found free.
func TestNoProbeIntoNothing(t *testing.T) {
	t.Parallel()
	c := newTold(t)
	l := newLAN(t, func(r *Responder) {
		c.listen(r)
		r.Timing = quick
	})
	announced := func() bool {
		s, _ := l.responder.Standing(free)
		return !s.Announced.IsZero()
	}
	l.responder.Set([]netip.Addr{free}, nil)
	l.until("the announcement of another address", announced)
	l.world.LAN.Down("n10")
	l.until("the responder to know that the carrier is gone", func() bool { return !announced() })
	another := free.Next()
	l.responder.Set([]netip.Addr{free, another}, []netip.Addr{ours})
	c.await(another, Held) // the loop has come round
	if s, _ := l.responder.Standing(ours); s.State != Probing || l.responder.Figures()[4].Probes != 0 {
		t.Errorf("%s is %s after %d probes, want it to wait for a carrier", ours, s.State, l.responder.Figures()[4].Probes)
	}
	l.world.LAN.Up("n10")
	c.await(ours, Free)
}
