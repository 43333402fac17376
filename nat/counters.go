package nat

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Figure counts packets and bytes, headers of the network layer included.
type Figure struct{ Packets, Bytes uint64 }

// Counter is the traffic of one floating address since its rules came, seen from the guest.
type Counter struct {
	Floating netip.Addr
	In       Figure // by the leg to the guest
	Out      Figure // by the leg out of the pod
	Refused  Figure // dropped by the port list or the firewall, in either direction
	Guarded  Figure // dropped because it would have left by the leg under another name
}

// Counters returns the figures of every floating address in the kernel, IPv4 first. They live as long as the pod and
// survive every rewriting of the rules. It fails like Read.
func (k *Kernel) Counters() (out []Counter, err error) {
	for _, id := range families {
		table := &nftables.Table{Name: TableName, Family: id}
		objects, err := k.counterObjects(table)
		if err != nil {
			return nil, fmt.Errorf("read counters of %s %s: %w", words(id).ip, TableName, explainRead(err))
		}
		slices.SortFunc(objects, func(a, b *nftables.NamedObj) int { return strings.Compare(a.Name, b.Name) })
		for _, o := range objects {
			out = addFigure(out, o)
		}
	}
	return out, nil
}

// addFigure puts the figure of one counter into the Counter of its address.
func addFigure(out []Counter, o *nftables.NamedObj) []Counter {
	kind, floating, ok := parseCounterName(o.Name)
	figures, isCounter := o.Obj.(*expr.Counter)
	if !ok || !isCounter {
		return out
	}
	i := slices.IndexFunc(out, func(c Counter) bool { return c.Floating == floating })
	if i < 0 {
		i, out = len(out), append(out, Counter{Floating: floating})
	}
	f := Figure{Packets: figures.Packets, Bytes: figures.Bytes}
	switch kind {
	case counterIn:
		out[i].In = f
	case counterOut:
		out[i].Out = f
	case counterRefused:
		out[i].Refused = f
	case counterGuarded:
		out[i].Guarded = f
	}
	return out
}

// parseCounterName is the inverse of counterName.
func parseCounterName(name string) (kind string, floating netip.Addr, ok bool) {
	for _, kind := range []string{counterIn, counterOut, counterRefused, counterGuarded} {
		text, found := strings.CutPrefix(name, kind)
		if !found {
			continue
		}
		floating, err := netip.ParseAddr(strings.ReplaceAll(text, "-", ":"))
		return kind, floating, err == nil
	}
	return "", netip.Addr{}, false
}

// Floating returns the addresses that t translates, by the names of its counters.
func (t Tables) Floating() (out []netip.Addr) {
	for _, table := range t {
		for _, name := range table.Counters {
			if kind, floating, ok := parseCounterName(name); ok && kind == counterIn {
				out = append(out, floating)
			}
		}
	}
	return out
}
