package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/handover"
	"floatip.io/floatip/nat/node/announce"
	"floatip.io/floatip/nat/node/leg"
)

// plan is what a round does for each granted pod.
type plan struct {
	pods []*podPlan
	seen uint64 // changes of the responders that it knows of
}

type podPlan struct {
	grant   Grant
	mode    Mode // the grant's, or what the agent has seen with its own eyes
	session *session
	state   handover.State
	err     error // of the session
	mtu     int
	nics    map[netip.Addr]string // the provider NIC of each address

	ways     map[netip.Addr]leg.Hop // the CNI's way to the pod, of deliveries that use it
	plugged  bool                   // the way to the pod stands
	raised   bool                   // the pod's end of its leg was set up in this round
	failed   error                  // why it does not
	answered map[netip.Addr]bool
	already  map[netip.Addr]bool // answered for before this round
	guest    map[netip.Addr]bool // the guest has taken the fixed address behind this one
	usable   map[netip.Addr]bool // nobody else has it
	standing map[netip.Addr]announce.Standing
}

// plan starts sessions for new pods and decides what is answered for: an address whose rules stand in the pod and whose
// leg is plugged. Once answered for, it stays so: a sidecar that restarts leaves the rules in the kernel.
func (a *Agent) plan(ctx context.Context, d Decision, holding leg.Holding) plan {
	p := plan{seen: a.responders.seen()}
	a.tests.forget(d)
	for _, g := range d.Grants {
		plugged := held(g, holding)
		if g.Provisional && !plugged {
			continue
		}
		pp := &podPlan{
			grant: g, session: a.sessionOf(ctx, g), plugged: plugged, ways: map[netip.Addr]leg.Hop{},
			nics: map[netip.Addr]string{}, answered: map[netip.Addr]bool{}, already: map[netip.Addr]bool{},
			guest: map[netip.Addr]bool{}, usable: map[netip.Addr]bool{}, standing: map[netip.Addr]announce.Standing{},
		}
		pp.state, pp.err = pp.session.snapshot()
		pp.mode = pp.session.journey.seen(g, holding)
		for _, address := range g.Addresses {
			n := networkOf(d.Networks, address)
			pp.nics[address] = n.Interface
			if n.MTU > 0 && (pp.mtu == 0 || n.MTU < pp.mtu) {
				pp.mtu = n.MTU
			}
			pp.already[address] = plugged && holding.Answers(address)
			pp.standing[address] = a.responders.standing(n.Interface, address)
			if pp.standing[address].State == announce.Taken && slices.Contains(g.InUse, address) {
				// The pool does not want to know any more.
				a.responders.drop(n.Interface, address)
				pp.standing[address] = announce.Standing{}
			}
			pp.usable[address] = a.tests.usable(g, pp.mode, address, pp.already[address], pp.standing[address])
			pp.answered[address] = pp.mode == Active && pp.usable[address] &&
				(pp.already[address] || !g.Provisional && (pp.onNode() || translates(pp.state, address)))
			pp.guest[address] = g.Running
			// Nobody asks a pod that waits for its guest: the kernel repeats a question once in a second, and what comes for the
			// guest when it is there would wait for that.
			if !pp.onNode() && pp.mode != Staged {
				pp.guest[address] = pp.session.guestAnswers(g.NAT, address)
			}
		}
		p.pods = append(p.pods, pp)
	}
	return p
}

// sessionOf returns the session with a pod, a new one if there was none. It looks for a sidecar where there is one.
func (a *Agent) sessionOf(ctx context.Context, g Grant) *session {
	s := a.sessions[g.Pod.UID]
	if s == nil {
		log := a.Log.With("pod", g.Pod.Namespace+"/"+g.Pod.Name)
		s = newSession(ctx, socketPath(a.KubeletDir, g.Pod.UID), log, a.Wake)
		if g.Delivery.InPod() {
			s.start(a.watcher, a.pauses)
		}
		a.sessions[g.Pod.UID] = s
	}
	return s
}

func networkOf(networks []leg.Network, a netip.Addr) leg.Network {
	i := slices.IndexFunc(networks, func(n leg.Network) bool { return n.Prefix.Contains(a) })
	if i < 0 {
		return leg.Network{}
	}
	return networks[i]
}

