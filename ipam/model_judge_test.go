package ipam

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"time"

	"floatip.io/floatip"
)

// available says whether a VM of that name may have a.
func (m *model) available(a netip.Addr, namespace, name string) bool {
	line, had := m.lines[a]
	p := m.poolOf(a)
	switch {
	case m.promised(a) || p == nil:
		return false
	case !had:
		return true
	case line.State != Released:
		return false
	}
	age := m.clock.now().Sub(line.Since)
	own := name != "" && line.Owner.Namespace == namespace && line.Owner.Name == name && age < 10*time.Minute
	return own || age >= p.Quarantine
}

// limited says whether namespace has as much of p as it may; chosen are pools that it is about to get one address of.
func (m *model) limited(p *Pool, namespace string, chosen ...string) bool {
	n := 0
	if slices.Contains(chosen, p.Name) {
		n++
	}
	for _, line := range m.lines {
		if line.held() && line.Pool == p.Name && line.Owner.Namespace == namespace {
			n++
		}
	}
	for _, f := range m.offers {
		for _, pool := range f.pools {
			if pool == p.Name && f.owner.Namespace == namespace {
				n++
			}
		}
	}
	return p.PerNamespaceLimit > 0 && n >= p.PerNamespaceLimit
}

// candidates returns what r may get of the family, over all pools that it may use, besides an address of chosen.
func (m *model) candidates(r Request, family Family, chosen ...string) []netip.Addr {
	var all []netip.Addr
	for i := range m.pools {
		p := &m.pools[i]
		if p.Drain || m.limited(p, r.Namespace, chosen...) || len(r.Pools) > 0 && !slices.Contains(r.Pools, p.Name) {
			continue
		}
		for _, span := range p.Addresses {
			for a := span.First; span.Contains(a); a = a.Next() {
				if FamilyOf(a) == family && m.poolOf(a) == p && m.available(a, r.Namespace, r.Name) {
					all = append(all, a)
				}
			}
		}
	}
	return all
}

// judge compares a decision with the rules.
func (m *model) judge(r Request, offer Offer, err error) {
	m.t.Helper()
	if err != nil {
		m.judgeRefusal(r, err)
		return
	}
	if offer.Claim != r.Claim {
		m.judgeAgain(r, offer)
		return
	}
	if claim, ok := m.awaited(r); ok {
		m.t.Errorf("%+v: got %v, but %s is Pending for that name", r, offer, claim)
	}
	for i, a := range offer.Addresses {
		candidates := m.candidates(r, FamilyOf(a), offer.Pools[:i]...)
		if !slices.Contains(candidates, a) {
			m.t.Errorf("%+v: got %s, may have %v", r, a, candidates)
		}
		if len(r.Addresses) == 0 {
			m.judgeChoice(r, a, candidates)
		} else if r.Addresses[i] != a {
			m.t.Errorf("asked for %v, got %s", r.Addresses, a)
		}
	}
	if len(offer.Addresses) == 0 || len(r.Families) > 0 && len(offer.Addresses) != len(r.Families) {
		m.t.Errorf("%+v: got %v", r, offer.Addresses)
	}
}

