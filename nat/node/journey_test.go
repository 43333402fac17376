package node

import (
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/handover"
	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/nat/node/peer"
)

// ours is the link of the pod of these tests, and what the kernel may hold of it.
var (
	ours   = leg.PortName("pod")
	none   = leg.Holding{}
	idle   = leg.Holding{Ports: map[string]bool{ours: true}}
	staged = leg.Holding{Ports: map[string]bool{ours: true}, Staged: map[netip.Addr]string{fifty: ours}}
	active = leg.Holding{Ports: map[string]bool{ours: true}, Active: map[netip.Addr]string{fifty: ours}}
	others = leg.Holding{Ports: map[string]bool{ours: true}, Active: map[netip.Addr]string{fifty: "another pod's"}}
)

func granted(mode Mode, change func(*Grant)) Grant {
	g := Grant{Pod: Pod{UID: "pod"}, Addresses: []netip.Addr{fifty}, Mode: mode, Delivery: floatip.DeliveryLeg}
	if change != nil {
		change(&g)
	}
	return g
}

// TestJourneyCleared: a pod is clear when its guest has left and the kernel has taken that, and not again when it comes back.
func TestJourneyCleared(t *testing.T) {
	clear := func(j *journey) bool {
		select {
		case <-j.clearance():
			return true
		default:
			return false
		}
	}
	for _, tt := range []struct {
		name    string
		mode    Mode
		refused error
		want    bool
	}{
		{"it has left", Left, nil, true},
		{"its way could not be taken away", Left, os.ErrPermission, false},
		{"it is here", Active, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := new(session)
			before := s.journey.clearance()
			for range 2 {
				plan{pods: []*podPlan{{mode: tt.mode, session: s}}}.clear(tt.refused)
			}
			if clear(&s.journey) != tt.want || s.journey.clearance() != before {
				t.Errorf("clear: %t, want %t, of the same channel", clear(&s.journey), tt.want)
			}
			s.journey.leave()
			s.journey.mode(granted(Active, nil)) // the migration was given up
			if clear(&s.journey) {
				t.Error("clear although the guest came back")
			}
		})
	}
}

// TestJourneyBegins: an agent that starts anew in the middle of a move goes by what the kernel holds, and looks there once:
// what is missing later is repaired, and is no move.
func TestJourneyBegins(t *testing.T) {
	leaves := func(g *Grant) { g.To = "new" }
	came := func(g *Grant) { g.Came = "old" }
	unknown := func(g *Grant) { g.Provisional = true }
	for _, tt := range []struct {
		name    string
		grant   Grant
		holding leg.Holding
		want    Mode
		back    bool   // the guest has come back
		from    string // of a move that is told
	}{
		{"waits for its guest", granted(Staged, nil), staged, Staged, false, ""},
		{"the guest has arrived", granted(Staged, nil), active, Active, false, ""},
		{"the guest is in another pod of this node", granted(Staged, nil), others, Staged, false, ""},
		{"about to leave", granted(Active, leaves), active, Active, false, ""},
		{"has left", granted(Active, leaves), idle, Left, false, ""},
		{"about to leave a node that was started anew", granted(Active, leaves), none, Active, false, ""},
		{"stays, and has no way yet", granted(Active, nil), idle, Active, false, ""},
		{"came long ago", granted(Active, came), active, Active, false, ""},
		{"has just come", granted(Active, came), idle, Active, false, "old"},
		{"left, says KubeVirt", granted(Left, leaves), active, Left, false, ""},
		{"nobody knows, waits", granted(Active, unknown), staged, Staged, false, ""},
		{"nobody knows, is here", granted(Staged, unknown), active, Active, false, ""},
		{"nobody knows, has left", granted(Active, unknown), idle, Left, false, ""},
		{"nobody knows, another pod has it", granted(Active, unknown), others, Left, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			j := new(journey)
			if mode := j.seen(tt.grant, tt.holding); mode != tt.want || j.returned() != tt.back {
				t.Errorf("mode %s, want %s", mode, tt.want)
			}
			if m := j.lastMove(); (m == nil) != (tt.from == "") || m != nil && m.From != tt.from {
				t.Errorf("the move is %+v, want one from %q", m, tt.from)
			}
			if late := j.late(tt.grant); late != tt.from {
				t.Errorf("connections are asked for from %q, want %q", late, tt.from)
			}
			if tt.grant.Provisional {
				return
			}
			for _, later := range []leg.Holding{idle, active, none} {
				if mode := j.seen(tt.grant, later); mode != tt.want {
					t.Errorf("when the kernel holds something else the mode is %s, want %s", mode, tt.want)
				}
			}
			if m := j.lastMove(); (m == nil) != (tt.from == "") {
				t.Errorf("when the kernel holds something else the move is %+v", m)
			}
		})
	}
}

