package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"floatip.io/floatip/nat/node/announce"
	"floatip.io/floatip/nat/node/appear"
	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/nat/node/peer"
	"floatip.io/floatip/nat/node/podlink"
)

const (
	// settle is the least time between two rounds: what happens in between is looked at once.
	settle = 20 * time.Millisecond

	// lookAgain is the longest time between two rounds. It finds what tells nobody that it changed, for instance a
	// setting in /proc/sys that some other program resets.
	lookAgain = 30 * time.Second

	// retry is the time to the next round after one that failed.
	retry = time.Second
)

// Parallel is the least value of runtime.GOMAXPROCS with which an Agent hears in time what it waits for. The runtime looks for
// packets that have come when a processor of its own has nothing to do. One whose goroutine is in a system call is none of
// those before somebody has noticed, up to 10 ms later (sysmon, retake in runtime/proc.go); and the agent spends most of its
// time in calls that last for milliseconds, such as a look at the connection tracking table. With two processors a guest's
// first frame was read up to 12 ms late, and a node's announcement up to 16 ms late; with eight, as a rule at once.
const Parallel = 8

// Source is where the View comes from. Package cluster has the one of the API server.
type Source interface {
	// View returns the View of now, and false before the first complete one.
	View() (View, bool)
}

// Sink takes what a round found out. It must not block.
type Sink interface{ Report(Report) }

// Options say where an Agent works.
type Options struct {
	// Name of the node.
	Name string
	// KubeletDir is the kubelet's directory, usually /var/lib/kubelet.
	KubeletDir string
	// ClusterNetworks are added to those that the pods' descriptions name.
	ClusterNetworks []netip.Prefix
	// NetNS is the node's network namespace, nil for that of the process.
	NetNS *os.File
	// PeerAddress is where agents of other nodes reach this one, address and port on the cluster's network. Empty: guests
	// move without their tracked connections.
	PeerAddress string
	// Sysctls is /proc/sys/net or where it is mounted writable.
	Sysctls string
	Log     *slog.Logger
	// NoFastPath lets every packet take the node's ordinary way (package fastpath).
	NoFastPath bool
	// Timing of probes and defences. The zero Timing stands for announce.DefaultTiming.
	Timing announce.Timing
	// Patience with the other node of a move. The zero Patience stands for DefaultPatience.
	Patience Patience
}

// Patience says how long the two nodes of a move have time.
type Patience struct {
	// Answer bounds each read and write between their agents.
	Answer time.Duration
	// Remembered is how long a node can be asked about a guest that has left, and is asked: its new node may be slower than
	// KubeVirt.
	Remembered time.Duration
	// Stale is the age at which packets for a guest are given up: the peer has sent them again by then, or has lost interest.
	Stale time.Duration
}

// DefaultPatience is that of the program.
var DefaultPatience = Patience{Answer: peer.DefaultWait, Remembered: 30 * time.Second, Stale: 3 * time.Second}

// Agent is the loop. It is used by one goroutine, except for Wake.
type Agent struct {
	Options
	source Source
	sink   Sink
	wake   chan struct{} // capacity 1

	kernel     *leg.Node
	fast       *fast
	podlink    *podlink.Node
	links      map[linkKey]string  // by which link a pod was reached last
	sessions   map[string]*session // by pod UID
	watcher    *appear.Watcher     // of sessions that have not reached their sidecar
	pauses     pauses
	followers  sync.WaitGroup // of moves; each ends with its session
	responders *responders
	solicitor  *solicitor
	tests      tests
	exchange   *exchange
	refused    map[Refusal]bool // what was logged
	complaint  string           // what was logged
	recheck    atomic.Bool
	health     health
}

// NewAgent prepares an Agent. It fails without the rights for netlink sockets.
func NewAgent(o Options, source Source, sink Sink) (*Agent, error) {
	if o.Patience == (Patience{}) {
		o.Patience = DefaultPatience
	}
	kernel, err := leg.Open(o.NetNS, o.Sysctls)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		Options: o, source: source, sink: sink, wake: make(chan struct{}, 1), kernel: kernel,
		podlink: podlink.Open(o.NetNS), links: map[linkKey]string{}, sessions: map[string]*session{}, tests: tests{},
		watcher: appear.NewWatcher(o.KubeletDir, o.Log), pauses: usualPauses,
	}
	a.responders, a.solicitor, a.fast = newResponders(o, a.Wake), newSolicitor(o), newFast(o)
	if a.exchange, err = newExchange(o, a.Wake); err != nil {
		kernel.Close()
		return nil, err
	}
	return a, nil
}

// Wake asks for another round. It may be called by anyone at any time.
func (a *Agent) Wake() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Recheck asks for a round that looks into every pod, as the regular ones do.
func (a *Agent) Recheck() {
	a.recheck.Store(true)
	a.Wake()
}

