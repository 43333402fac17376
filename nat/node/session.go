package node

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"floatip.io/floatip"
	"floatip.io/floatip/nat"
	"floatip.io/floatip/nat/handover"
	"floatip.io/floatip/nat/node/appear"
	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/nat/node/unread"
)

// session keeps in touch with one sidecar, for as long as its pod is granted addresses.
type session struct {
	path    string
	watcher *appear.Watcher
	pauses  pauses
	hints   *rate.Limiter
	log     *slog.Logger
	wake    func()
	guests  *guests
	ctx     context.Context // until close
	cancel  context.CancelFunc
	done    chan struct{}
	journey journey
	last    lastGrant // of the rounds alone
	tasks   sync.WaitGroup

	mu    sync.Mutex // guards what follows
	netns *os.File   // nil until the sidecar was reached for the first time
	state handover.State
	err   error // why there is no connection now
	// recorder is nil before the guest is about to leave. recording says why there is none then.
	recorder  *unread.Recorder
	recording error

	// checked is when the pod's half of the leg was last compared with leg, and found or made right. The zero Time:
	// never, or not since the sidecar was reached anew.
	checked time.Time
	leg     string
	pinned  bool // the pod's bridge remembers when it last heard the guest
}

// newSession keeps what is known of a pod, whose sidecar's socket is at path. wake is called at each change that matters.
func newSession(ctx context.Context, path string, log *slog.Logger, wake func()) *session {
	ctx, cancel := context.WithCancel(ctx)
	return &session{
		path: path, hints: newHints(), log: log, wake: wake, guests: newGuests(log, wake),
		ctx: ctx, cancel: cancel, err: errNotReached,
	}
}

// start begins to look for the sidecar, when watcher says that it is worth to and after pauses.
func (s *session) start(watcher *appear.Watcher, p pauses) {
	s.watcher, s.pauses, s.done = watcher, p, make(chan struct{})
	go s.run(s.ctx)
}

var errNotReached = errors.New("the sidecar was not reached yet")

func (s *session) run(ctx context.Context) {
	defer close(s.done)
	for c := s.seek(ctx); c != nil; c = s.seek(ctx) {
		err := s.stay(ctx, c)
		c.Close()
		if ctx.Err() != nil {
			return
		}
		s.lost(err)
		select {
		case <-ctx.Done():
		case <-time.After(s.pauses.lost):
		}
	}
}

// stay lives as long as one connection.
func (s *session) stay(ctx context.Context, c *handover.Session) error {
	for {
		state, err := c.Next(ctx)
		if err != nil {
			return err
		}
		s.update(state)
	}
}

// accept takes the namespace. It is kept when the connection ends: a sidecar that restarts is no reason to lose the
// pod.
func (s *session) accept(c *handover.Session) error {
	fd, err := unix.FcntlInt(c.NetNS().Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if s.netns != nil {
		s.netns.Close()
	}
	s.netns, s.state, s.err, s.checked, s.pinned = os.NewFile(uintptr(fd), "netns"), c.State(), nil, time.Time{}, false
	s.mu.Unlock()
	s.wake()
	return nil
}

func (s *session) update(state handover.State) {
	s.mu.Lock()
	changed := !sameRules(s.state, state)
	s.state = state
	s.mu.Unlock()
	if changed {
		s.wake()
	}
}

// sameRules ignores counters and times: they move all the time and decide nothing.
func sameRules(a, b handover.State) bool {
	return a.Phase == b.Phase && a.Problem == b.Problem && slices.Equal(a.Bindings, b.Bindings)
}

// lost keeps the reason, and makes it known when there was a connection before, or when it is the first that is not
// just "not yet there". The attempts that follow fail for much the same reason.
func (s *session) lost(err error) {
	s.mu.Lock()
	was := s.err
	s.err = err
	s.mu.Unlock()
	waiting := func(err error) bool { return errors.Is(err, errNotReached) || errors.Is(err, fs.ErrNotExist) }
	if was == nil || waiting(was) && !waiting(err) {
		s.log.Info("no connection to the sidecar, trying again", "reason", err)
		s.wake()
	}
}

// forgetEarly has the pod's kernel forget what a guest sent while nothing led to its leg. A connection that KubeVirt's rules
// masquerade the kernel gives up by itself when its way is another one (nf_nat_oif_changed in net/netfilter/nf_nat_core.c). One
// that nobody translated, since KubeVirt's rules were flushed, would stay so for as long as the guest repeats itself, and the
// guard would drop it. So it is called when the way stands, not before. It takes a look at the node's whole hash table, 17 ms
// with 262144 buckets, which nobody has to wait for.
func (s *session) forgetEarly(ns *os.File, description floatip.PodNAT) error {
	own, err := duplicate(ns)
	if err != nil {
		return err
	}
	s.tasks.Go(func() {
		defer own.Close()
		if _, err := nat.ForgetFlows(nat.Config{NetNS: int(own.Fd())}, nat.Stale(nil, description)); err != nil {
			s.log.Warn("flows from before the leg are still tracked", "reason", err)
		}
	})
	return nil
}

// close ends the session and gives its namespace back.
func (s *session) close() {
	s.cancel()
	if s.done != nil {
		<-s.done
	}
	s.tasks.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.netns != nil {
		s.netns.Close()
		s.netns = nil
	}
}

// namespace returns the pod's namespace, nil before the sidecar was reached. It stays valid until close, or until the
// sidecar is reached anew, so it is used under inNamespace only.
func (s *session) inNamespace(f func(ns *os.File) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.netns == nil {
		return s.err
	}
	return f(s.netns)
}

// reached reports whether the pod's namespace is known.
func (s *session) reached() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.netns != nil
}

// isChecked reports whether the pod's half of the leg was right a short time ago. Nobody tells the agent what changes
// in a pod, so looking at all pods whenever one of them moves would only cost time.
func (s *session) isChecked(leg string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leg == leg && now.Sub(s.checked) < lookAgain
}

func (s *session) setChecked(leg string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leg, s.checked = leg, at
}

// pin has the pod's bridge remember when it last heard the guest, which has come up.
func (s *session) pin(g Grant) {
	err := s.inNamespace(func(ns *os.File) (err error) {
		if !s.pinned {
			s.pinned, err = leg.PinGuest(ns, g.NAT.Interface, g.MACs)
		}
		return err
	})
	if err != nil {
		s.log.Debug("remember when the guest is heard", "reason", err)
	}
}

// snapshot returns the latest state, and why there is no connection, nil if there is one.
func (s *session) snapshot() (handover.State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.err
}

// translates reports whether the rules for a stand in the pod.
func translates(state handover.State, a netip.Addr) bool {
	if state.Phase != handover.PhaseInstalled && state.Phase != handover.PhaseContested {
		return false
	}
	return slices.ContainsFunc(state.Bindings, func(b handover.Binding) bool { return b.Floating == a })
}