// TestJourneyUnknown: what was seen counts where the machine cannot be read, also before a round has told the kernel.
func TestJourneyUnknown(t *testing.T) {
	g := granted(Staged, nil)
	j := new(journey)
	j.seen(g, staged)
	j.arrive(time.Now())
	g.Provisional = true
	if mode := j.seen(g, staged); mode != Active {
		t.Errorf("the guest has arrived, and the mode is %s", mode)
	}
	if mode := j.seen(g, none); mode != Left {
		t.Errorf("the kernel holds nothing, and the mode is %s", mode)
	}
}

// TestJourneyBack: another node had the addresses and the migration failed. They are here again, also when the next migration
// begins, and that is told once.
func TestJourneyBack(t *testing.T) {
	leaving, staying := granted(Active, func(g *Grant) { g.To = "new" }), granted(Active, nil)
	j := new(journey)
	for i, step := range []struct {
		grant Grant
		want  Mode
		back  bool
	}{{leaving, Active, false}, {leaving, Left, false}, {staying, Active, true}, {staying, Active, false}, {leaving, Active, false}} {
		if i == 1 {
			j.leave()
		}
		if mode := j.seen(step.grant, active); mode != step.want || j.returned() != step.back {
			t.Errorf("step %d: mode %s, want %s and back: %t", i, mode, step.want, step.back)
		}
	}
}

// TestJourneyMove: a move keeps what told of it and is counted once; when the guest came is corrected by the kernel's stamp,
// and a Move that somebody has is left as it was.
func TestJourneyMove(t *testing.T) {
	began := time.Now()
	first := began.Add(-time.Second)
	j := new(journey)
	j.mode(granted(Staged, func(g *Grant) { g.From = "old" }))
	if j.uncounted() != nil || j.uncountedStall() != nil {
		t.Error("a move is counted before there is one")
	}
	come := j.arrival()
	select {
	case <-come:
		t.Error("the guest is said to have come")
	default:
	}
	for range 2 {
		j.mode(granted(Active, func(g *Grant) { g.Came = "old" }))
	}
	<-come
	<-j.arrival()
	m := j.lastMove()
	if m == nil || m.Trigger != KubeVirt || m.At.Before(began) || m != j.uncounted() || j.uncounted() != nil {
		t.Fatalf("the move is %+v, want one that KubeVirt told of, to be counted once", m)
	}
	if !j.arrivedBefore(time.Now().Add(time.Second)) || j.arrivedBefore(began) {
		t.Error("when the guest came is not known")
	}
	j.arrive(first)
	between := j.lastMove()
	j.settle(peer.Outcome{Heard: first.Add(-time.Millisecond)}, 3)
	now := j.lastMove()
	if !now.At.Equal(first) || now.Stall == nil || *now.Stall != time.Millisecond || now.Flows != 3 || now.Trigger != KubeVirt {
		t.Errorf("the move is %+v, want one at the first frame, with what the old node has told", now)
	}
	if m.Stall != nil || m.Flows != 0 || m.At.Equal(first) || between.Stall != nil || between.Flows != 0 {
		t.Errorf("a Move that was told before was changed: %+v, %+v", m, between)
	}
	j.arrive(first.Add(time.Hour))
	if at := j.arrivedAt(); !at.Equal(first) {
		t.Errorf("a frame after the first one makes the guest come at %s", at)
	}
	early := new(journey)
	early.mode(granted(Staged, func(g *Grant) { g.From = "old" }))
	early.arrive(first)
	early.settle(peer.Outcome{Heard: first}, 3)
	if early.uncountedStall() != nil {
		t.Error("a stall is counted before its move")
	}
	stays := new(journey)
	if stays.mode(granted(Active, nil)); stays.lastMove() != nil || stays.arrivedBefore(began) {
		t.Errorf("a guest that never moved has a move: %+v", stays.lastMove())
	}
}

// TestJourneyClaims: one listens at a time, until the guest is there, and another one may when the first has given up; one
// takes connections over, from whoever was published last.
func TestJourneyClaims(t *testing.T) {
	j := new(journey)
	if !j.claim() || j.claim() {
		t.Error("want one who listens")
	}
	j.unclaim()
	if !j.claim() {
		t.Error("nobody listens when the first one has given up")
	}
	j.unclaim()
	j.arrive(time.Now())
	if j.claim() {
		t.Error("somebody listens for a guest that is there")
	}
	for _, incomplete := range []floatip.NodeAgent{{}, {Key: "k"}, {Address: "a"}} {
		if j.claimFlows(incomplete) {
			t.Errorf("connections are taken over from %+v", incomplete)
		}
	}
	older, newer := floatip.NodeAgent{Address: "a", Key: "k"}, floatip.NodeAgent{Address: "a", Key: "another"}
	if !j.claimFlows(older) || j.claimFlows(newer) || j.peer().Key != newer.Key {
		t.Errorf("want one who takes connections over, from %+v and not %+v", newer, j.peer())
	}
}

