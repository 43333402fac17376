package nat

import (
	"net/netip"
	"slices"
)

// span is the addresses from first to last, both included.
type span struct{ first, last netip.Addr }

// spans turns networks of one family into the fewest spans that cover the same addresses, in ascending order. The
// kernel refuses overlapping intervals in a set.
func spans(networks []netip.Prefix) []span {
	var all []span
	for _, n := range networks {
		all = append(all, span{n.Masked().Addr(), lastAddr(n)})
	}
	slices.SortFunc(all, func(a, b span) int { return a.first.Compare(b.first) })
	var out []span
	for _, s := range all {
		n := len(out)
		if n > 0 && touches(out[n-1].last, s.first) {
			if out[n-1].last.Less(s.last) {
				out[n-1].last = s.last
			}
			continue
		}
		out = append(out, s)
	}
	return out
}

// touches reports whether a span that starts at first overlaps or continues one that ends at last and starts before.
func touches(last, first netip.Addr) bool {
	return first.Compare(last) <= 0 || last.Next() == first
}

func lastAddr(p netip.Prefix) netip.Addr {
	raw := p.Addr().AsSlice()
	for bit := p.Bits(); bit < 8*len(raw); bit++ {
		raw[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(raw)
	return last
}

// Intervals returns the interval elements of networks. The span that ends with the last address of the family has no
// end element, as nft writes it.
func Intervals(networks []netip.Prefix) (out []Element) {
	for _, s := range spans(networks) {
		out = append(out, Element{Key: string(s.first.AsSlice())})
		if next := s.last.Next(); next.IsValid() {
			out = append(out, Element{Key: string(next.AsSlice()), End: true})
		}
	}
	return out
}
