package node

import (
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/arrival"
	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/nat/node/peer"
)

// Trigger is what told the node that a guest had arrived.
type Trigger string

const (
	// FirstFrame: the guest was heard in the pod.
	FirstFrame Trigger = "FirstFrame"
	// KubeVirt: virt-handler or virt-controller said so in the API server.
	KubeVirt Trigger = "KubeVirt"
)

// Move is a live migration that has brought a guest here.
type Move struct {
	// From is the node that it came from.
	From    string
	At      time.Time
	Trigger Trigger
	// Stall is the time between the last frame of the guest that its old node saw and the first one here: what the guest
	// stood still, and for how long it had nothing to say besides. It is known to 10 ms. nil: one of the two is not known.
	Stall *time.Duration
	// Flows is how many tracked connections were handed over.
	Flows int
}

// journey is what a session knows of its guest's coming and going before the API server says it. Its lock is held for
// moments only, other than the session's: a move waits for nobody.
type journey struct {
	mu      sync.Mutex // guards what follows
	begun   bool       // what the kernel holds was looked at
	waiting bool       // somebody listens for the guest
	from    string     // the node that a staged pod's guest shall come from
	arrived time.Time  // when the guest came, as far as is known
	yielded bool       // another node has announced the addresses
	left    time.Time  // when it did, as far as is known
	back    bool       // it has given them back
	// cleared is closed when the guest has left and nothing is led to its pod here any more, nil before anybody asked for it.
	cleared chan struct{}
	ready   map[netip.Addr]string
	move    *Move
	counted bool // the move is in the figures

	taking  bool // somebody takes connections over
	source  floatip.NodeAgent
	come    chan struct{} // closed at the arrival, nil before anybody asked for it
	last    time.Time     // when the old node last heard the guest, by this node's clock; zero: not known
	first   time.Time     // the guest's first frame here; zero: nobody saw it come, and another one may have been before it
	stall   *time.Duration
	stalled bool // the stall is in the figures
	flows   int
}

// seen is the mode of the pod: that of the grant, or what the journey or the kernel knows better.
func (j *journey) seen(g Grant, holding leg.Holding) Mode {
	if g.Provisional {
		return j.provisional(provisionalMode(g, holding))
	}
	j.begin(g, holding)
	return j.mode(g)
}

// provisional is the kernel's mode, unless the agent has seen more since the kernel was made like this.
func (j *journey) provisional(kernel Mode) Mode {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.yielded:
		return Left
	case kernel == Staged && !j.arrived.IsZero():
		return Active
	}
	return kernel
}

// begin takes over what an earlier agent has decided: the kernel holds it.
func (j *journey) begin(g Grant, holding leg.Holding) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.begun {
		return
	}
	j.begun = true
	active := false
	for _, a := range g.Addresses {
		active = active || holding.Active[a] == g.way(a)
	}
	switch {
	case g.Mode == Staged && active:
		j.arrive1(time.Now())
	case g.Mode == Active && g.To != "" && held(g, holding) && !active:
		j.yielded = true
	case g.Mode == Active && g.Came != "" && !active:
		j.from = g.Came // the guest was faster than this node
	}
}

// late returns the node that a guest came from before its pod was known here.
func (j *journey) late(g Grant) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.from == g.Came {
		return g.Came
	}
	return ""
}

// mode is the mode of the grant as far as the journey knows better.
func (j *journey) mode(g Grant) Mode {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case g.Mode == Staged && j.arrived.IsZero():
		j.from = g.From
		return Staged
	case g.Mode == Active && g.To != "" && j.yielded:
		return Left
	case g.Mode == Left:
		return Left
	}
	if j.yielded && g.To == "" {
		j.yielded, j.back, j.cleared = false, true, nil // the migration was given up, and the guest is still here
	}
	if j.from != "" && j.move == nil {
		j.move = &Move{From: j.from, At: j.arrived, Trigger: FirstFrame, Stall: j.stall, Flows: j.flows}
		if j.arrived.IsZero() {
			j.move.At, j.move.Trigger = time.Now(), KubeVirt
			j.arrive1(j.move.At)
		}
	}
	return Active
}

