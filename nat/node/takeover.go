package node

import (
	"net"
	"os"
	"slices"
	"time"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/fastpath"
	"floatip.io/floatip/nat/node/flows"
	"floatip.io/floatip/nat/node/peer"
	"floatip.io/floatip/nat/node/unread"
)

// askAgain is the pause before the source's agent is asked again after the exchange broke.
const askAgain = 500 * time.Millisecond

// collect takes the connections of a guest over that has arrived already.
func (a *Agent) collect(pp *podPlan, source floatip.NodeAgent) {
	ns, err := pp.session.duplicate()
	if err != nil {
		return // reaching the sidecar brings another round
	}
	if !pp.session.journey.claimFlows(source) {
		ns.Close()
		return
	}
	s, grant, bindings := pp.session, pp.grant, pp.bindings()
	a.followers.Go(func() { a.bring(s, ns, grant, bindings) })
}

// bring takes the guest's connections over, and has them take the fast path when they have arrived.
func (a *Agent) bring(s *session, ns *os.File, g Grant, bindings []floatip.Binding) {
	a.adopt(s, a.takeOver(s, ns, g, bindings))
}

// takeOver brings the connections of the guest into its new pod, until the guest has arrived with all of them or the
// session ends. It is called once for each staged pod. It returns those of TCP once all have arrived.
func (a *Agent) takeOver(s *session, ns *os.File, g Grant, bindings []floatip.Binding) []fastpath.Connection {
	defer ns.Close()
	table, err := flows.Open(ns)
	if err != nil {
		s.log.Warn("the guest's connections are not taken over", "reason", err)
		return nil
	}
	defer table.Close()
	w := &writer{
		journey: &s.journey, table: table, bindings: bindings, held: map[flows.Key]flows.Entry{}, inward: map[flows.Key]bool{},
		ns: ns, bridge: g.NAT.Interface, macs: g.MACs, stale: a.Patience.Stale,
	}
	for said := ""; s.ctx.Err() == nil && !s.journey.arrivedBefore(time.Now().Add(-a.Patience.Remembered)); {
		source := s.journey.peer()
		t := peer.Target{
			Identity: a.exchange.identity, NetNS: a.NetNS, Address: source.Address, Key: source.Key,
			Machine: g.Pod.Machine.UID, Pod: g.Pod.Name, ArrivedAt: s.journey.arrivedAt, Apply: w.apply, Give: w.give,
			Wait: a.Patience.Answer,
		}
		outcome, err := t.Follow(s.ctx, s.journey.arrival())
		a.health.handedOver(w.fresh())
		if err == nil {
			s.journey.settle(outcome, len(w.held))
			s.log.Info("took the guest's connections over", "from", g.From, "connections", len(w.held), "refused", w.refused,
				"failed", w.failed, "heard", outcome.Heard, "packets", w.given)
			a.Wake()
			return w.connections()
		}
		if s.ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			s.log.Info("cannot take the guest's connections over, trying again", "from", g.From, "reason", err)
		}
		select {
		case <-s.ctx.Done():
		case <-time.After(askAgain):
		}
	}
	return nil
}

// The pauses before each look at whether the node forwards connections that came along: most of them speak in the first second.
const (
	adoptFirst = time.Second
	adoptMost  = 32 * time.Second
)

// adopt puts connections that came along on the fast path as the node picks them up. What is silent for longer than a minute
// takes the node's ordinary way from then on.
func (a *Agent) adopt(s *session, moved []fastpath.Connection) {
	for pause := adoptFirst; len(moved) > 0 && pause <= adoptMost; pause *= 2 {
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(pause):
		}
		rest, err := a.fast.adopt(moved)
		if now := len(moved) - len(rest); now > 0 || err != nil {
			s.log.Info("connections that came along take the fast path", "connections", now, "others", len(rest), "error", err)
		}
		moved = rest
	}
}

// writer writes what the source tells into the pod.
type writer struct {
	journey         *journey
	table           *flows.Table
	bindings        []floatip.Binding
	held            map[flows.Key]flows.Entry
	put             uint64
	refused, failed uint64
	told            [3]uint64 // what fresh has returned of put, refused and failed

	inward map[flows.Key]bool // what reaches the guest of the connections that were taken over
	early  [][]byte           // packets for it of connections that the old node may yet tell of
	size   int                // of these, in bytes
	ns     *os.File
	bridge string
	macs   []string
	stale  time.Duration
	given  int // packets that the guest got
}

// apply writes changes. After the arrival the kernel has seen packets of its own, and its entries are the better ones.
func (w *writer) apply(c flows.Changes) {
	arrived := w.journey.hasArrived()
	for _, k := range c.Remove {
		if _, held := w.held[k]; held && !arrived {
			delete(w.held, k)
			_ = w.table.Remove(k) // it times out by itself
		}
	}
	for _, e := range c.Put {
		if err := e.Check(w.bindings); err != nil {
			w.refused++
			continue
		}
		if err := w.table.Put(e, arrived); err != nil {
			w.failed++
			continue
		}
		w.held[e.Key()] = e
		w.put++
		for _, b := range w.bindings {
			if k, ok := e.Inward(b.Fixed); ok {
				w.inward[k] = true
			}
		}
	}
	early := w.early
	w.early, w.size = nil, 0
	w.give(early)
}

// connections are those of TCP that the pod's kernel was told of.
func (w *writer) connections() (list []fastpath.Connection) {
	for _, e := range w.held {
		for _, b := range w.bindings {
			if outside, floating, ok := e.Ends(b); ok && e.TCP != nil {
				list = append(list, fastpath.Connection{Outside: outside, Floating: floating})
			}
		}
	}
	return list
}

// give hands packets to the guest that it had no time to read on its old node. Like entries, they must be of connections by
// the floating addresses; of these the old node could have told the guest anything as long as it was there. One that the old node has
// not told of may be younger than its last look, and the packet the first of it: that is kept until its connection is known, as far as an honest source has so much to tell.
func (w *writer) give(frames [][]byte) {
	var good []unread.Frame
	for _, raw := range frames {
		f := unread.Frame(raw)
		k, ok := flows.FrameKey(f.Ethernet())
		switch {
		case !ok || !w.isTo(f.Ethernet()):
		case w.inward[k]:
			good = append(good, f)
		case len(w.early) < unread.MaxFrames && w.size+len(raw) <= unread.MaxBytes:
			w.early, w.size = append(w.early, raw), w.size+len(raw)
		}
	}
	if len(good) == 0 || time.Since(w.journey.arrivedAt()) > w.stale {
		return // too late, or, at the zero time, too early
	}
	n, _ := unread.Put(w.ns, w.bridge, good) // what the guest does not get is sent again, as any packet that was lost
	w.given += n
}

// isTo reports whether a frame is addressed to the guest.
func (w *writer) isTo(frame []byte) bool {
	return len(w.macs) == 0 || slices.Contains(w.macs, net.HardwareAddr(frame[:6]).String())
}

// fresh returns how many were written, refused and failed since the last time.
func (w *writer) fresh() [3]uint64 {
	now := [3]uint64{w.put, w.refused, w.failed}
	since := [3]uint64{now[0] - w.told[0], now[1] - w.told[1], now[2] - w.told[2]}
	w.told = now
	return since
}
