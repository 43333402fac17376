package node

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip/nat/node/nodetest"
)

// here wants the address on the bench's node, answered for and known to the API server.
func (r *road) here(when string, b, other *bench) {
	r.t.Helper()
	b.awaitReport(when, func(report Report) bool { s := report.Statuses[fifty]; return s.Here && s.Ready().True })
	other.awaitReport(when, func(report Report) bool { return !report.Statuses[fifty].Here })
	if have := other.holding(); have.Answers(fifty) || have.Active[fifty] != "" {
		r.t.Errorf("%s: %s still answers on %v and leads packets to %q", when, other.name, have.Answered, have.Active[fifty])
	}
	if have := b.holding(); !have.Answers(fifty) || have.Active[fifty] == "" {
		r.t.Errorf("%s: %s answers on %v and leads packets to %q", when, b.name, have.Answered, have.Active[fifty])
	}
}

// TestMigrationFails: whatever ends a migration before the guest has moved changes nothing, and leaves nothing behind.
func TestMigrationFails(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		end  func(*road)
	}{
		{"KubeVirt gives up, the pod stays for a while", func(r *road) { r.machine.Migration.Failed = true }},
		{"cancelled before it began", func(r *road) {
			r.machine.Migration = Migration{}
			r.to.set(r.target.entry.UID, func(p *Pod) { p.Final = true })
		}},
		{"the target's pod dies in the middle", func(r *road) {
			r.to.set(r.target.entry.UID, func(p *Pod) { p.Final = true })
		}},
		{"the target's pod is gone", func(r *road) { r.to.view.Pods = nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRoad(t)
			s := startStream(t, r.source.Guest, r.from.world.Host, fifty.String(), 81)
			r.begin()
			changes := r.from.agent.changes()
			tt.end(r)
			r.publish()
			r.to.awaitReport("gone", func(report Report) bool { return len(report.Statuses) == 0 })
			if diff := cmp.Diff(r.empty[r.to.name], inventory(t, r.to.node.Namespace)); diff != "" {
				t.Errorf("left on the target's node (-before +after):\n%s", diff)
			}
			s.proceeds(10)
			if now := r.from.agent.changes(); now != changes {
				t.Errorf("the node that the guest never left was changed %d times", now-changes)
			}
			// The next one works.
			r.begin()
			r.cut()
			r.arrived()
			s.proceeds(10)
		})
	}
}

// TestGuestComesBack: the guest was heard on the target, and the migration failed all the same.
func TestGuestComesBack(t *testing.T) {
	t.Parallel()
	r := newRoad(t)
	s := startStream(t, r.source.Guest, r.from.world.Host, fifty.String(), 81)
	r.begin()
	r.cut()
	r.arrived()
	s.proceeds(10)
	r.source.Receive(r.target.Pod)
	r.machine.Migration.Failed = true
	r.to.set(r.target.entry.UID, func(p *Pod) { p.Final = true })
	r.publish()
	r.here("back", r.from, r.to)
	s.proceeds(10)
}

// TestSlowSignals: nobody hears the guest, for instance since it has another Ethernet address than KubeVirt knows. What
// KubeVirt says moves the address, a little later; said twice, it does no harm.
func TestSlowSignals(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		say  func(*road)
	}{
		{"the pod's annotation", func(r *road) { r.to.set(r.target.entry.UID, func(p *Pod) { p.GuestArrived = true }) }},
		{"the machine's status", func(r *road) { r.machine.Migration.Arrived = true }},
		{"the machine's node", func(r *road) { r.machine.Node = r.to.name }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRoad(t)
			s := startStream(t, r.source.Guest, r.from.world.Host, fifty.String(), 81)
			r.machine.MACs = []string{"02:00:00:00:00:99"}
			r.begin()
			r.cut()
			tt.say(r)
			r.publish()
			r.here("moved", r.to, r.from)
			s.proceeds(10)
			r.publish()
			if m := r.to.last.Statuses[fifty].Move; m == nil || m.Trigger != KubeVirt || m.From != r.from.name || m.Stall != nil {
				t.Errorf("the move is %+v, want one from %s that KubeVirt told of, and no stall", m, r.from.name)
			}
			r.finish()
			s.proceeds(10)
		})
	}
}

// TestUnknownPeer: the source does not know the target's NIC, and yields when KubeVirt says that the guest has gone. Until
// then each takes the other for a foreigner, and packets go to the one who defended the address last.
func TestUnknownPeer(t *testing.T) {
	t.Parallel()
	r := newRoad(t)
	s := startStream(t, r.source.Guest, r.from.world.Host, fifty.String(), 81)
	r.strangers, r.from.view.Peers, r.to.view.Peers = true, nil, nil
	r.begin()
	r.cut()
	r.to.awaitReport("arrived", func(report Report) bool { return report.Statuses[fifty].Here })
	r.machine.Migration.Arrived = true
	r.publish()
	r.here("moved", r.to, r.from)
	s.proceeds(10)
	r.finish()
}

