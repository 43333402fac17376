package node

import (
	"fmt"
	"io"
	"time"
)

// moveFigures count the guests that came here by live migration.
type moveFigures struct {
	byTrigger map[Trigger]uint64
	flows     [3]uint64 // written, refused, failed
	stalls    [len(stallBounds) + 1]uint64
	stallSum  float64
}

// stallBounds are the upper bounds of the buckets of stalls, in seconds. What is measured has a resolution of 10 ms; a
// guest that migrates well stands still for less than 300 ms, qemu's default limit.
var stallBounds = [...]float64{0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10}

var flowResults = [...]string{"written", "refused", "failed"}

// moved counts an arrival.
func (h *health) moved(t Trigger) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.moves.byTrigger == nil {
		h.moves.byTrigger = map[Trigger]uint64{}
	}
	h.moves.byTrigger[t]++
}

// stalled counts the stall of an arrival.
func (h *health) stalled(stall time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.moves.stallSum += stall.Seconds()
	for i, bound := range stallBounds {
		if stall.Seconds() <= bound {
			h.moves.stalls[i]++
			return
		}
	}
	h.moves.stalls[len(stallBounds)]++
}

// handedOver counts connections that were written, refused and failed.
func (h *health) handedOver(n [3]uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range n {
		h.moves.flows[i] += n[i]
	}
}

func (m *moveFigures) write(w io.Writer, family func(name, kind, help string)) {
	family("floatip_moves_total", "counter", "Guests that came to this node by live migration, by what told of it first.")
	for _, t := range []Trigger{FirstFrame, KubeVirt} {
		fmt.Fprintf(w, "floatip_moves_total{trigger=%q} %d\n", string(t), m.byTrigger[t])
	}
	family("floatip_move_connections_total", "counter", "Tracked connections of guests that came here, as the old node told.")
	for i, result := range flowResults {
		fmt.Fprintf(w, "floatip_move_connections_total{result=%q} %d\n", result, m.flows[i])
	}
	family("floatip_move_stall_seconds", "histogram", "From a guest's last frame on its old node to its first one here.")
	count := uint64(0)
	for i, bound := range stallBounds {
		count += m.stalls[i]
		fmt.Fprintf(w, "floatip_move_stall_seconds_bucket{le=\"%g\"} %d\n", bound, count)
	}
	count += m.stalls[len(stallBounds)]
	fmt.Fprintf(w, "floatip_move_stall_seconds_bucket{le=\"+Inf\"} %d\n", count)
	fmt.Fprintf(w, "floatip_move_stall_seconds_sum %g\nfloatip_move_stall_seconds_count %d\n", m.stallSum, count)
}
