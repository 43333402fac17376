package node

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/flows"
	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/nat/node/peer"
	"floatip.io/floatip/nat/node/unread"
)

// exchange is how this agent and those of other nodes hand guests' connections over.
type exchange struct {
	identity *peer.Identity
	netns    *os.File
	address  string // to listen on; "" for no exchange
	patience Patience
	log      *slog.Logger
	wake     func()

	mu         sync.Mutex // guards what follows
	listening  bool
	departures map[string]departure // by UID of the machine
	gone       map[string]departure // of guests that have left, with what their pods' kernels knew last
	here       map[string]Migration // the last one of each machine that runs here
	agents     map[string]floatip.NodeAgent
	changed    chan struct{} // closed when departures has others, or here
}

// departure is a guest that leaves for a pod on another node, or has done so at a time. Its Key is set when somebody asks:
// the agent of that node may start anew meanwhile.
type departure struct {
	peer.Departure
	to, pod string
	at      time.Time
}

// over reports whether the guest of m is on the node self and does not leave it for the pod any more.
func (d departure) over(m Machine, self string) bool {
	return m.Node == self && !(m.Migration.leaves(self) && m.Migration.TargetPod == d.pod)
}

func newExchange(o Options, wake func()) (*exchange, error) {
	identity, err := peer.NewIdentity()
	return &exchange{
		identity: identity, netns: o.NetNS, address: o.PeerAddress, patience: o.Patience, log: o.Log, wake: wake,
		changed: make(chan struct{}),
	}, err
}

