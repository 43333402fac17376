package node

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"floatip.io/floatip/nat/node/announce"
)

// responders holds one announce.Responder per provider NIC that is in use.
//
// What is answered for comes from two sides: the loop sets all of it, once per round, and a move changes one address at
// once, while a round may be under way that was planned before. Such a change holds until a round that knows of it.
type responders struct {
	netns *os.File
	log   *slog.Logger
	wake  func()
	group sync.WaitGroup
	// foreign counts claims to one of the addresses by somebody who is no node that it migrates to.
	foreign atomic.Uint64

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

type running struct {
	*announce.Responder
	cancel context.CancelFunc
}

func newResponders(netns *os.File, log *slog.Logger, wake func()) *responders {
	return &responders{
		netns: netns, log: log, wake: wake, byNIC: map[string]*running{}, changes: map[netip.Addr]override{},
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

// keep stops answering for whatever is not in addresses. It adds nothing.
func (r *responders) keep(addresses map[string][]netip.Addr, seen uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	addresses = r.apply(addresses, seen)
	for nic, one := range r.byNIC {
		one.Set(slices.DeleteFunc(one.Addresses(), func(a netip.Addr) bool { return !slices.Contains(addresses[nic], a) }))
	}
}

// set answers for exactly the addresses. A NIC with an empty list is made ready for addresses to come, so that an
// arrival need not wait for a socket.
func (r *responders) set(ctx context.Context, addresses map[string][]netip.Addr, leaving map[netip.Addr]leaving, seen uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaving = leaving
	addresses = r.apply(addresses, seen)
	for nic, one := range r.byNIC {
		if _, used := addresses[nic]; !used {
			one.Set(nil)
			one.cancel()
			delete(r.byNIC, nic)
		}
	}
	for nic, list := range addresses {
		r.at(ctx, nic).Set(list)
	}
}

// apply returns addresses with the changes that the plan does not know of, and forgets the others.
func (r *responders) apply(addresses map[string][]netip.Addr, seen uint64) map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	for nic, list := range addresses {
		out[nic] = slices.DeleteFunc(slices.Clone(list), func(a netip.Addr) bool { return r.changes[a].counter > seen })
	}
	for a, change := range r.changes {
		if change.counter <= seen {
			delete(r.changes, a)
		} else if change.nic != "" {
			out[change.nic] = append(out[change.nic], a)
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
	one := &running{cancel: cancel, Responder: &announce.Responder{
		NIC: nic, NetNS: r.netns, Log: r.log,
		First: func(a netip.Addr) {
			r.log.Info("announced", "address", a, "interface", nic)
			r.wake()
		},
		Conflict: r.conflicts(),
	}}
	r.byNIC[nic] = one
	r.group.Go(func() {
		if err := one.Run(ctx); err != nil {
			r.log.Error("no ARP on this interface", "interface", nic, "error", err)
		}
	})
	return one
}

// conflictEvery is DEFEND_INTERVAL of RFC 5227 section 1.1: who claims an address all the time shall not fill the log.
const conflictEvery = 10 * time.Second

// conflicts returns what one responder calls, on its goroutine, when somebody else claims an address. The node that the
// address migrates to may: its claim is the first that is heard of the guest's arrival there.
func (r *responders) conflicts() func(announce.Conflict) {
	last := map[netip.Addr]time.Time{}
	return func(c announce.Conflict) {
		r.mu.Lock()
		l, moves := r.leaving[c.Address]
		r.mu.Unlock()
		if moves && slices.Contains(l.macs, c.MAC.String()) {
			l.yielded()
			r.yield(c.Address)
			r.wake()
			return
		}
		r.foreign.Add(1)
		if now := time.Now(); now.Sub(last[c.Address]) >= conflictEvery {
			last[c.Address] = now
			r.log.Warn("somebody else claims the address", "address", c.Address, "interface", c.NIC, "mac", c.MAC.String())
		}
	}
}

func (r *responders) announced(nic string, a netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.byNIC[nic]
	return one != nil && one.Announced(a)
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

func (r *responders) figures() map[string]announce.Figures {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[string]announce.Figures{}
	for nic, one := range r.byNIC {
		all[nic] = one.Figures()
	}
	return all
}
