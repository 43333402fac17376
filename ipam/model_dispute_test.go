package ipam

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
)

// adopt shows the ledger some addresses of a cluster: with the virtual machine that has them, with another one, or with
// one that nobody knew. Now and then it is the whole cluster, and who is not shown is missing.
func (m *model) adopt() {
	var seen []Sighting
	for range m.random.IntN(4) {
		seen = append(seen, m.sighting())
	}
	complete := m.random.IntN(4) == 0
	found, err := m.ledger.Adopt(m.t.Context(), seen, complete)
	if err != nil {
		m.t.Errorf("adopt %+v: %v", seen, err)
	}
	adopted, confirmed, superseded := 0, 0, 0
	shown := map[string]bool{}
	for _, s := range seen {
		shown[s.Owner.UID] = true
		switch line, had := m.lines[s.Address]; {
		case had && line.State == Released && line.Owner.UID == s.Owner.UID && len(m.others(s.Address, s.Owner.UID)) > 0:
			// It was replaced.
		case !had || line.State == Released:
			m.adoptFree(s)
			superseded += m.supersede(s.Address, s.Owner.UID)
			adopted++
		case line.Owner.UID == s.Owner.UID:
			if !m.superseded(line.Allocation) {
				m.confirm(line)
			}
			confirmed++
		default:
			m.dispute(s)
		}
	}
	if len(found.Superseded) != superseded {
		m.t.Errorf("adopt %+v: superseded %+v, want %d", seen, found.Superseded, superseded)
	}
	missing := 0
	for _, line := range m.lines {
		if complete && line.State == Bound && !shown[line.Owner.UID] {
			missing++
			if !line.Missing { // else nothing is written, and the file keeps the pool that it names
				line.Missing = true
				m.write(line.Allocation)
			}
		}
	}
	if len(found.Adopted) != adopted || found.Confirmed != confirmed || len(found.Missing) != missing {
		m.t.Errorf("adopt %+v: %d, %d, %d, want adopted %d, confirmed %d, missing %d",
			seen, len(found.Adopted), found.Confirmed, len(found.Missing), adopted, confirmed, missing)
	}
}

func (m *model) sighting() Sighting {
	s := Sighting{Address: m.someAddress(), Pool: "elsewhere", Owner: m.someone(), Claim: m.newClaim(), Source: "FloatingIP"}
	s.Owner.UID = m.newUID()
	if m.random.IntN(3) == 0 {
		s.Claim = floatip.Claim{}
	}
	if line, ok := m.someLine(); ok && line.held() && m.random.IntN(2) == 0 {
		s.Owner = line.Owner
		if m.random.IntN(3) > 0 { // else another address of the same one
			s.Address, s.Claim = line.Address, line.Claim
		}
	}
	return s
}

// others returns what the virtual machine holds besides a of the same family.
func (m *model) others(a netip.Addr, uid string) []modelLine {
	var others []modelLine
	for _, line := range m.lines {
		if line.held() && line.Owner.UID == uid && line.Address != a && FamilyOf(line.Address) == FamilyOf(a) {
			others = append(others, line)
		}
	}
	return others
}

// supersede marks what the virtual machine holds besides a, which it has now.
func (m *model) supersede(a netip.Addr, uid string) (marked int) {
	for _, other := range m.others(a, uid) {
		if !other.Superseded {
			other.Superseded = true
			m.write(other.Allocation)
			marked++
		}
	}
	return marked
}

func (m *model) superseded(line Allocation) bool {
	for _, other := range m.others(line.Address, line.Owner.UID) {
		younger := other.Since.After(line.Since) || other.Since.Equal(line.Since) && line.Address.Less(other.Address)
		if line.Superseded && (!other.Superseded || younger) {
			return true
		}
	}
	return false
}

// giveUp gives back what is superseded, and nothing else.
func (m *model) giveUp() {
	line, ok := m.someLine()
	if !ok {
		return
	}
	may := line.held() && !line.Disputed && m.superseded(line.Allocation)
	_, err := m.ledger.GiveUp(m.t.Context(), line.Address, line.Owner.UID, Cause{})
	if may != (err == nil) {
		m.t.Errorf("give up %+v: %v, want success %t", line, err, may)
	}
	if may {
		m.giveBack(line.Address, line)
	}
}

func (m *model) adoptFree(s Sighting) {
	pool := s.Pool
	if p := m.poolOf(s.Address); p != nil {
		pool = p.Name
	}
	maps.DeleteFunc(m.offers, func(_ floatip.Claim, f modelOffer) bool { return slices.Contains(f.addresses, s.Address) })
	now := m.clock.now()
	m.write(Allocation{Address: s.Address, Pool: pool, Owner: s.Owner, Claim: s.Claim, State: Bound, Since: now})
}

