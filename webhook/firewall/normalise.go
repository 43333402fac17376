package firewall

import (
	"fmt"
	"net/netip"
	"slices"

	"floatip.io/floatip"
)

// maxInput bounds what normalise looks at, since its time grows with the square: 4096 nested entries, the worst, took
// 0.1 s on one core.
const maxInput = 4096

// everything covers every packet of both families.
func everything() []floatip.Entry {
	return []floatip.Entry{anyFrom("0.0.0.0/0"), anyFrom("::/0")}
}

func anyFrom(network string) floatip.Entry {
	return floatip.Entry{
		Addresses: floatip.RangeOf(netip.MustParsePrefix(network)),
		Protocol:  floatip.ProtocolAny,
		Ports:     floatip.AllPorts(),
	}
}

// newAdmitted returns list, which is normal, as part of a floatip.Firewall.
func newAdmitted(list []floatip.Entry) floatip.Admitted {
	if slices.Equal(list, everything()) {
		return floatip.Admitted{Everything: true}
	}
	return floatip.Admitted{Entries: list}
}

// normalise returns the normal form of list: sorted, disjoint entries that cover the same packets. Lists that cover the
// same have the same normal form, so that the order of policies or of their rules never changes what is loaded. It
// returns errTooMany for a list that has more than fits.
func normalise(list []floatip.Entry) ([]floatip.Entry, error) {
	list = slices.Clone(list)
	slices.SortFunc(list, floatip.CompareEntries)
	list = slices.Compact(list)
	if len(list) > maxInput {
		return nil, fmt.Errorf("%w: %d, at most %d can be combined", errTooMany, len(list), maxInput)
	}
	v4 := floatip.Admitted{Entries: list}.Family(true)
	var out []floatip.Entry
	for _, family := range [][]floatip.Entry{v4, list[len(v4):]} {
		normal, fits := normaliseFamily(family)
		out = append(out, normal...)
		if !fits || len(out) > floatip.MaxFirewallEntries {
			return nil, fmt.Errorf("%w: more than the %d entries that fit into a pod", errTooMany, floatip.MaxFirewallEntries)
		}
	}
	slices.SortFunc(out, floatip.CompareEntries)
	return out, nil
}

// intersect returns the normal form of what both lists cover. It returns errTooMany as normalise does.
func intersect(a, b []floatip.Entry) ([]floatip.Entry, error) {
	a, err := normalise(a)
	if err != nil {
		return nil, err
	}
	b, err = normalise(b)
	if err != nil {
		return nil, err
	}
	var both []floatip.Entry
	for _, x := range a {
		for _, y := range b {
			if x.Overlaps(y) {
				both = append(both, common(x, y))
			}
		}
		if len(both) > maxInput {
			return nil, fmt.Errorf("%w: more than %d combinations", errTooMany, maxInput)
		}
	}
	return normalise(both)
}

// common returns what two entries that overlap have in common.
func common(x, y floatip.Entry) floatip.Entry {
	return floatip.Entry{
		Addresses: floatip.AddressRange{
			First: larger(x.Addresses.First, y.Addresses.First),
			Last:  smaller(x.Addresses.Last, y.Addresses.Last),
		},
		// ProtocolAny is 0, and where both name a protocol they name the same.
		Protocol: max(x.Protocol, y.Protocol),
		Ports: floatip.PortRange{
			First: max(x.Ports.First, y.Ports.First),
			Last:  min(x.Ports.Last, y.Ports.Last),
		},
	}
}

func larger(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return b
	}
	return a
}

func smaller(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return a
	}
	return b
}

// normaliseFamily works on the entries of one family, drawn as rectangles of addresses and ports. Addresses with
// everything admitted are taken out first: they need one entry each, while next to a list of ports they would need one
// for each protocol. Every protocol is then cut into strips by address and into strips by port, and the cut with fewer
// pieces is taken. One network with many ports asks for the first, one port with many networks for the second.
//
// A family that needs more than floatip.MaxFirewallEntries for one protocol does not fit.
func normaliseFamily(list []floatip.Entry) (out []floatip.Entry, fits bool) {
	grid := newGrid(list)
	byProtocol := map[floatip.Protocol][]rect{}
	for _, e := range list {
		byProtocol[e.Protocol] = append(byProtocol[e.Protocol], grid.rect(e))
	}
	open := byProtocol[floatip.ProtocolAny]
	for protocol, rects := range byProtocol {
		var holes []rect
		if protocol != floatip.ProtocolAny {
			holes = open
		}
		cut, fits := fewest(rects, holes)
		if !fits {
			return nil, false
		}
		for _, r := range cut {
			out = append(out, grid.entry(r, protocol))
		}
	}
	return out, true
}

// fewest returns the shorter one of the two cuts.
func fewest(rects, holes []rect) (out []rect, fits bool) {
	byAddress, addressFits := strips(rects, holes)
	byPort, portFits := strips(transposed(rects), transposed(holes))
	if !addressFits || portFits && len(byPort) < len(byAddress) {
		return transposed(byPort), portFits
	}
	return byAddress, addressFits
}

// grid numbers the addresses and ports at which an entry of a family starts, or the one after its end: between two
// neighbours nothing changes.
type grid struct {
	addresses []netip.Addr
	ports     []int
	last      netip.Addr // of the family
}

func newGrid(list []floatip.Entry) grid {
	var g grid
	for _, e := range list {
		g.addresses = append(g.addresses, e.Addresses.First)
		if next := e.Addresses.Last.Next(); next.IsValid() {
			g.addresses = append(g.addresses, next)
		} else {
			g.last = e.Addresses.Last
		}
		g.ports = append(g.ports, int(e.Ports.First), int(e.Ports.Last)+1)
	}
	slices.SortFunc(g.addresses, netip.Addr.Compare)
	g.addresses = slices.Compact(g.addresses)
	slices.Sort(g.ports)
	g.ports = slices.Compact(g.ports)
	return g
}

// rect returns the cells of the grid that e covers. A range up to the last address of the family ends behind the grid.
func (g grid) rect(e floatip.Entry) rect {
	first, _ := slices.BinarySearchFunc(g.addresses, e.Addresses.First, netip.Addr.Compare)
	end := len(g.addresses)
	if next := e.Addresses.Last.Next(); next.IsValid() {
		end, _ = slices.BinarySearchFunc(g.addresses, next, netip.Addr.Compare)
	}
	low, _ := slices.BinarySearch(g.ports, int(e.Ports.First))
	high, _ := slices.BinarySearch(g.ports, int(e.Ports.Last)+1)
	return rect{x: span{first, end}, y: span{low, high}}
}

// entry is the reverse of rect.
func (g grid) entry(r rect, protocol floatip.Protocol) floatip.Entry {
	last := g.last
	if r.x.end < len(g.addresses) {
		last = g.addresses[r.x.end].Prev()
	}
	return floatip.Entry{
		Addresses: floatip.AddressRange{First: g.addresses[r.x.start], Last: last},
		Protocol:  protocol,
		Ports:     floatip.PortRange{First: uint16(g.ports[r.y.start]), Last: uint16(g.ports[r.y.end] - 1)},
	}
}