// judgeAgain: what is promised again is what the claim has, promised to a VM of that name and not Bound.
func (m *model) judgeAgain(r Request, offer Offer) {
	m.t.Helper()
	f, promised := m.offers[offer.Claim]
	owner, addresses := f.owner, f.addresses
	for a, line := range m.lines {
		if !promised && line.Claim == offer.Claim && line.held() {
			if line.State != Pending {
				m.t.Errorf("%+v: got %+v again, which is %s", r, offer, line.State)
			}
			owner, addresses = line.Owner, append(addresses, a)
		}
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	if r.Name == "" || owner.Namespace != r.Namespace || owner.Name != r.Name || !slices.Equal(addresses, offer.Addresses) {
		m.t.Errorf("%+v: got %+v again, which has %v of %s", r, offer, addresses, owner)
	}
	for _, a := range r.Addresses {
		if !slices.Contains(addresses, a) {
			m.t.Errorf("asked for %v, got %v again", r.Addresses, addresses)
		}
	}
	for i, a := range addresses {
		if p := m.poolOf(a); p == nil || p.Drain || len(r.Pools) > 0 && !slices.Contains(r.Pools, p.Name) || offer.Pools[i] != p.Name {
			m.t.Errorf("%+v: got %+v again", r, offer)
		}
	}
}

// awaited returns a claim that is Pending for the VM's name and is what r asks for, if r names families and no more.
func (m *model) awaited(r Request) (floatip.Claim, bool) {
	if r.Name == "" || len(r.Families) != 1 || len(r.Addresses) > 0 || len(r.Pools) > 0 {
		return floatip.Claim{}, false
	}
	families := map[floatip.Claim][]Family{}
	for a, line := range m.lines {
		if line.State == Bound && !line.Claim.IsZero() {
			families[line.Claim] = append(families[line.Claim], 0) // its VM was seen
		}
		if line.State == Pending && line.Owner.Namespace == r.Namespace && line.Owner.Name == r.Name {
			family := FamilyOf(a)
			if p := m.poolOf(a); p == nil || p.Drain {
				family = 0
			}
			families[line.Claim] = append(families[line.Claim], family)
		}
	}
	for claim, have := range families {
		if slices.Equal(have, r.Families) {
			return claim, true
		}
	}
	return floatip.Claim{}, false
}

// judgeChoice: the VM's own address first; then one that nobody had; then the one released first. Pools go by priority.
func (m *model) judgeChoice(r Request, a netip.Addr, candidates []netip.Addr) {
	m.t.Helper()
	rank := func(a netip.Addr) (rank [3]int64) {
		line, had := m.lines[a]
		own := had && r.Name != "" && line.Owner.Namespace == r.Namespace && line.Owner.Name == r.Name &&
			m.clock.now().Sub(line.Since) < 10*time.Minute
		if own {
			return [3]int64{0, 0, -line.Since.UnixNano()}
		}
		pool := int64(1 + slices.IndexFunc(m.pools, func(p Pool) bool { return p.Name == m.poolOf(a).Name }))
		if !had {
			return [3]int64{pool, 0, 0}
		}
		return [3]int64{pool, 1, line.Since.UnixNano()}
	}
	for _, other := range candidates {
		x, y := rank(a), rank(other)
		if cmp.Or(cmp.Compare(x[0], y[0]), cmp.Compare(x[1], y[1]), cmp.Compare(x[2], y[2])) > 0 {
			m.t.Errorf("%+v: got %s (%+v) although %s (%+v) comes first", r, a, m.lines[a], other, m.lines[other])
		}
	}
}

func (m *model) judgeRefusal(r Request, err error) {
	m.t.Helper()
	if len(r.Addresses) > 0 {
		m.judgeExact(r, r.Addresses[0], err)
		return
	}
	families := r.Families
	if len(families) == 0 {
		families = []Family{IPv4, IPv6}
	}
	for i, family := range families {
		if len(m.candidates(r, family)) == 0 {
			return // a good reason
		}
		for _, p := range m.pools {
			if i > 0 && len(m.candidates(r, family, p.Name)) == 0 {
				return // the address of the other family may come from p
			}
		}
	}
	m.t.Errorf("%+v: addresses are free, but: %v", r, err)
}

func (m *model) judgeExact(r Request, a netip.Addr, err error) {
	m.t.Helper()
	p, line := m.poolOf(a), m.lines[a]
	if p != nil && !p.Drain && !m.limited(p, r.Namespace) && m.available(a, r.Namespace, r.Name) {
		m.t.Errorf("%s is free, but: %v", a, err)
	}
	if p != nil && line.held() && !errors.Is(err, ErrTaken) {
		m.t.Errorf("%s is held, but: %v", a, err)
	}
}
