package ipam

import (
	"cmp"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"floatip.io/floatip"
)

var (
	modelSeed  = flag.Uint64("model.seed", 0, "seed of the model test; 0 takes a random one")
	modelSteps = flag.Int("model.steps", 20_000, "operations of the model test")
)

// model is the ledger as a plain map, with every rule written out as a walk over all addresses.
type model struct {
	t      *testing.T
	random *rand.Rand
	step   int

	path   string
	clock  *clock
	ledger *Ledger

	pools  []Pool
	lines  map[netip.Addr]modelLine
	offers map[floatip.Claim]modelOffer
	spent  []modelOffer // offers that were made, for late and repeated commits
	uids   int
}

type modelLine struct {
	Allocation
	stored time.Time // Since in the file, which setting the clock back does not change
}

type modelOffer struct {
	claim     floatip.Claim
	owner     floatip.Owner // without UID
	addresses []netip.Addr
	pools     []string
	expires   time.Time
}

// Random operations, restarts, changes of the pools and jumps of the clock leave the ledger as a plain map says. Repeat a
// failure with -model.seed.
func TestModel(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("repeat with: go test ./ipam -run TestModel -model.seed=%d", seed)
	m := &model{
		t: t, random: rand.New(rand.NewPCG(seed, 0)), clock: newClock(),
		path:  filepath.Join(t.TempDir(), "ledger.db"),
		lines: map[netip.Addr]modelLine{}, offers: map[floatip.Claim]modelOffer{},
	}
	m.setPools()
	m.open()
	for m.step = range *modelSteps {
		m.pick()()
		m.compare()
		if m.step%2000 == 0 || t.Failed() {
			m.check()
		}
		if t.Failed() {
			t.Fatalf("step %d", m.step)
		}
	}
	m.check()
	m.ledger.Close()
}

func (m *model) pick() func() {
	weighted := []struct {
		weight int
		do     func()
	}{
		{30, m.reserve}, {25, m.commit}, {12, m.bind}, {20, m.release}, {6, m.advance},
		{1, m.setBack}, {1, m.restart}, {2, m.changePools}, {2, m.withdraw}, {2, m.dryRun},
	}
	sum := 0
	for _, w := range weighted {
		sum += w.weight
	}
	at := m.random.IntN(sum)
	for _, w := range weighted {
		if at -= w.weight; at < 0 {
			return w.do
		}
	}
	panic("ipam: unreachable")
}

func (m *model) open() {
	l, err := Open(m.path, Options{Now: m.clock.now, HistorySize: 500})
	if err != nil {
		m.t.Fatal(err)
	}
	l.SetPools(m.pools)
	m.ledger = l
}

// restart loses the offers and nothing else.
func (m *model) restart() {
	if err := m.ledger.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.open()
	clear(m.offers)
	for a, line := range m.lines {
		line.Since = line.stored
		m.lines[a] = line
	}
	m.clamp()
}

// clamp is what setting the clock back does to times that lie in the future.
func (m *model) clamp() {
	now := m.clock.now()
	for a, line := range m.lines {
		if line.State != Bound && line.Since.After(now) {
			line.Since = now
			m.lines[a] = line
		}
	}
	for claim, f := range m.offers {
		if latest := now.Add(45 * time.Second); f.expires.After(latest) {
			f.expires = latest
			m.offers[claim] = f
		}
	}
}

func (m *model) advance() {
	steps := []time.Duration{time.Second, 20 * time.Second, 2 * time.Minute, 11 * time.Minute, 30 * time.Hour}
	m.clock.advance(steps[min(m.random.IntN(20), m.random.IntN(20))%len(steps)])
	m.expire()
	m.ledger.ByClaim(floatip.Claim{}) // reads the clock
}

func (m *model) setBack() {
	m.clock.advance(-time.Duration(m.random.IntN(7200)) * time.Second)
	m.clamp()
	m.ledger.ByClaim(floatip.Claim{}) // reads the clock
}

func (m *model) expire() {
	for claim, f := range m.offers {
		if !m.clock.now().Before(f.expires) {
			delete(m.offers, claim)
		}
	}
}

func (m *model) changePools() {
	m.setPools()
	m.ledger.SetPools(m.pools)
}