// Run works until ctx is done, and returns nil then. What it has put into the kernel stays there. It fails with
// ErrSecondAgent where another agent works in the same namespace.
func (a *Agent) Run(ctx context.Context) error {
	lock, err := takeLock(a.NetNS)
	if err != nil {
		return err
	}
	defer lock.Close()
	go a.serveStatus(lock)
	defer a.kernel.Close()
	defer a.followers.Wait()
	defer a.watcher.Close()
	defer a.stopSessions()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	newKernelWatch(a.NetNS, a.Wake, a.Log).start(ctx)
	defer a.responders.stop()
	serving := make(chan struct{})
	go func() {
		defer close(serving)
		a.exchange.run(ctx)
	}()
	defer func() {
		cancel()
		<-serving
		a.solicitor.wait()
	}()
	if err := a.resume(ctx); err != nil {
		return err
	}
	return a.loop(ctx)
}

// resume answers for what the kernel answers for, until the first View comes: the API server may be away.
func (a *Agent) resume(ctx context.Context) error {
	holding, err := a.kernel.Holding()
	if err != nil {
		return fmt.Errorf("read what an earlier agent left: %w", err)
	}
	if len(holding.Answered) > 0 {
		a.Log.Info("going on with the addresses of an earlier agent", "addresses", fmt.Sprint(holding.Answered))
	}
	a.responders.resume(ctx, holding.Answered)
	return nil
}

func (a *Agent) loop(ctx context.Context) error {
	for {
		next := lookAgain
		a.health.turn(time.Now())
		if view, complete := a.source.View(); complete {
			report, err := a.round(ctx, view)
			if next = a.pause(err); err == nil {
				a.complaint = ""
			} else {
				a.complain(err)
			}
			a.sink.Report(report)
		}
		if !a.rest(ctx, next) {
			return nil
		}
	}
}

// rest waits until there is reason for another round, at most for next, and false is that ctx is done.
func (a *Agent) rest(ctx context.Context, next time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(settle):
	}
	select {
	case <-ctx.Done():
		return false
	case <-a.wake:
	case <-time.After(next):
	}
	// What a move calls for at once has been done. A round takes the processor, or the kernel's locks, for longer than the guest's
	// first packets and their answers need.
	select {
	case <-ctx.Done():
		return false
	case <-time.After(a.standBack(time.Now())):
	}
	return true
}

// standBack is for how long no round shall begin, since a guest has just come or gone.
func (a *Agent) standBack(now time.Time) (most time.Duration) {
	for _, s := range a.sessions {
		most = max(most, s.journey.standBack(now))
	}
	return most
}

// pause is the longest time to the next round, after one that ended with err.
func (a *Agent) pause(err error) time.Duration {
	switch {
	case err != nil:
		return retry
	case a.fast.waiting.Load():
		return 0
	}
	return lookAgain
}

// complain says each error once, however often it is met in a row.
func (a *Agent) complain(err error) {
	if text := err.Error(); text != a.complaint {
		a.complaint = text
		a.Log.Error("not everything is in place, trying again", "error", err)
	}
}

// round makes the node what the view says. The order is that of a withdrawal: first nobody is told any more, then the
// way goes, then the pods' sessions.
func (a *Agent) round(ctx context.Context, v View) (report Report, err error) {
	began := time.Now()
	var d Decision
	defer func() { a.health.round(time.Since(began), d, err) }()
	if a.recheck.Swap(false) {
		for _, s := range a.sessions {
			s.setChecked("", time.Time{})
		}
	}
	holding, err := a.kernel.Holding()
	if err != nil {
		return Report{}, err
	}
	nics, err := a.kernel.NICs(holding)
	if err != nil {
		return Report{}, err
	}
	d = Decide(v, a.Name, nics, holding.Networks)
	a.logRefusals(d.Refusals)
	plan := a.plan(ctx, d, holding)
	a.responders.peers.set(v.Peers)
	a.responders.keep(plan.audible(), plan.seen)
	errs := []error{a.plug(&plan, &holding, d.Networks)}
	was := a.fast.off
	config, changed, err, podlinks := a.apply(&d, plan, holding)
	errs = append(errs, err, podlinks)
	plan.clear(err)
	a.responders.set(ctx, plan.audible(), plan.leaving(v), plan.seen)
	a.solicitor.set(ctx, bareNICs(d.Networks, plan.audible()))
	if !changed || !a.fast.postpone(config) {
		errs = append(errs, a.speedUp(config, holding, was))
	}
	errs = append(errs, a.follow(v, plan))
	errs = append(errs, a.dismiss(d))
	a.forgetLinks(d)
	counters, countErr := a.counters(plan)
	errs = append(errs, countErr)
	a.health.observe(a.responders.figures(), plan.conflicts(), plan.traffic(counters))
	report = a.report(v, d, plan, err)
	err = errors.Join(errs...)
	a.health.tell(lines(plan, report, plan.traffic(counters)), d.Refusals, a.fast.off, err)
	return report, err
}