// run serves other agents until ctx is done. An address that cannot be listened on is tried again: without it guests move
// all the same, and the kernel picks their connections up by itself where it can.
func (e *exchange) run(ctx context.Context) {
	source := &peer.Source{Identity: e.identity, Log: e.log, Departure: e.departure, Expected: e.expected, Wait: e.patience.Answer}
	for said := ""; e.address != "" && ctx.Err() == nil; {
		l, err := peer.Listen(e.netns, e.address)
		if err == nil {
			e.setListening(true)
			err = source.Serve(ctx, l)
			e.setListening(false)
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			e.log.Error("other agents cannot ask for connections of guests that leave, trying again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
	}
}

func (e *exchange) setListening(on bool) {
	e.mu.Lock()
	e.listening = on
	e.mu.Unlock()
	e.wake()
}

// describe adds what other agents need to speak with this one.
func (e *exchange) describe(a floatip.NodeAgent) floatip.NodeAgent {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.listening {
		a.Address, a.Key = e.address, e.identity.Fingerprint()
	}
	return a
}

// departure is what a source knows of the migration of a machine into a pod. What a machine left behind that has come back
// since is of another migration: it would be told connections as they were then.
func (e *exchange) departure(machine, pod string) (peer.Departure, peer.Standing, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	d, found := e.departures[machine]
	if !found {
		d, found = e.gone[machine]
		found = found && time.Since(d.at) < e.patience.Remembered
	}
	if d.Key = e.agents[d.to].Key; found && d.Key != "" && (pod == "" || pod == d.pod) {
		return d.Departure, peer.Leaving, nil
	}
	last, here := e.here[machine]
	if here && pod != "" && !(last.TargetPod == pod && last.Failed) {
		return peer.Departure{}, peer.Unheard, e.changed
	}
	return peer.Departure{}, peer.Refused, nil
}

// expected lets the agents of all nodes ask: which of them is told something is seen when it asks.
func (e *exchange) expected(key string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, a := range e.agents {
		if a.Key == key {
			return key != ""
		}
	}
	return false
}

// set makes departures those of now. Of a guest that has left, what is known of its connections is kept for a while; its
// pod, and with it what the kernel knows, may go at any moment, also before KubeVirt has said where the guest is. Missed are
// guests that have left without having been departures before.
func (e *exchange) set(departures, missed map[string]departure, here map[string]Migration, v View, self string, now time.Time) {
	e.mu.Lock()
	old := e.departures
	e.mu.Unlock()
	left := map[string]departure{}
	for machine, d := range missed {
		if _, seen := old[machine]; !seen {
			left[machine] = d.left(now)
		}
	}
	for machine, d := range old {
		if _, stays := departures[machine]; stays {
			continue
		}
		switch m, known := v.Machines[machine]; {
		case v.Unknown[machine]:
			departures[machine] = d
		case known && d.over(m, self): // the migration was given up
		default:
			left[machine] = d.left(now)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for machine, g := range e.gone {
		m, known := v.Machines[machine]
		if left[machine].at.IsZero() && now.Sub(g.at) < e.patience.Remembered && !(known && g.over(m, self)) {
			left[machine] = g
		}
	}
	same := func(a, b departure) bool { return a.pod == b.pod }
	if !maps.EqualFunc(e.departures, departures, same) || !maps.EqualFunc(e.gone, left, same) || !maps.Equal(e.here, here) {
		close(e.changed)
		e.changed = make(chan struct{})
	}
	e.departures, e.gone, e.here, e.agents = departures, left, here, v.Peers
}

// left is d as it is now, for the time when nobody can look any more.
func (d departure) left(now time.Time) departure {
	d.Departure, d.at = frozen(d.Departure), now
	return d
}

// frozen is d as it is now.
func frozen(d peer.Departure) peer.Departure {
	entries, err := d.Flows()
	heard, known := d.Heard()
	return peer.Departure{
		Flows:   func() ([]flows.Entry, error) { return entries, err },
		Heard:   func() (time.Time, bool) { return heard, known },
		Arrived: func() {},
	}
}

// departures lists the machines that migrate from here.
func (a *Agent) departures(p plan) map[string]departure {
	out := map[string]departure{}
	for _, pp := range p.pods {
		pp.session.granted(pp)
		if pp.mode == Active && !pp.onNode() && slices.Contains(slices.Collect(maps.Values(pp.guest)), true) {
			pp.session.pin(pp.grant)
		}
		if pp.grant.To != "" && !pp.onNode() {
			pp.session.watch(pp.grant)
			out[pp.grant.Pod.Machine.UID] = a.departure(pp.session, pp.grant.To, pp.grant.Into)
		}
	}
	return out
}

// missed lists the machines that have migrated away before this agent has seen that they would: on a node with much to do
// it may hear of a whole migration at once. Of the others the exchange knows already.
func (a *Agent) missed(v View) map[string]departure {
	out := map[string]departure{}
	for _, s := range a.sessions {
		m := v.Machines[s.last.grant.Pod.Machine.UID]
		if m.Migration.leaves(a.Name) && m.Node == m.Migration.TargetNode {
			out[m.UID] = a.departure(s, m.Node, m.Migration.TargetPod)
		}
	}
	return out
}

// present lists the machines that run here and may be about to migrate, with their last migrations.
func (p plan) present(v View) map[string]Migration {
	out := map[string]Migration{}
	for _, pp := range p.pods {
		if pp.mode == Active && !pp.onNode() {
			uid := pp.grant.Pod.Machine.UID
			out[uid] = v.Machines[uid].Migration
		}
	}
	return out
}

func (a *Agent) departure(s *session, to, pod string) departure {
	g, bindings := s.last.grant, s.last.bindings
	return departure{to: to, pod: pod, Departure: peer.Departure{
		Flows:  func() ([]flows.Entry, error) { return s.flows(bindings) },
		Heard:  func() (time.Time, bool) { return s.heard(g) },
		Unread: s.unread, Cleared: s.journey.clearance(),
		Arrived: func() {
			s.journey.leave()
			a.responders.yield(g.Addresses...)
			a.Wake()
			s.log.Info("another node has the guest now", "addresses", g.Addresses, "node", to)
		},
	}}
}

// granted keeps what the pod holds, for the time when it holds it no longer.
func (s *session) granted(pp *podPlan) {
	if !pp.onNode() && !pp.grant.Provisional {
		s.last = lastGrant{pp.grant, pp.bindings()}
	}
}

// lastGrant is what a pod was granted in the last round.
type lastGrant struct {
	grant    Grant
	bindings []floatip.Binding
}

// bindings are those of the granted addresses.
func (pp *podPlan) bindings() []floatip.Binding {
	return slices.DeleteFunc(slices.Clone(pp.grant.NAT.Bindings), func(b floatip.Binding) bool {
		return !slices.ContainsFunc(pp.grant.Addresses, func(a netip.Addr) bool { return a == b.Floating })
	})
}

// withNamespace is inNamespace for what takes longer than a moment: the session is not locked meanwhile.
func (s *session) withNamespace(f func(ns *os.File) error) error {
	ns, err := s.duplicate()
	if err != nil {
		return err
	}
	defer ns.Close()
	return f(ns)
}

// watch has somebody keep what is sent to the guest, which is about to leave.
func (s *session) watch(g Grant) {
	err := s.inNamespace(func(ns *os.File) (err error) {
		if s.recorder == nil && s.recording == nil {
			s.recorder, s.recording = unread.Record(s.ctx, ns, g.NAT.Interface)
			err = s.recording
		}
		return err
	})
	if err != nil {
		s.log.Debug("watch the guest", "reason", err)
	}
}

// unread returns packets that the guest has left unread here, each once.
func (s *session) unread() [][]byte {
	s.mu.Lock()
	recorder := s.recorder
	s.mu.Unlock()
	frames, err := recorder.Unread()
	if err != nil {
		s.log.Debug("read what the guest has not", "reason", err)
	}
	out := make([][]byte, len(frames))
	for i, f := range frames {
		out[i] = f
	}
	return out
}

// heard is when the guest was last heard here, false where nobody knows.
func (s *session) heard(g Grant) (heard time.Time, known bool) {
	err := s.withNamespace(func(ns *os.File) (err error) {
		heard, known, err = leg.GuestHeard(ns, g.NAT.Interface, g.MACs)
		return err
	})
	if err != nil {
		s.log.Debug("ask when the guest was heard", "reason", err)
	}
	return heard, known
}

func (s *session) flows(bindings []floatip.Binding) (entries []flows.Entry, err error) {
	err = s.withNamespace(func(ns *os.File) error {
		entries, err = flows.Read(ns, bindings)
		return err
	})
	return entries, err
}

// relax has the pod's kernel accept the guest's connections as they are: while the guest was away their windows moved on,
// and what the kernel remembers of them is out of date.
func (s *session) relax(bindings []floatip.Binding) error {
	return s.withNamespace(func(ns *os.File) error {
		entries, err := flows.Read(ns, bindings)
		if err != nil {
			return err
		}
		table, err := flows.Open(ns)
		if err != nil {
			return err
		}
		defer table.Close()
		for _, e := range entries {
			if err := table.Relax(e); err != nil {
				return err
			}
		}
		return nil
	})
}
