package node

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"

	"floatip.io/floatip/nat/node/announce"
)

// responders holds one announce.Responder per provider NIC that is in use.
//
// What is answered for comes from two sides: the loop sets all of it, once per round, and a move changes one address at
// once, while a round may be under way that was planned before. Such a change holds until a round that knows of it.
type responders struct {
	netns  *os.File
	log    *slog.Logger
	self   string
	timing announce.Timing
	wake   func()
	peers  peers
	group  sync.WaitGroup

	mu      sync.Mutex // guards what follows
	byNIC   map[string]*running
	changes map[netip.Addr]override
	counter uint64
	// leaving are the addresses that migrate away from here.
	leaving map[netip.Addr]leaving
}

// override is a change that a move made.
type override struct {
	nic     string // answered for there, or nowhere if ""
	counter uint64
}

// leaving says who may take an address over.
type leaving struct {
	macs []string // of the node that it migrates to
	// yielded is called once it has done so, before it is dropped.
	yielded func()
}

// audible is what one NIC is to be looked after for.
type audible struct {
	answered []netip.Addr
	// tested are to be tested and watched, and not answered for.
	tested []netip.Addr
}

type running struct {
	*announce.Responder
	cancel context.CancelFunc
}

func newResponders(o Options, wake func()) *responders {
	return &responders{
		netns: o.NetNS, log: o.Log, self: o.Name, timing: o.Timing, wake: wake,
		byNIC: map[string]*running{}, changes: map[netip.Addr]override{},
	}
}

// seen returns a mark for a plan that is about to be made: changes from before are those that it knows of.
func (r *responders) seen() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counter
}

// resume answers for what an earlier agent has announced.
func (r *responders) resume(ctx context.Context, addresses map[string][]netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for nic, list := range addresses {
		r.at(ctx, nic).Resume(list)
	}
}

// keep stops answering for whatever shall not be answered for. It adds nothing.
func (r *responders) keep(byNIC map[string]audible, seen uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	byNIC = r.apply(byNIC, seen)
	for nic, one := range r.byNIC {
		answered, tested := one.Addresses()
		both := setOf(byNIC[nic].tested)
		for _, a := range answered {
			if both[a] {
				tested = append(tested, a)
			}
		}
		wanted := setOf(byNIC[nic].answered)
		one.Set(slices.DeleteFunc(answered, func(a netip.Addr) bool { return !wanted[a] }), tested)
	}
}

func setOf(list []netip.Addr) map[netip.Addr]bool {
	set := make(map[netip.Addr]bool, len(list))
	for _, a := range list {
		set[a] = true
	}
	return set
}

// set answers for and tests exactly what byNIC says. A NIC with nothing is made ready for addresses to come, so that an
// arrival need not wait for a socket.
func (r *responders) set(ctx context.Context, byNIC map[string]audible, leaving map[netip.Addr]leaving, seen uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaving = leaving
	byNIC = r.apply(byNIC, seen)
	for nic, one := range r.byNIC {
		if _, used := byNIC[nic]; !used {
			one.Set(nil, nil)
			one.cancel()
			delete(r.byNIC, nic)
		}
	}
	for nic, on := range byNIC {
		r.at(ctx, nic).Set(on.answered, on.tested)
	}
}

// apply returns byNIC with the changes that the plan does not know of, and forgets the others.
func (r *responders) apply(byNIC map[string]audible, seen uint64) map[string]audible {
	out := map[string]audible{}
	changed := func(a netip.Addr) bool { return r.changes[a].counter > seen }
	for nic, on := range byNIC {
		out[nic] = audible{
			answered: slices.DeleteFunc(slices.Clone(on.answered), changed),
			tested:   slices.DeleteFunc(slices.Clone(on.tested), changed),
		}
	}
	for a, change := range r.changes {
		if change.counter <= seen {
			delete(r.changes, a)
		} else if change.nic != "" {
			on := out[change.nic]
			on.answered = append(on.answered, a)
			out[change.nic] = on
		}
	}
	return out
}

// take answers for addresses, by NIC, that have moved here. The NICs must have been set before.
func (r *responders) take(addresses map[netip.Addr]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counter++
	for a, nic := range addresses {
		if one := r.byNIC[nic]; one != nil {
			r.changes[a] = override{nic, r.counter}
			one.Add(a)
		}
	}
}

// yield stops answering for addresses that have moved away.
func (r *responders) yield(addresses ...netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counter++
	for _, a := range addresses {
		r.changes[a] = override{"", r.counter}
		for _, one := range r.byNIC {
			one.Drop(a)
		}
	}
}

// at returns the responder of the NIC, started if need be.
func (r *responders) at(ctx context.Context, nic string) *running {
	if one := r.byNIC[nic]; one != nil {
		return one
	}
	ctx, cancel := context.WithCancel(ctx)
	one := &running{cancel: cancel, Responder: announce.NewResponder(announce.Responder{
		NIC: nic, NetNS: r.netns, Log: r.log, Timing: r.timing, Peer: r.peers.lookup, Moved: r.moved,
		Changed: func(a netip.Addr, s announce.Standing) {
			r.tell(nic, a, s)
			r.wake()
		},
	})}
	r.byNIC[nic] = one
	r.group.Go(func() {
		if err := one.Run(ctx); err != nil {
			r.log.Error("no ARP and no neighbour discovery on this interface", "interface", nic, "error", err)
		}
	})
	return one
}

// moved takes in that another node announces an address. The node that the address migrates to takes it over: that is
// the first that is heard of the guest's arrival there. What any other node says is not fought.
func (r *responders) moved(m announce.Move) {
	if m.Node == r.self {
		return // another NIC of this node on the same network
	}
	r.mu.Lock()
	l, moves := r.leaving[m.Address]
	r.mu.Unlock()
	if moves && slices.Contains(l.macs, m.MAC.String()) {
		l.yielded()
		r.yield(m.Address)
		r.wake()
		return
	}
	r.log.Debug("another node announces the address", "address", m.Address, "interface", m.NIC, "node", m.Node, "mac",
		m.MAC.String())
}

// tell logs what became of an address on the LAN.
func (r *responders) tell(nic string, a netip.Addr, s announce.Standing) {
	log := r.log.With("address", a, "interface", nic)
	switch s.State {
	case announce.Taken:
		log.Warn("another host has the address, it is not used", "mac", s.Rival.String())
	case announce.Contested:
		log.Warn("another host claims the address too, it is defended", "mac", s.Rival.String())
	case announce.Free:
		log.Info("no other host has the address")
	case announce.Held:
		log.Info("announced")
	}
}

// drop forgets what is known of an address on a NIC.
func (r *responders) drop(nic string, a netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if one := r.byNIC[nic]; one != nil {
		one.Drop(a)
	}
}

// standing returns where an address stands on a NIC, the zero Standing where it is not looked after.
func (r *responders) standing(nic string, a netip.Addr) announce.Standing {
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.byNIC[nic]
	if one == nil {
		return announce.Standing{}
	}
	s, _ := one.Standing(a)
	return s
}

// stop ends all responders and waits for them. The kernel's proxy entries go on.
func (r *responders) stop() {
	r.mu.Lock()
	for _, one := range r.byNIC {
		one.cancel()
	}
	r.mu.Unlock()
	r.group.Wait()
}

func (r *responders) figures() map[string]map[int]announce.Figures {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[string]map[int]announce.Figures{}
	for nic, one := range r.byNIC {
		all[nic] = one.Figures()
	}
	return all
}
