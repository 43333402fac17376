package node

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/leg"
)

const (
	// askFirst and askMost bound the pause between two looks for a guest that has not taken its address: it boots for
	// seconds, or has no use for the address at all. One look takes about 0.1 ms.
	askFirst = 200 * time.Millisecond
	askMost  = 2 * time.Second
)

// looking bounds how many look at a time, in all pods. A look keeps a thread in the kernel, and the runtime keeps every thread that
// it has made: two hundred guests that were looked for at the same moment had made fifty, of 20 KiB each.
var looking = make(chan struct{}, 2)

// guests knows which guests of one pod have taken their fixed addresses. What was seen once stays seen: a guest that
// reboots is still the holder.
type guests struct {
	look func(ns *os.File, bridge string, fixed netip.Addr) (bool, error) // leg.GuestAnswers, but in tests
	log  *slog.Logger
	wake func()

	mu     sync.Mutex // guards what follows
	seen   map[netip.Addr]bool
	asking map[netip.Addr]bool
}

func newGuests(log *slog.Logger, wake func()) *guests {
	return &guests{
		look: leg.GuestAnswers, log: log, wake: wake,
		seen: map[netip.Addr]bool{}, asking: map[netip.Addr]bool{},
	}
}

// answers reports whether the guest has been seen under its fixed address. If not, somebody looks for it from now on
// until ctx is done, and wakes the loop when it is there.
func (g *guests) answers(ctx context.Context, s *session, bridge string, fixed netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.seen[fixed] || g.asking[fixed] {
		return g.seen[fixed]
	}
	// The first look is at once: after a restart of the agent the guest is known already, and Ready stays Ready.
	if g.ask(s, bridge, fixed) {
		g.seen[fixed] = true
		return true
	}
	g.asking[fixed] = true
	g.await(ctx, s, bridge, fixed, askFirst)
	return false
}

// guestAnswers reports whether the guest has taken the fixed address behind a floating one. Nobody is asked before the
// pod was reached: the first look that can see anything is then the one that counts at once.
func (s *session) guestAnswers(nat floatip.PodNAT, floating netip.Addr) bool {
	fixed, bound := fixedOf(nat, floating)
	return bound && s.reached() && s.guests.answers(s.ctx, s, nat.Interface, fixed)
}

// await looks after a pause, and again and again. Between two looks there is a timer and no goroutine: on a node whose guests boot
// at the same moment their stacks would be much of what the agent keeps.
func (g *guests) await(ctx context.Context, s *session, bridge string, fixed netip.Addr, pause time.Duration) {
	time.AfterFunc(pause, func() {
		select {
		case <-ctx.Done():
			return
		case looking <- struct{}{}:
		}
		seen := g.ask(s, bridge, fixed)
		<-looking
		if !seen {
			g.await(ctx, s, bridge, fixed, min(pause+pause/4, askMost))
			return
		}
		g.mu.Lock()
		g.seen[fixed] = true
		g.mu.Unlock()
		g.wake()
	})
}

// ask looks once. A look that fails is one that has not found the guest.
func (g *guests) ask(s *session, bridge string, fixed netip.Addr) (there bool) {
	err := s.inNamespace(func(ns *os.File) (err error) {
		there, err = g.look(ns, bridge, fixed)
		return err
	})
	if err != nil {
		g.log.Debug("look for the guest", "fixed", fixed, "reason", err)
	}
	return there
}
