package node

import (
	"errors"
	"sync/atomic"

	"floatip.io/floatip/nat/node/fastpath"
	"floatip.io/floatip/nat/node/leg"
)

// fast is the agent's fast path. Where it cannot be, packets take the ordinary way, and nothing else is missing.
type fast struct {
	node *fastpath.Node
	// never is why there is none as long as this agent works: it was told so, or the kernel has not the means.
	never error
	// off is why there is none in this round.
	off error
	// applied is the Config that stands, nil or an empty one for none. Unlike those before it is for every goroutine.
	applied atomic.Pointer[leg.Config]
	// waiting: a round has left what new addresses need to the next one.
	waiting atomic.Bool
}

var errFastPathOff = errors.New("switched off by --fast-path=false")

func newFast(o Options) *fast {
	f := &fast{node: fastpath.Open(o.NetNS, o.Sysctls)}
	if o.NoFastPath {
		f.never = errFastPathOff
	}
	return f
}

// decide looks once in a round whether the fast path is allowed.
func (f *fast) decide() {
	if f.off = f.never; f.off == nil {
		f.off = f.node.Allowed()
	}
}

// wanted is c where the fast path is allowed, and nothing where it is not.
func (f *fast) wanted(c leg.Config) leg.Config {
	if f.off != nil {
		return leg.Config{}
	}
	return c
}

// withdraw comes before the routes change, apply when the addresses are announced.
func (f *fast) withdraw(c leg.Config, h leg.Holding) (leg.Report, error) {
	f.decide()
	return f.node.Withdraw(f.wanted(c), h.Links)
}

// postpone reports whether apply is left to the next round, after one that has changed the node: guests of new addresses are
// about to answer for the first time, and apply keeps the kernel busy for longer than that takes. It is if c only adds to what
// stands; what is to leave the fast path does not wait. No two rounds in a row leave it, or a node where something changes all
// the time would never have one.
func (f *fast) postpone(c leg.Config) bool {
	applied := f.applied.Load() // nil: nobody knows what stands
	later := !f.waiting.Load() && applied != nil && fastpath.Extends(f.wanted(c), *applied)
	f.waiting.Store(later)
	return later
}

func (f *fast) apply(c leg.Config, h leg.Holding) (leg.Report, error) {
	wanted := f.wanted(c)
	report, err := f.node.Apply(wanted, h.Links)
	if err != nil {
		wanted = leg.Config{}
	}
	f.applied.Store(&wanted)
	f.waiting.Store(false)
	if errors.Is(err, fastpath.ErrNotSupported) {
		f.never, f.off, err = err, err, nil
	}
	return report, err
}

// adopt puts connections that came along with a guest on the fast path where the node forwards them, and returns the rest.
func (f *fast) adopt(moved []fastpath.Connection) ([]fastpath.Connection, error) {
	if c := f.applied.Load(); c != nil && len(c.Legs) > 0 {
		return f.node.Adopt(*c, moved)
	}
	return moved, nil
}