// uncounted returns the move once.
func (j *journey) uncounted() *Move {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.counted {
		return nil
	}
	j.counted = j.move != nil
	return j.move
}

// uncountedStall returns the stall once, when it is known.
func (j *journey) uncountedStall() *time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.stalled || j.move == nil {
		return nil
	}
	j.stalled = j.stall != nil
	return j.stall
}

// returned reports, once, that the guest came back after another node had the addresses.
func (j *journey) returned() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	was := j.back
	j.back = false
	return was
}

// provisionalMode is that of a pod whose machine is not known at the moment: the kernel's.
func provisionalMode(g Grant, holding leg.Holding) Mode {
	for _, a := range g.Addresses {
		switch g.way(a) {
		case holding.Active[a]:
			return Active
		case holding.Staged[a]:
			return Staged
		}
	}
	return Left
}

// leave notes that another node has taken the addresses over.
func (j *journey) leave() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.yielded {
		j.yielded, j.left = true, time.Now()
	}
}

// standBack is for how long the guest's first packets on its new node are let go first, on either node.
func (j *journey) standBack(now time.Time) time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	last := j.arrived
	if j.left.After(last) {
		last = j.left
	}
	return max(0, peer.StandBack-now.Sub(last))
}

// clearance returns a channel that is closed by clear.
func (j *journey) clearance() <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.cleared == nil {
		j.cleared = make(chan struct{})
	}
	return j.cleared
}

// clear notes that nothing is led to the pod any more since its guest has left.
func (j *journey) clear() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.cleared == nil {
		j.cleared = make(chan struct{})
	}
	select {
	case <-j.cleared:
	default:
		close(j.cleared)
	}
}

// prepare says what shall be answered for as soon as the guest arrives, and on which NICs.
func (j *journey) prepare(ready map[netip.Addr]string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ready = ready
}

// arrive notes that the guest was heard, with its first frame at the time given, or zero where that one was missed. It returns
// what was prepared for it. KubeVirt's word may have been faster.
func (j *journey) arrive(first time.Time) map[netip.Addr]string {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.first = first
	switch {
	case first.IsZero():
		j.arrive1(time.Now())
	case j.arrived.After(first):
		j.arrived = first
	default:
		j.arrive1(first)
	}
	j.measure()
	return j.ready
}

// measure says for how long the guest was silent, when both ends of that are known, in either order.
func (j *journey) measure() {
	if !j.first.IsZero() && !j.last.IsZero() {
		stall := max(0, j.first.Sub(j.last))
		j.stall = &stall
	}
	if j.move != nil {
		m := *j.move
		m.At, m.Stall, m.Flows = j.arrived, j.stall, j.flows
		j.move = &m
	}
}

// arrive1 is arrive under the lock.
func (j *journey) arrive1(at time.Time) {
	if j.arrived.IsZero() {
		j.arrived = at
		if j.come != nil {
			close(j.come)
		}
	}
}

// arrival returns a channel that is closed when the guest arrives.
func (j *journey) arrival() <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.come == nil {
		j.come = make(chan struct{})
		if !j.arrived.IsZero() {
			close(j.come)
		}
	}
	return j.come
}

func (j *journey) arrivedAt() time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.arrived
}

func (j *journey) hasArrived() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.arrived.IsZero()
}

// arrivedBefore reports whether the guest was here at the time.
func (j *journey) arrivedBefore(at time.Time) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.arrived.IsZero() && j.arrived.Before(at)
}

// settle notes what the old node told after the arrival.
func (j *journey) settle(o peer.Outcome, connections int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.flows, j.last = connections, o.Heard
	j.measure()
}

// peer is the agent of the node that the guest comes from, as it was published last.
func (j *journey) peer() floatip.NodeAgent {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.source
}