// setPools makes three pools that differ a little each time: two overlap, one has a limit, sometimes one drains.
func (m *model) setPools() {
	texts := []PoolText{
		{Name: "a", Addresses: []string{"192.0.2.0/28", "2001:db8::/125"}, Exclude: []string{"192.0.2.5"}},
		{Name: "b", Addresses: []string{"192.0.2.12-192.0.2.20"}},
		{Name: "c", Addresses: []string{"198.51.100.4-198.51.100.6", "2001:db8::4-2001:db8::b"}},
	}
	if m.random.IntN(3) == 0 {
		texts[1].Addresses = []string{"192.0.2.12-192.0.2.17"}
	}
	if m.random.IntN(4) == 0 {
		texts = texts[:2]
	}
	m.pools = nil
	for i, text := range texts {
		p, err := ParsePool(text)
		if err != nil {
			m.t.Fatal(err)
		}
		p.Created = time.Unix(int64(i), 0)
		p.Priority = int32(-i)
		p.Drain = m.random.IntN(8) == 0
		p.Quarantine = []time.Duration{0, time.Minute, DefaultQuarantine}[m.random.IntN(3)]
		if i == 1 {
			p.PerNamespaceLimit = 4
		}
		m.pools = append(m.pools, p)
	}
	m.rehome()
}

// rehome gives lines and offers to the pool that has their address now.
func (m *model) rehome() {
	for a, line := range m.lines {
		if p := m.poolOf(a); p != nil {
			line.Pool = p.Name
			m.lines[a] = line
		}
	}
	for _, f := range m.offers {
		for i, a := range f.addresses {
			if p := m.poolOf(a); p != nil {
				f.pools[i] = p.Name
			}
		}
	}
}

// poolOf returns the oldest pool that has a.
func (m *model) poolOf(a netip.Addr) *Pool {
	for i := range m.pools {
		if within(m.pools[i].Addresses, a) {
			return &m.pools[i]
		}
	}
	return nil
}

func (m *model) someone() floatip.Owner {
	return floatip.Owner{Namespace: []string{"prod", "dev"}[m.random.IntN(2)], Name: fmt.Sprintf("vm%d", m.random.IntN(12))}
}

func (m *model) someAddress() netip.Addr {
	p := m.pools[m.random.IntN(len(m.pools))]
	r := p.Addresses[m.random.IntN(len(p.Addresses))]
	a := r.First.Prev() // sometimes one outside
	for range m.random.IntN(8) {
		a = a.Next()
	}
	return a
}

func (m *model) newClaim() floatip.Claim {
	var claim floatip.Claim
	binary.BigEndian.PutUint64(claim[:], m.random.Uint64())
	binary.BigEndian.PutUint64(claim[8:], m.random.Uint64())
	return claim
}

func (m *model) request() Request {
	owner := m.someone()
	r := Request{Claim: m.newClaim(), Namespace: owner.Namespace, Name: owner.Name}
	switch m.random.IntN(8) {
	case 0:
		r.Addresses = []netip.Addr{m.someAddress()}
	case 1:
		r.Pools = []string{m.pools[m.random.IntN(len(m.pools))].Name}
	case 2:
		r.Families = []Family{IPv6}
	case 3, 4, 5:
		r.Families = []Family{IPv4}
	}
	if m.random.IntN(4) == 0 {
		r.Name = ""
	}
	return r
}

func (m *model) reserve() {
	r := m.request()
	offer, err := m.ledger.Reserve(m.t.Context(), r)
	m.judge(r, offer, err)
	if err == nil && offer.Claim == r.Claim {
		f := modelOffer{r.Claim, floatip.Owner{Namespace: r.Namespace, Name: r.Name}, offer.Addresses, offer.Pools, m.clock.now().Add(45 * time.Second)}
		m.offers[r.Claim] = f
		m.spent = append(m.spent, f)
	}
}

func (m *model) dryRun() {
	r := m.request()
	r.DryRun = true
	offer, err := m.ledger.Reserve(m.t.Context(), r)
	m.judge(r, offer, err)
}

func (m *model) withdraw() {
	for _, f := range slices.Backward(m.spent) {
		if _, open := m.offers[f.claim]; open {
			m.ledger.Withdraw(f.claim)
			delete(m.offers, f.claim)
			return
		}
	}
}

func (m *model) promised(a netip.Addr) bool {
	for _, f := range m.offers {
		if slices.Contains(f.addresses, a) {
			return true
		}
	}
	return false
}

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

