package ipam

import (
	"slices"
	"time"

	"floatip.io/floatip"
)

// again answers a request for a virtual machine that was promised addresses before under the same name and has not been
// seen in the API server since: a quota, the schema or another webhook refused it, and somebody tries again. It is
// promised the same addresses under the same claim. With another claim each try would hold another address until the
// promise is old, and a request for a certain address would be told that the machine itself has it.
//
// Of two tries that are on their way at the same time the API server stores one, since they have one name. It shows the
// claim, and Bind gives it what the claim stands for.
func (l *Ledger) again(r Request, pools []*home) (Offer, bool) {
	if r.Name == "" {
		return Offer{}, false
	}
	if f := l.offers.byName[vmName{r.Namespace, r.Name}]; f != nil && l.suits(r, pools, f.lines(l.opts.Reservation)) {
		return f.offer(), true
	}
	lines := l.book.ofName(r.Namespace, r.Name)
	if len(lines) == 0 {
		return Offer{}, false
	}
	pending, seen := map[floatip.Claim][]Allocation{}, map[floatip.Claim]bool{}
	var claims []floatip.Claim // in the order of the addresses
	for _, line := range lines {
		if line.State == Bound {
			seen[line.Claim] = true // with one of its two addresses is enough
		}
		if line.State != Pending || line.Claim.IsZero() {
			continue
		}
		if pending[line.Claim] == nil {
			claims = append(claims, line.Claim)
		}
		pending[line.Claim] = append(pending[line.Claim], line)
	}
	for _, claim := range claims {
		if !seen[claim] && l.suits(r, pools, pending[claim]) {
			answer := Offer{Claim: claim, Committed: true}
			for _, line := range pending[claim] {
				answer.Addresses = append(answer.Addresses, line.Address)
				answer.Pools = append(answer.Pools, line.Pool)
			}
			return answer, true
		}
	}
	return Offer{}, false
}

// suits reports whether lines are what r asks for: one of each family that it wants, from its pools.
func (l *Ledger) suits(r Request, pools []*home, lines []Allocation) bool {
	wanted := 0
	for _, family := range bothFamilies {
		if r.wants(family, pools) {
			wanted++
		}
	}
	if len(lines) != wanted {
		return false
	}
	for _, line := range lines {
		h := l.book.homeOf(line.Address)
		family := FamilyOf(line.Address)
		exact := r.wanted(family)
		if h == nil || h.pool.Drain || !slices.Contains(pools, h) || !r.wants(family, pools) ||
			exact.IsValid() && exact != line.Address {
			return false
		}
	}
	return true
}

// lines shows what f promises.
func (f *offer) lines(reservation time.Duration) []Allocation {
	lines := make([]Allocation, len(f.addresses))
	for i := range f.addresses {
		lines[i] = f.allocation(i, reservation)
	}
	return lines
}

// offer is the answer that made f.
func (f *offer) offer() Offer {
	return Offer{Claim: f.claim, Addresses: slices.Clone(f.addresses), Pools: slices.Clone(f.pools), Expires: f.expires}
}
