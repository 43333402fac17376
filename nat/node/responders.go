package node

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"floatip.io/floatip/nat/node/announce"
)

// responders holds one announce.Responder per provider NIC that is in use.
type responders struct {
	netns *os.File
	log   *slog.Logger
	wake  func()
	byNIC map[string]*running
	group sync.WaitGroup
}

type running struct {
	*announce.Responder
	addresses []netip.Addr
	cancel    context.CancelFunc
}

func newResponders(netns *os.File, log *slog.Logger, wake func()) *responders {
	return &responders{netns: netns, log: log, wake: wake, byNIC: map[string]*running{}}
}

// keep stops answering for whatever is not in addresses. It adds nothing.
func (r *responders) keep(addresses map[string][]netip.Addr) {
	for nic, one := range r.byNIC {
		kept := slices.DeleteFunc(slices.Clone(one.addresses), func(a netip.Addr) bool {
			return !slices.Contains(addresses[nic], a)
		})
		one.set(kept)
	}
}

// set answers for exactly the addresses, starting and stopping responders as it takes.
func (r *responders) set(ctx context.Context, addresses map[string][]netip.Addr) {
	for nic, one := range r.byNIC {
		if len(addresses[nic]) == 0 {
			one.set(nil)
			one.cancel()
			delete(r.byNIC, nic)
		}
	}
	for nic, list := range addresses {
		if len(list) == 0 {
			continue
		}
		if r.byNIC[nic] == nil {
			r.start(ctx, nic)
		}
		r.byNIC[nic].set(list)
	}
}

func (r *responders) start(ctx context.Context, nic string) {
	ctx, cancel := context.WithCancel(ctx)
	one := &running{cancel: cancel, Responder: &announce.Responder{
		NIC: nic, NetNS: r.netns, Log: r.log,
		First: func(a netip.Addr) {
			r.log.Info("announced", "address", a, "interface", nic)
			r.wake()
		},
		Conflict: conflictLog(r.log),
	}}
	r.byNIC[nic] = one
	r.group.Go(func() {
		if err := one.Run(ctx); err != nil {
			r.log.Error("no ARP on this interface", "interface", nic, "error", err)
		}
	})
}

// conflictEvery is DEFEND_INTERVAL of RFC 5227 section 1.1: who claims an address all the time shall not fill the log.
const conflictEvery = 10 * time.Second

// conflictLog returns a function for one goroutine.
func conflictLog(log *slog.Logger) func(announce.Conflict) {
	last := map[netip.Addr]time.Time{}
	return func(c announce.Conflict) {
		if now := time.Now(); now.Sub(last[c.Address]) >= conflictEvery {
			last[c.Address] = now
			log.Warn("somebody else claims the address", "address", c.Address, "interface", c.NIC, "mac", c.MAC.String())
		}
	}
}

func (o *running) set(addresses []netip.Addr) {
	o.addresses = addresses
	o.Set(addresses)
}

func (r *responders) announced(nic string, a netip.Addr) bool {
	one := r.byNIC[nic]
	return one != nil && one.Announced(a)
}

// stop ends all responders and waits for them. The kernel's proxy entries go on.
func (r *responders) stop() {
	for _, one := range r.byNIC {
		one.cancel()
	}
	r.group.Wait()
}

func (r *responders) figures() map[string]announce.Figures {
	all := map[string]announce.Figures{}
	for nic, one := range r.byNIC {
		all[nic] = one.Figures()
	}
	return all
}