// confirm is what it does to line that its holder was seen.
func (m *model) confirm(line modelLine) {
	if line.State == Bound && !line.Missing && !line.Superseded {
		return
	}
	if line.State != Bound {
		line.State, line.Since = Bound, m.clock.now()
	}
	line.Missing, line.Superseded = false, false
	m.write(line.Allocation)
}

func (m *model) dispute(s Sighting) {
	if slices.ContainsFunc(m.claims[s.Address], func(c Claimant) bool { return c.Owner.UID == s.Owner.UID }) {
		return
	}
	claims := append(m.claims[s.Address], Claimant{s.Address, s.Owner, s.Claim, s.Source, m.clock.now()})
	slices.SortFunc(claims, firstClaimant)
	m.claims[s.Address] = claims
	line := m.lines[s.Address]
	line.Disputed = true
	m.write(line.Allocation)
}

// giveBack is what the release of its holder does to line.
func (m *model) giveBack(a netip.Addr, line modelLine) {
	line.Since, line.Missing, line.Superseded = m.clock.now(), false, false
	line.State = Released
	if claims := m.claims[a]; len(claims) > 0 {
		line.Owner, line.Claim, line.State = claims[0].Owner, claims[0].Claim, Bound
		line.Disputed = len(claims) > 1
		m.claims[a] = claims[1:]
	}
	m.write(line.Allocation)
	if line.held() {
		m.supersede(a, line.Owner.UID)
	}
}

// dropClaims: the virtual machine claims nothing any more, because it is gone.
func (m *model) dropClaims(uid string) {
	for a, before := range m.claims {
		m.claims[a] = slices.DeleteFunc(slices.Clone(before), func(c Claimant) bool { return c.Owner.UID == uid })
		if len(m.claims[a]) > 0 {
			continue
		}
		delete(m.claims, a)
		if len(before) == 0 {
			continue // it ended before
		}
		line := m.lines[a]
		line.Disputed = false
		m.write(line.Allocation)
	}
}

// goneClaimant releases a virtual machine that claims an address without holding it.
func (m *model) goneClaimant(a netip.Addr, uid string) {
	if _, err := m.ledger.Release(m.t.Context(), uid, Cause{}); err != nil {
		m.t.Errorf("release claimant %s of %s: %v", uid, a, err)
	}
	m.gone(uid)
}

// resolve decides a dispute for one of the parties, or for a stranger, or lets a party go.
func (m *model) resolve() {
	addresses := slices.SortedFunc(maps.Keys(m.claims), netip.Addr.Compare)
	if len(addresses) == 0 {
		if _, err := m.ledger.Resolve(m.t.Context(), m.someAddress(), "nobody", Cause{}); !errors.Is(err, ErrNotHeld) {
			m.t.Errorf("resolve without a dispute: %v", err)
		}
		return
	}
	a := addresses[m.random.IntN(len(addresses))]
	line, claims := m.lines[a], m.claims[a]
	one := claims[m.random.IntN(len(claims))]
	uid := one.Owner.UID
	switch m.random.IntN(4) {
	case 0:
		uid = line.Owner.UID
	case 1:
		m.goneClaimant(a, uid)
		return
	case 2:
		if _, err := m.ledger.Resolve(m.t.Context(), a, "nobody", Cause{}); !errors.Is(err, ErrInvalid) {
			m.t.Errorf("resolve %s for a stranger: %v", a, err)
		}
	}
	got, err := m.ledger.Resolve(m.t.Context(), a, uid, Cause{})
	if uid != line.Owner.UID {
		line.Owner, line.Claim, line.State = one.Owner, one.Claim, Bound
		line.Since = m.clock.now()
	}
	line.Disputed, line.Missing, line.Superseded = false, false, false
	m.write(line.Allocation)
	m.supersede(a, uid)
	delete(m.claims, a)
	if err != nil || got != line.Allocation {
		m.t.Errorf("resolve %s for %s: %+v, %v, want %+v", a, uid, got, err, line.Allocation)
	}
}

// compareDisputes compares who claims what, and in which order.
func (m *model) compareDisputes() {
	m.t.Helper()
	want, got := map[string]string{}, map[string]string{}
	for a, claims := range m.claims {
		if len(claims) > 0 {
			want[a.String()] = fmt.Sprint(claims)
		}
	}
	for _, d := range m.ledger.Disputes() {
		got[d.Holder.Address.String()] = fmt.Sprint(d.Claimants)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		m.t.Errorf("disputes (-want +got):\n%s", diff)
	}
}