// limited says whether namespace has as much of p as it may.
func (m *model) limited(p *Pool, namespace string) bool {
	n := 0
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

// candidates returns what r may get of the family, over all pools that it may use.
func (m *model) candidates(r Request, family Family) []netip.Addr {
	var all []netip.Addr
	for i := range m.pools {
		p := &m.pools[i]
		if p.Drain || m.limited(p, r.Namespace) || len(r.Pools) > 0 && !slices.Contains(r.Pools, p.Name) {
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
		candidates := m.candidates(r, FamilyOf(a))
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
	for _, family := range families {
		if len(m.candidates(r, family)) == 0 {
			return // a good reason
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

func (m *model) newUID() string {
	m.uids++
	if m.uids%3 == 0 {
		return fmt.Sprintf("odd-%d", m.uids)
	}
	return fmt.Sprintf("%08x-0000-4000-8000-000000000000", m.uids)
}

// commit takes up an offer, sometimes long after it was made, sometimes again with another UID, as the API server does.
func (m *model) commit() {
	if len(m.spent) == 0 {
		return
	}
	at := len(m.spent) - 1 - min(m.random.IntN(len(m.spent)), m.random.IntN(20))
	f := m.spent[at]
	owner := f.owner
	if owner.Name == "" {
		owner.Name = m.someone().Name
	}
	owner.UID = m.newUID()
	want := m.mayCommit(f, owner)
	lines, err := m.ledger.Commit(m.t.Context(), f.claim, owner, f.addresses, Cause{User: "model"})
	if (err == nil) != want {
		m.t.Errorf("commit %+v for %s: %v, want success %t", f, owner, err, want)
	}
	if err != nil {
		return
	}
	delete(m.offers, f.claim)
	for _, line := range lines {
		m.lines[line.Address] = modelLine{line, line.Since}
		if line.State != Pending || line.Owner != owner || line.Claim != f.claim {
			m.t.Errorf("commit %+v: got %+v", f, line)
		}
	}
	if len(lines) != len(f.addresses) {
		m.t.Errorf("commit %+v: got %d allocations", f, len(lines))
	}
}

func (m *model) mayCommit(f modelOffer, owner floatip.Owner) bool {
	held := 0
	for _, line := range m.lines {
		if line.held() && line.Claim == f.claim {
			if line.State == Bound {
				return false
			}
			held++
		}
	}
	if held > 0 {
		return true
	}
	_, open := m.offers[f.claim]
	taken := map[string]int{}
	for _, a := range f.addresses {
		p := m.poolOf(a)
		if p == nil {
			return false
		}
		if open {
			continue
		}
		if p.Drain || m.limited(p, owner.Namespace) || !m.available(a, owner.Namespace, owner.Name) {
			return false
		}
		taken[p.Name]++
	}
	return true
}

func (m *model) someLine() (modelLine, bool) {
	addresses := slices.SortedFunc(maps.Keys(m.lines), netip.Addr.Compare)
	if len(addresses) == 0 {
		return modelLine{}, false
	}
	return m.lines[addresses[m.random.IntN(len(addresses))]], true
}

func (m *model) bind() {
	line, ok := m.someLine()
	if !ok {
		return
	}
	_, err := m.ledger.Bind(m.t.Context(), line.Claim, line.Owner, Cause{})
	if line.held() != (err == nil) {
		m.t.Errorf("bind %+v: %v", line, err)
	}
	for a, other := range m.lines {
		if other.Owner.UID == line.Owner.UID && other.State == Pending {
			other.State, other.Since, other.stored = Bound, m.clock.now(), m.clock.now()
			m.lines[a] = other
		}
	}
}

func (m *model) release() {
	line, ok := m.someLine()
	if !ok {
		return
	}
	if _, err := m.ledger.Release(m.t.Context(), line.Owner.UID, Cause{}); err != nil {
		m.t.Errorf("release %+v: %v", line, err)
	}
	for a, other := range m.lines {
		if other.Owner.UID == line.Owner.UID && other.held() {
			other.State, other.Since, other.stored = Released, m.clock.now(), m.clock.now()
			m.lines[a] = other
		}
	}
}

// compare looks at what the ledger shows. Released allocations may be forgotten after a day.
func (m *model) compare() {
	m.t.Helper()
	shown := 0
	for line := range m.ledger.All() {
		want, ok := m.lines[line.Address]
		if !ok || line != want.Allocation {
			m.t.Errorf("the ledger has %+v, want %+v", line, want.Allocation)
		}
		shown++
	}
	if shown == len(m.lines) {
		return
	}
	for a, want := range m.lines {
		if _, ok := m.ledger.Lookup(a); ok {
			continue
		}
		if want.State != Released || m.clock.now().Sub(want.Since) < 24*time.Hour {
			m.t.Errorf("the ledger lost %+v", want.Allocation)
		}
		delete(m.lines, a)
	}
}

func (m *model) check() {
	m.t.Helper()
	report, err := m.ledger.Check(m.t.Context(), Against{})
	if err := errors.Join(err, report.Err()); err != nil {
		m.t.Error(err)
	}
}