// TestForeignerDuringMigration: somebody else on the LAN claims the address while it migrates. It is not a node that the
// guest could be on, so the source stays.
func TestForeignerDuringMigration(t *testing.T) {
	t.Parallel()
	r := newRoad(t)
	r.begin()
	r.from.world.Host.Claim("eth0", fifty)
	r.from.await("the foreigner was heard", func() bool { return r.from.agent.responders.figures()["red0"][4].Claims > 0 })
	r.here("still", r.from, r.to)
}

// TestRestartDuringMove: each agent may be away at each moment of a move. The kernel and the API server know enough.
func TestRestartDuringMove(t *testing.T) {
	t.Parallel()
	restart := func(b *bench, api bool) {
		b.t.Helper()
		b.stop()
		b.cluster.mu.Lock()
		b.cluster.complete = api
		b.cluster.mu.Unlock()
		b.start()
		b.await("a healthy agent", func() bool { return b.agent.Healthy() == nil })
	}
	t.Run("both, while the target waits", func(t *testing.T) {
		t.Parallel()
		r := newRoad(t)
		s := startStream(t, r.source.Guest, r.from.world.Host, fifty.String(), 81)
		r.begin()
		restart(r.from, true)
		r.publish()
		// The machine runs elsewhere: the agent has to ask for it first.
		r.to.view.Unknown = map[string]bool{r.machine.UID: true}
		r.to.view.Machines = map[string]Machine{}
		restart(r.to, true)
		r.to.publish()
		r.to.awaitReport("provisional", func(report Report) bool { s, ok := report.Statuses[fifty]; return ok && s.LegReady.True })
		r.here("still", r.from, r.to)
		r.to.view.Unknown = map[string]bool{}
		r.publish()
		r.to.awaitReport("staged", func(report Report) bool { return report.Statuses[fifty].NATReady.True })
		r.cut()
		r.arrived()
		s.proceeds(10)
		r.finish()
	})
	for _, api := range []bool{true, false} {
		t.Run(map[bool]string{true: "both, after the flip", false: "both, after the flip, without API server"}[api], func(t *testing.T) {
			t.Parallel()
			r := newRoad(t)
			s := startStream(t, r.source.Guest, r.from.world.Host, fifty.String(), 81)
			r.begin()
			r.cut()
			r.arrived()
			restart(r.from, api)
			restart(r.to, api)
			if api {
				r.publish()
			}
			s.proceeds(10)
			r.publish()
			r.here("still", r.to, r.from)
			s.proceeds(10)
			r.finish()
			s.proceeds(10)
		})
	}
	t.Run("the source's agent is away at the flip", func(t *testing.T) {
		t.Parallel()
		r := newRoad(t)
		s := startStream(t, r.source.Guest, r.from.world.Host, fifty.String(), 81)
		r.begin()
		r.from.stop()
		r.cut()
		r.to.awaitReport("arrived", func(report Report) bool { return report.Statuses[fifty].Here })
		s.proceeds(10)
		r.from.cluster.complete = false
		r.from.start()
		s.proceeds(10)
		r.machine.Migration.Arrived = true
		r.publish()
		r.here("moved", r.to, r.from)
		s.proceeds(10)
		r.finish()
	})
	t.Run("the target's agent is away when the guest arrives", func(t *testing.T) {
		t.Parallel()
		r := newRoad(t)
		s := startStream(t, r.source.Guest, r.from.world.Host, fifty.String(), 81)
		r.begin()
		r.to.stop()
		r.cut()
		r.to.start() // nobody announces the guest again
		r.publish()
		r.arrived()
		s.proceeds(10)
		report := r.to.awaitReport("the connection", func(report Report) bool { return report.Statuses[fifty].Move.Flows == 1 })
		if m := report.Statuses[fifty].Move; m.Stall != nil || m.Trigger != FirstFrame {
			t.Errorf("the move is %+v, want one whose guest came when nobody listened", m)
		}
		r.finish()
	})
}

// TestEarlyArrival: the guest is in its new pod before the node has heard of it. Meanwhile nothing of it leaves under the
// pod's address, so nobody resets its connections, and they go on when the leg is there.
func TestEarlyArrival(t *testing.T) {
	t.Parallel()
	r := newRoad(t)
	host := r.from.world.Host
	in, out := startStream(t, r.source.Guest, host, fifty.String(), 81), startStream(t, host, r.source.Guest, nodetest.Beyond, 82)
	udp := startEcho(t, r.source.Guest, host, fifty.String()+":7")
	end := udp.flow(time.Millisecond)
	r.prepare()
	r.cut()
	refused := func() (packets uint64) {
		for _, c := range nodetest.Counters(t, r.target.Pod) {
			packets += c.Guarded.Packets
		}
		return packets
	}
	r.to.await("a segment that stayed in the pod", func() bool { return refused() > 0 })
	r.publish()
	r.arrived()
	in.proceeds(10)
	out.proceeds(10)
	if end(); !udp.send(patience) {
		t.Error("UDP does not go on")
	}
	r.finish()
	in.proceeds(10)
}
