package node

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
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
	figures   map[string]announce.Figures // by NIC
	addresses []traffic
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

func (h *health) observe(f map[string]announce.Figures, t []traffic) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.figures, h.addresses = f, t
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

// WriteMetrics writes the figures in the Prometheus text format.
func (a *Agent) WriteMetrics(w io.Writer) {
	h := &a.health
	h.mu.Lock()
	defer h.mu.Unlock()
	family := func(name, kind, help string) { fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	family("floatip_agent_rounds_total", "counter", "Reconciliations of the node.")
	fmt.Fprintf(w, "floatip_agent_rounds_total{result=\"ok\"} %d\n", h.rounds-h.failed)
	fmt.Fprintf(w, "floatip_agent_rounds_total{result=\"error\"} %d\n", h.failed)
	family("floatip_agent_round_seconds", "gauge", "Duration of the last reconciliation.")
	fmt.Fprintf(w, "floatip_agent_round_seconds %g\n", h.duration.Seconds())
	family("floatip_agent_pods", "gauge", "Pods of this node by what was decided about them.")
	fmt.Fprintf(w, "floatip_agent_pods{decision=\"granted\"} %d\n", h.granted)
	fmt.Fprintf(w, "floatip_agent_pods{decision=\"refused\"} %d\n", h.refused)
	family("floatip_agent_kernel_changes_total", "counter", "Changes of links, routes, rules and settings.")
	fmt.Fprintf(w, "floatip_agent_kernel_changes_total %d\n", h.changes)
	family("floatip_agent_arp_answers_total", "counter", "ARP requests and probes that were answered.")
	for _, nic := range slices.Sorted(maps.Keys(h.figures)) {
		fmt.Fprintf(w, "floatip_agent_arp_answers_total{interface=%q} %d\n", nic, h.figures[nic].Answers)
	}
	family("floatip_agent_announcements_total", "counter", "Gratuitous announcements that were sent.")
	for _, nic := range slices.Sorted(maps.Keys(h.figures)) {
		fmt.Fprintf(w, "floatip_agent_announcements_total{interface=%q} %d\n", nic, h.figures[nic].Announcements)
	}
	h.writeTraffic(w, family)
}

func (h *health) writeTraffic(w io.Writer, family func(name, kind, help string)) {
	for _, unit := range []struct {
		name, help string
		value      func(handover.Figure) uint64
	}{
		{"floatip_address_packets_total", "Packets of a floating address.", func(f handover.Figure) uint64 { return f.Packets }},
		{"floatip_address_bytes_total", "Bytes of a floating address.", func(f handover.Figure) uint64 { return f.Bytes }},
	} {
		family(unit.name, "counter", unit.help)
		for _, t := range h.addresses {
			for _, direction := range []struct {
				name   string
				figure handover.Figure
			}{{"in", t.counter.In}, {"out", t.counter.Out}, {"refused", t.counter.Refused}, {"guarded", t.counter.Guarded}} {
				fmt.Fprintf(w, "%s{address=%q,pod=%q,direction=%q} %d\n", unit.name, t.counter.Floating.String(), t.pod,
					direction.name, unit.value(direction.figure))
			}
		}
	}
}