// plug makes or finds the ways to the pods. The pods' halves are looked at in those whose namespaces are known.
func (a *Agent) plug(p *plan, holding *leg.Holding, networks []leg.Network) error {
	var errs []error
	for _, pp := range p.pods {
		err := a.reach(pp, holding, networks)
		switch {
		case err == nil:
			pp.plugged = true
		case pp.err != nil && errors.Is(err, pp.err):
			// The sidecar was not reached. A way that an earlier agent made stands all the same.
			if !pp.plugged {
				pp.fail(err)
			}
		case errors.Is(err, errNoPodIP), errors.Is(err, leg.ErrNoWay):
			pp.fail(err) // the pod is being made: the status says so, and that is enough
		default:
			pp.fail(err)
			errs = append(errs, fmt.Errorf("pod %s/%s: %w", pp.grant.Pod.Namespace, pp.grant.Pod.Name, err))
		}
	}
	return errors.Join(append(errs, p.awaitRaised())...)
}

// awaitRaised waits for the new legs of this round, for all of them together: one after the other, the legs of many VMs that
// start at once could keep everybody waiting for a minute.
func (p *plan) awaitRaised() error {
	var pods []*os.File
	for _, pp := range p.pods {
		if !pp.raised {
			continue
		}
		if ns, err := pp.session.duplicate(); err == nil {
			defer ns.Close()
			pods = append(pods, ns)
		}
	}
	return leg.AwaitPods(pods)
}

// fail keeps what was answered for before: a passing error of this round breaks nothing that works.
func (pp *podPlan) fail(err error) {
	pp.failed = err
	for a := range pp.answered {
		pp.answered[a] = pp.answered[a] && pp.already[a]
	}
}

func (a *Agent) plugPod(pp *podPlan, holding *leg.Holding, ns *os.File) error {
	uid := pp.grant.Pod.UID
	if pp.hops() {
		report, err := leg.ApplyPod(ns, a.Sysctls, leg.Pod{UID: uid, Addresses: pp.grant.Addresses, NoLeg: true})
		a.logChanges("pod "+pp.grant.Pod.Namespace+"/"+pp.grant.Pod.Name, report)
		return err
	}
	made, err := a.kernel.Plug(holding, uid, ns)
	if err != nil {
		return err
	}
	if made {
		a.Log.Info("plugged a leg", "pod", pp.grant.Pod.Namespace+"/"+pp.grant.Pod.Name, "link", leg.PortName(uid))
	}
	report, err := leg.ApplyPod(ns, a.Sysctls, leg.Pod{UID: uid, Addresses: pp.grant.Addresses, MTU: pp.mtu})
	pp.raised = report.Raised
	if len(report.Changes) > 0 {
		err = errors.Join(err, pp.session.forgetEarly(ns, pp.grant.NAT))
	}
	a.logChanges("pod "+pp.grant.Pod.Namespace+"/"+pp.grant.Pod.Name, report)
	return err
}

// config is the plan in the words of package leg.
func (p plan) config(d Decision, cluster []netip.Prefix) leg.Config {
	c := leg.Config{Networks: d.Networks, ClusterNetworks: p.clusterNetworks(cluster)}
	for _, pp := range p.pods {
		if pp.mode == Left && !pp.onNode() {
			c.Left = append(c.Left, pp.grant.Addresses...)
		}
		if pp.hops() {
			c.Hops = append(c.Hops, pp.hopList()...)
			continue
		}
		l := leg.Leg{
			Pod: pp.grant.Pod.UID, Addresses: pp.grant.Addresses, Staged: pp.mode == Staged, Left: pp.mode == Left,
		}
		for _, a := range pp.grant.Addresses {
			if !pp.answered[a] {
				l.Silent = append(l.Silent, a)
			}
			if !pp.usable[a] {
				l.Idle = append(l.Idle, a)
			}
		}
		c.Legs = append(c.Legs, l)
	}
	return c
}