// claimFlows reports whether the caller is the one who shall take connections over, from the agent given.
func (j *journey) claimFlows(source floatip.NodeAgent) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if source.Key == "" || source.Address == "" {
		return false
	}
	j.source = source
	first := !j.taking
	j.taking = true
	return first
}

func (j *journey) lastMove() *Move {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.move
}

// claim reports whether the caller is the one who shall listen.
func (j *journey) claim() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	first := !j.waiting && j.arrived.IsZero()
	j.waiting = j.waiting || first
	return first
}

func (j *journey) unclaim() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.waiting = false
}

// expect prepares for the guest of a staged pod: somebody listens for it, and somebody takes its connections over.
func (a *Agent) expect(pp *podPlan, source floatip.NodeAgent) {
	s := pp.session
	s.journey.prepare(pp.awaited())
	ns, err := s.duplicate()
	if err != nil {
		return // reaching the sidecar brings another round
	}
	defer ns.Close()
	if s.journey.claim() {
		if own, err := duplicate(ns); err == nil {
			grant := pp.grant
			a.followers.Go(func() { a.await(s, own, grant) })
		} else {
			s.journey.unclaim()
		}
	}
	if pp.plugged && s.journey.claimFlows(source) {
		if own, err := duplicate(ns); err == nil {
			grant, bindings := pp.grant, pp.bindings()
			a.followers.Go(func() { a.bring(s, own, grant, bindings) })
		}
	}
}

// awaited are the addresses that can be answered for as soon as the guest arrives, with their NICs.
func (pp *podPlan) awaited() map[netip.Addr]string {
	ready := map[netip.Addr]string{}
	for address, nic := range pp.nics {
		// One that nobody could vouch for so far is tested first.
		if pp.plugged && pp.failed == nil && translates(pp.state, address) && slices.Contains(pp.grant.InUse, address) {
			ready[address] = nic
		}
	}
	return ready
}

// await lives until the guest arrives, or the session ends. On an arrival the address is announced at once; all else
// that it calls for is done by the round that follows.
func (a *Agent) await(s *session, ns *os.File, g Grant) {
	defer ns.Close()
	frame, err := arrival.Await(s.ctx, ns, g.NAT.Interface, g.MACs)
	if err != nil {
		s.journey.unclaim()
		if s.ctx.Err() == nil {
			s.log.Warn("cannot listen for the guest; it arrives when KubeVirt says so", "reason", err)
		}
		return
	}
	ready := s.journey.arrive(frame.At)
	a.responders.take(ready)
	if err := leg.MeetGuest(ns, g.NAT.Interface, frame.Source, g.fixed()...); err != nil {
		s.log.Info("the pod's kernel has to ask for the guest", "reason", err)
	}
	a.Wake()
	s.log.Info("the guest has arrived", "from", g.From, "addresses", sortedAddresses(ready), "ethertype", frame.EtherType, "at", frame.At)
}

// fixed are the guest's own addresses behind those of the grant.
func (g Grant) fixed() (list []netip.Addr) {
	for _, a := range g.Addresses {
		if f, bound := fixedOf(g.NAT, a); bound {
			list = append(list, f)
		}
	}
	return list
}

// duplicate returns the pod's namespace for somebody who keeps it.
func (s *session) duplicate() (ns *os.File, err error) {
	err = s.inNamespace(func(own *os.File) (err error) {
		ns, err = duplicate(own)
		return err
	})
	return ns, err
}

func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "netns"), nil
}

// leaving lists the addresses that may move away, and who may take them.
func (p plan) leaving(v View) map[netip.Addr]leaving {
	out := map[netip.Addr]leaving{}
	for _, pp := range p.pods {
		if pp.mode != Active || pp.grant.To == "" {
			continue
		}
		for _, a := range pp.grant.Addresses {
			out[a] = leaving{macs: v.Peers[pp.grant.To].MACs, yielded: pp.session.yielded(a, pp.grant.To)}
		}
	}
	return out
}

func (s *session) yielded(a netip.Addr, to string) func() {
	return func() {
		s.journey.leave()
		s.log.Info("another node has the address now", "address", a, "node", to)
	}
}
