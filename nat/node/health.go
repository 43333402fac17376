package node

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"floatip.io/floatip/nat/handover"
	"floatip.io/floatip/nat/node/announce"
)

// stuckAfter is the age of the last round that calls for a restart: several regular ones were missed.
const stuckAfter = 4 * lookAgain

// health is what others may ask about the loop.
type health struct {
	mu        sync.Mutex // guards what follows
	turned    time.Time  // when the loop last came round
	complete  bool       // a round without error with a complete View was made
	rounds    uint64
	failed    uint64
	duration  time.Duration // of the last round
	granted   int
	refused   int
	changes   uint64
	figures   map[string]map[int]announce.Figures // by NIC and family
	conflicts map[announce.State]int              // addresses that somebody else has or claims
	addresses []traffic
	status    NodeStatus
	moves     moveFigures
}

// traffic is what the sidecar counts for an address.
type traffic struct {
	pod     string
	counter handover.Counter
}

func (h *health) turn(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.turned = now
}

func (h *health) round(took time.Duration, d Decision, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rounds++
	h.duration, h.granted, h.refused = took, len(d.Grants), len(d.Refusals)
	if err != nil {
		h.failed++
	} else {
		h.complete = true
	}
}

func (h *health) changed(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.changes += uint64(n)
}

func (h *health) observe(f map[string]map[int]announce.Figures, conflicts map[announce.State]int, t []traffic) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.figures, h.conflicts, h.addresses = f, conflicts, t
}

// Healthy returns nil while the loop turns.
func (a *Agent) Healthy() error {
	a.health.mu.Lock()
	defer a.health.mu.Unlock()
	if a.health.turned.IsZero() {
		return errors.New("the agent has not begun")
	}
	if age := time.Since(a.health.turned); age > stuckAfter {
		return fmt.Errorf("the last round began %s ago", age.Round(time.Second))
	}
	return nil
}

// ReadyErr returns nil after the first round that put everything in place.
func (a *Agent) ReadyErr() error {
	a.health.mu.Lock()
	defer a.health.mu.Unlock()
	if !a.health.complete {
		return errors.New("no round without error was made yet")
	}
	return nil
}