// clear tells those who wait for it that nothing is led to pods any more whose guests have left, unless the kernel refused that.
func (p plan) clear(refused error) {
	for _, pp := range p.pods {
		if pp.mode == Left && refused == nil {
			pp.session.journey.clear()
		}
	}
}

// hopList are the CNI's ways to the pod in use.
func (pp *podPlan) hopList() (hops []leg.Hop) {
	for _, a := range pp.grant.Addresses {
		if hop, found := pp.ways[a]; found && pp.inUse(a) {
			hop.Staged, hop.Silent = pp.mode == Staged, !pp.answered[a]
			hops = append(hops, hop)
		}
	}
	return hops
}

// clusterNetworks are those of the agent and of all descriptions, sorted.
func (p plan) clusterNetworks(own []netip.Prefix) (list []netip.Prefix) {
	networks := map[netip.Prefix]bool{}
	for _, n := range own {
		networks[n] = true
	}
	for _, pp := range p.pods {
		for _, n := range pp.grant.NAT.ClusterNetworks {
			networks[n] = true
		}
	}
	for n := range networks {
		list = append(list, n)
	}
	slices.SortFunc(list, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return list
}

// audible lists by NIC what shall be answered for, and what shall only be tested and watched. The NICs of addresses that
// may come are there with nothing.
func (p plan) audible() map[string]audible {
	byNIC := map[string]audible{}
	for _, pp := range p.pods {
		for _, a := range sortedAddresses(pp.answered) {
			on := byNIC[pp.nics[a]]
			switch {
			case pp.answered[a] && pp.plugged:
				on.answered = append(on.answered, a)
			case pp.mode == Left || pp.grant.Provisional:
				continue
			case pp.mode == Active && (!pp.usable[a] || pp.standing[a].State != ""):
				// What need not be tested is left out until it is answered for.
				on.tested = append(on.tested, a)
			}
			byNIC[pp.nics[a]] = on
		}
	}
	return byNIC
}

// report tells the API server's side what came out. applied is the error of the node's kernel.
func (a *Agent) report(v View, d Decision, p plan, applied error) Report {
	r := Report{
		Statuses: map[netip.Addr]Status{}, Pools: map[string]bool{}, Own: d.Own, Agent: a.exchange.describe(floatip.NodeAgent{MACs: d.MACs}),
	}
	for _, pp := range p.pods {
		failed := pp.failed
		if failed == nil {
			failed = applied
		}
		if failed == nil && !pp.plugged {
			failed = leg.ErrNotPlugged
		}
		for _, address := range pp.grant.Addresses {
			nic := pp.nics[address]
			r.Statuses[address] = Status{
				Pod: pp.grant.Pod.Name, Here: pp.mode == Active, To: pp.grant.To, Move: pp.session.journey.lastMove(),
				Resuming: pp.already[address] && !pp.onNode() && errors.Is(pp.err, errNotReached),
				NATReady: pp.natCondition(address, failed),
				LegReady: pp.wayCondition(failed),
				Announced: announcedCondition(pp.answered[address] && failed == nil,
					!a.responders.standing(nic, address).Announced.IsZero(), nic),
				ConflictFree: conflictCondition(address, pp.usable[address], a.responders.standing(nic, address), nic),
				GuestUp:      pp.guestCondition(address),
			}
		}
	}
	for pool, err := range d.Carries {
		r.Pools[pool] = err == nil
	}
	r.Left = left(v, a.Name, r.Statuses)
	return r
}

// conflicts counts the addresses that somebody else has or claims.
func (p plan) conflicts() map[announce.State]int {
	counts := map[announce.State]int{}
	for _, pp := range p.pods {
		for _, s := range pp.standing {
			counts[s.State]++
		}
	}
	return counts
}

// traffic lists what the sidecars count, and the node where it translates.
func (p plan) traffic(translated []handover.Counter) []traffic {
	var list []traffic
	for _, pp := range p.pods {
		counters := pp.state.Counters
		if pp.onNode() {
			counters = translated
		}
		for _, c := range counters {
			if pp.nics[c.Floating] != "" { // each pod has its own addresses only
				list = append(list, traffic{pp.grant.Pod.Namespace + "/" + pp.grant.Pod.Name, c})
			}
		}
	}
	return list
}
