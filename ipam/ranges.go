package ipam

import (
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Range is the addresses from First to Last, both included, of one family.
type Range struct {
	First, Last netip.Addr
}

// String returns "192.0.2.1-192.0.2.9", or one address.
func (r Range) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

// Contains reports whether a lies in r.
func (r Range) Contains(a netip.Addr) bool {
	return r.First.BitLen() == a.BitLen() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

func single(a netip.Addr) Range { return Range{a, a} }

// size is the number of addresses in r; an IPv6 network has more than an int64 can count.
func (r Range) size() *big.Int {
	first := new(big.Int).SetBytes(r.First.AsSlice())
	last := new(big.Int).SetBytes(r.Last.AsSlice())
	last.Sub(last, first)
	return last.Add(last, big.NewInt(1))
}

// ParseRange reads a network ("192.0.2.0/24", whose host bits must be zero), a range ("192.0.2.1-192.0.2.9", blanks
// around the dash are fine) or one address. Addresses are read as ParseAddress does.
func ParseRange(text string) (Range, error) {
	r, _, err := parseRange(text)
	return r, err
}

// parseRange also returns the network if text is one.
func parseRange(text string) (Range, netip.Prefix, error) {
	if strings.Contains(text, "/") {
		network, err := ParseNetwork(text)
		if err != nil {
			return Range{}, netip.Prefix{}, err
		}
		return Range{network.Addr(), lastOf(network)}, network, nil
	}
	from, to, dashed := strings.Cut(text, "-")
	first, err := ParseAddress(strings.TrimRight(from, " "))
	if err != nil || !dashed {
		return single(first), netip.Prefix{}, err
	}
	last, err := ParseAddress(strings.TrimLeft(to, " "))
	switch {
	case err != nil:
		return Range{}, netip.Prefix{}, err
	case first.BitLen() != last.BitLen():
		return Range{}, netip.Prefix{}, fmt.Errorf("%s and %s are of two families", first, last)
	case last.Less(first):
		return Range{}, netip.Prefix{}, fmt.Errorf("the range runs backwards, write %q", Range{last, first})
	}
	return Range{first, last}, netip.Prefix{}, nil
}

// ParseNetwork reads a network in CIDR form. Host bits must be zero: "192.0.2.7/24" may mean the network or the host.
// An IPv4-mapped prefix is refused.
func ParseNetwork(text string) (netip.Prefix, error) {
	network, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not a network, write %s", text, networkHint(text))
	}
	if network.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is an IPv4-mapped network, write %s", text, networkHint(text))
	}
	if network != network.Masked() {
		return netip.Prefix{}, fmt.Errorf("%q has host bits set, write %q for the network", text, network.Masked())
	}
	if kind := unusable(lastOf(network)); kind != "" {
		return netip.Prefix{}, fmt.Errorf("%q reaches %s, a VM cannot hold it", text, kind)
	}
	if network.Bits() == 0 {
		return netip.Prefix{}, errors.New("the whole address space is no pool")
	}
	return network, nil
}

// networkHint says how to write what text probably means.
func networkHint(text string) string {
	address, bits, _ := strings.Cut(strings.Join(strings.Fields(text), ""), "/")
	address, _, _ = strings.Cut(address, "%")
	length, err := strconv.Atoi(bits) // which reads leading zeros
	if a, wrong := netip.ParseAddr(withoutLeadingZeros(address)); wrong == nil && err == nil {
		if a.Is4In6() {
			length -= 96
		}
		if network, err := a.Unmap().Prefix(length); err == nil {
			return strconv.Quote(network.String())
		}
	}
	return `"192.0.2.0/24" or "2001:db8::/64"`
}

// lastOf returns the highest address of network.
func lastOf(network netip.Prefix) netip.Addr {
	raw := network.Addr().AsSlice()
	for bit := network.Bits(); bit < len(raw)*8; bit++ {
		raw[bit/8] |= 1 << (7 - bit%8)
	}
	last, _ := netip.AddrFromSlice(raw)
	return last
}

// special are the addresses that no host on a provider network has, should a written range reach over them; unusable
// names them (RFC 6890).
var special = func() []Range {
	var ranges []Range
	for _, text := range []string{
		"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
		"::/127", "::ffff:0:0/96", "fe80::/10", "ff00::/8",
	} {
		network := netip.MustParsePrefix(text)
		ranges = append(ranges, Range{network.Addr(), lastOf(network)})
	}
	return ranges
}()

// neverHosts returns the addresses of network that no host may have: the network and the broadcast address of IPv4
// (RFC 1122 section 3.2.1.3), unless the network has no room for them (RFC 3021), and the subnet-router anycast address
// of IPv6 (RFC 4291 section 2.6.1), unless it is a link of two (RFC 6164).
func neverHosts(network netip.Prefix) []Range {
	switch spare := network.Addr().BitLen() - network.Bits(); {
	case spare < 2:
		return nil
	case network.Addr().Is4():
		return []Range{single(network.Addr()), single(lastOf(network))}
	default:
		return []Range{single(network.Addr())}
	}
}

// union returns the same addresses as sorted, disjoint ranges that do not touch each other.
func union(ranges []Range) []Range {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b Range) int { return a.First.Compare(b.First) })
	merged := sorted[:0]
	for _, r := range sorted {
		if n := len(merged); n > 0 && touches(merged[n-1], r) {
			if merged[n-1].Last.Less(r.Last) {
				merged[n-1].Last = r.Last
			}
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// touches reports whether next, which does not begin before r, overlaps r or follows it without a gap.
func touches(r, next Range) bool {
	return r.First.BitLen() == next.First.BitLen() &&
		(next.First.Compare(r.Last) <= 0 || r.Last.Next() == next.First)
}

// subtract returns the addresses of from that are not in minus. Both are results of union; so is the answer.
func subtract(from, minus []Range) []Range {
	var rest []Range
	for _, r := range from {
		gone := false
		start, _ := slices.BinarySearchFunc(minus, r.First, func(m Range, a netip.Addr) int { return m.Last.Compare(a) })
		for _, m := range minus[start:] {
			if r.Last.Less(m.First) {
				break
			}
			if r.First.Less(m.First) {
				rest = append(rest, Range{r.First, m.First.Prev()})
			}
			if r.Last.Compare(m.Last) <= 0 {
				gone = true
				break
			}
			r.First = m.Last.Next()
		}
		if !gone {
			rest = append(rest, r)
		}
	}
	return rest
}

// within reports whether a lies in one of ranges, a result of union.
func within(ranges []Range, a netip.Addr) bool {
	at, _ := slices.BinarySearchFunc(ranges, a, func(r Range, a netip.Addr) int { return r.Last.Compare(a) })
	return at < len(ranges) && ranges[at].Contains(a)
}

// capacity counts the addresses of one family.
func capacity(ranges []Range, family Family) *big.Int {
	sum := new(big.Int)
	for _, r := range ranges {
		if FamilyOf(r.First) == family {
			sum.Add(sum, r.size())
		}
	}
	return sum
}
