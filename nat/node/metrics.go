package node

import (
	"fmt"
	"io"
	"maps"
	"slices"

	"floatip.io/floatip/nat/handover"
	"floatip.io/floatip/nat/node/announce"
)

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
	family("floatip_agent_fast_path", "gauge", "1 if packets of established connections pass the node's routing by, 0 if they do not.")
	fmt.Fprintf(w, "floatip_agent_fast_path %d\n", map[bool]int{true: 1}[h.status.NoFastPath == ""])
	h.writeNeighbours(w, family)
	h.moves.write(w, family)
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

// writeNeighbours writes what was said and heard on the provider NICs.
func (h *health) writeNeighbours(w io.Writer, family func(name, kind, help string)) {
	for _, figure := range []struct {
		name, help string
		value      func(announce.Figures) uint64
	}{
		{"floatip_agent_answers_total", "ARP requests, neighbour solicitations and probes that were answered.",
			func(f announce.Figures) uint64 { return f.Answers }},
		{"floatip_agent_announcements_total", "Gratuitous announcements that were sent.",
			func(f announce.Figures) uint64 { return f.Announcements }},
		{"floatip_agent_probes_total", "Probes that were sent before a first use.",
			func(f announce.Figures) uint64 { return f.Probes }},
		{"floatip_agent_foreign_claims_total", "Packets in which another host claimed an address that is looked after here.",
			func(f announce.Figures) uint64 { return f.Claims }},
		{"floatip_agent_defences_total", "Announcements that were sent against such a claim.",
			func(f announce.Figures) uint64 { return f.Defences }},
	} {
		family(figure.name, "counter", figure.help)
		for _, nic := range slices.Sorted(maps.Keys(h.figures)) {
			for _, version := range []int{4, 6} {
				fmt.Fprintf(w, "%s{interface=%q,family=\"IPv%d\"} %d\n", figure.name, nic, version,
					figure.value(h.figures[nic][version]))
			}
		}
	}
	family("floatip_agent_conflicts", "gauge", "Addresses that another host has (taken), or claims while they are in use (contested).")
	fmt.Fprintf(w, "floatip_agent_conflicts{state=\"taken\"} %d\n", h.conflicts[announce.Taken])
	fmt.Fprintf(w, "floatip_agent_conflicts{state=\"contested\"} %d\n", h.conflicts[announce.Contested])
}