// TestAwaited: as soon as the guest is heard those addresses are announced that the pod translates, that the LAN need not be
// asked about, and to which there is a way.
func TestAwaited(t *testing.T) {
	translating := handover.State{Phase: handover.PhaseInstalled, Bindings: []handover.Binding{{Floating: fifty}}}
	for name, tt := range map[string]struct {
		change func(*podPlan)
		want   map[netip.Addr]string
	}{
		"ready":          {func(*podPlan) {}, map[netip.Addr]string{fifty: "red0"}},
		"no way yet":     {func(pp *podPlan) { pp.plugged = false }, map[netip.Addr]string{}},
		"no way":         {func(pp *podPlan) { pp.failed = leg.ErrNoWay }, map[netip.Addr]string{}},
		"not translated": {func(pp *podPlan) { pp.state.Bindings = nil }, map[netip.Addr]string{}},
		"unproven":       {func(pp *podPlan) { pp.grant.InUse = nil }, map[netip.Addr]string{}},
	} {
		pp := &podPlan{
			plugged: true, state: translating, nics: map[netip.Addr]string{fifty: "red0"},
			grant: granted(Staged, func(g *Grant) { g.InUse = []netip.Addr{fifty} }),
		}
		tt.change(pp)
		if diff := cmp.Diff(tt.want, pp.awaited(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	j := new(journey)
	j.prepare(map[netip.Addr]string{fifty: "red0"})
	if ready := j.arrive(time.Now()); ready[fifty] != "red0" {
		t.Errorf("when the guest is heard %v is announced", ready)
	}
}

// TestLeaving: an address is given up to the NICs of the node that its guest goes to, and to nobody else's.
func TestLeaving(t *testing.T) {
	v := View{Peers: map[string]floatip.NodeAgent{"new": {MACs: []string{"aa"}}, "third": {MACs: []string{"bb"}}}}
	s := newSession(t.Context(), "", slog.New(slog.DiscardHandler), func() {})
	pods := func(mode Mode, to string) plan {
		return plan{pods: []*podPlan{{mode: mode, session: s, grant: granted(mode, func(g *Grant) { g.To = to })}}}
	}
	if l := pods(Active, "new").leaving(v)[fifty]; !slices.Equal(l.macs, []string{"aa"}) {
		t.Errorf("the address may be taken over by %v, want the other node's NIC", l.macs)
	} else if l.yielded(); !s.journey.yielded {
		t.Error("the address is taken over, and would be taken back by the next round")
	}
	for _, p := range []plan{pods(Active, ""), pods(Staged, "new"), pods(Left, "new")} {
		if l := p.leaving(v); len(l) != 0 {
			t.Errorf("a pod that is %s and goes to %q gives up %v", p.pods[0].mode, p.pods[0].grant.To, l)
		}
	}
}

// TestAwaitFails: where nobody can listen in the pod, the next round tries again.
func TestAwaitFails(t *testing.T) {
	b := newBench(t)
	b.start()
	wrong, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	s := newSession(t.Context(), "", b.agent.Log, func() {})
	s.journey.claim()
	b.agent.await(s, wrong, granted(Staged, nil))
	if s.journey.hasArrived() || !s.journey.claim() {
		t.Error("a guest is said to have come, or nobody listens any more")
	}
}

// TestTakeOverEnds: when a guest has been here for long, nobody asks its old node any more.
func TestTakeOverEnds(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.start()
	s := newSession(t.Context(), "", b.agent.Log, func() {})
	s.journey.claimFlows(floatip.NodeAgent{Address: "127.0.0.1:1", Key: "of nobody"})
	s.journey.arrive(time.Now().Add(-2 * b.agent.Patience.Remembered))
	ns, err := duplicate(b.node.File)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan int)
	go func() { ended <- len(b.agent.takeOver(s, ns, granted(Active, nil), nil)) }()
	select {
	case n := <-ended:
		if n != 0 {
			t.Errorf("%d connections came from nobody", n)
		}
	case <-time.After(patience):
		t.Error("the old node is asked for ever")
	}
	s.cancel()
}