// apply makes the node's kernel what the plan says: who translates before who routes, so that no packet of a floating
// address reaches a pod that does not know it. An error of the former concerns the pods that need it, and no leg.
// changed says whether the latter had something to do.
func (a *Agent) apply(d *Decision, p plan, holding leg.Holding) (config leg.Config, changed bool, applied, podlinks error) {
	d.Networks = p.mark(d.Networks, holding.Networks)
	translated, podlinks := a.podlink.Apply(p.podlink(d.Networks, a.ClusterNetworks))
	a.logChanges("node", leg.Report{Changes: translated.Changes})
	if podlinks != nil {
		for _, pp := range p.pods {
			if pp.hops() {
				pp.fail(podlinks)
			}
		}
	}
	config = p.config(*d, a.ClusterNetworks)
	slower, withdrawn := a.fast.withdraw(config, holding)
	a.logChanges("node", slower)
	report, applied := a.kernel.ApplyTo(holding, config)
	a.logChanges("node", report)
	return config, len(report.Changes) > 0, errors.Join(withdrawn, applied), podlinks
}

// speedUp puts what goes by legs on the fast path, when everything stands and is announced. was is why there was none in the
// round before.
func (a *Agent) speedUp(config leg.Config, holding leg.Holding, was error) error {
	report, err := a.fast.apply(config, holding)
	a.logChanges("node", report)
	if off := a.fast.off; off != nil && (was == nil || was.Error() != off.Error()) {
		a.Log.Info("no fast path: established connections take the node's ordinary way", "reason", off)
	}
	return err
}

// follow does what moves call for besides what every pod has.
func (a *Agent) follow(v View, p plan) error {
	a.exchange.set(a.departures(p), a.missed(v), p.present(v), v, a.Name, time.Now())
	var errs []error
	for _, pp := range p.pods {
		if pp.mode == Staged && !pp.onNode() && !pp.grant.Provisional {
			a.expect(pp, v.Peers[pp.grant.From])
		}
		if from := pp.session.journey.late(pp.grant); from != "" && pp.mode == Active && pp.plugged && !pp.onNode() {
			a.collect(pp, v.Peers[from])
		}
		if m := pp.session.journey.uncounted(); m != nil {
			a.health.moved(m.Trigger)
		}
		if stall := pp.session.journey.uncountedStall(); stall != nil {
			a.health.stalled(*stall)
		}
		if pp.session.journey.returned() {
			errs = append(errs, pp.session.relax(pp.bindings()))
		}
	}
	return errors.Join(errs...)
}

// logChanges says where something changed; what it was is for those who look closer.
func (a *Agent) logChanges(where string, r leg.Report) {
	if len(r.Changes) == 0 {
		return
	}
	a.health.changed(len(r.Changes))
	a.Log.Info("changed the kernel", "where", where, "changes", len(r.Changes))
	for _, line := range r.Changes {
		a.Log.Debug("change", "where", where, "what", line)
	}
	if len(r.Withdrawn) > 0 {
		a.Log.Info("withdrew", "where", where, "addresses", fmt.Sprint(r.Withdrawn))
	}
}

// dismiss ends the sessions of pods that are granted nothing any more. A pod that lives on forgets its addresses.
func (a *Agent) dismiss(d Decision) error {
	granted := map[string]bool{}
	for _, g := range d.Grants {
		granted[g.Pod.UID] = true
	}
	var errs []error
	for uid, s := range a.sessions {
		if granted[uid] {
			continue
		}
		err := s.inNamespace(func(ns *os.File) error {
			_, err := leg.ClearPod(ns)
			return err
		})
		if err != nil && s.reached() { // a pod that was never reached has nothing of ours
			errs = append(errs, fmt.Errorf("clear pod %s: %w", uid, err))
		}
		s.close()
		delete(a.sessions, uid)
	}
	return errors.Join(errs...)
}

func (a *Agent) stopSessions() {
	for _, s := range a.sessions {
		s.close()
	}
}

// logRefusals says each refusal once, and again when its reason changes.
func (a *Agent) logRefusals(refusals []Refusal) {
	said := map[Refusal]bool{}
	for _, r := range refusals {
		said[r] = true
		if a.refused[r] {
			continue
		}
		a.Log.Warn("refused", "pod", r.Pod.Namespace+"/"+r.Pod.Name, "address", r.Address, "reason", r.Reason)
	}
	a.refused = said
}
