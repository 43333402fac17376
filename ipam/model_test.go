package ipam

import (
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
	claims map[netip.Addr][]Claimant // of the disputed addresses, the first one first
	offers map[floatip.Claim]modelOffer
	spent  []modelOffer // offers that were made, for late and repeated commits
	uids   int
}

type modelLine struct {
	Allocation
	stored Allocation // in the file, whose Since and Pool stay when the clock is set back and the pools change
}

type modelOffer struct {
	claim     floatip.Claim
	owner     floatip.Owner // without UID
	addresses []netip.Addr
	pools     []string
	expires   time.Time
	ahead     bool // it is in the file
	kept      bool // since a restart
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
		lines: map[netip.Addr]modelLine{}, claims: map[netip.Addr][]Claimant{}, offers: map[floatip.Claim]modelOffer{},
	}
	m.setPools()
	m.open()
	for m.step = range *modelSteps {
		m.pick()()
		m.compare()
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
		{3, m.keep}, {4, m.adopt}, {2, m.resolve}, {2, m.giveUp}, {6, m.fail}, {1, m.check},
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
	l, err := Open(m.path, Options{Now: m.clock.now, HistorySize: 500, lag: 1 + m.random.IntN(20)})
	if err != nil {
		m.t.Fatal(err)
	}
	l.SetPools(m.pools)
	m.ledger = l
}

// write makes line what the file says.
func (m *model) write(line Allocation) { m.lines[line.Address] = modelLine{line, line} }

// restart loses the offers that were not written ahead, and nothing else.
func (m *model) restart() {
	if err := m.ledger.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.open()
	m.expire()
	for claim, f := range m.offers {
		f.kept = true
		if m.offers[claim] = f; !f.ahead {
			delete(m.offers, claim)
		}
	}
	for _, line := range m.lines {
		m.write(line.stored)
	}
	m.rehome()
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
		if !f.kept && !m.clock.now().Before(f.expires) {
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
		switch {
		case i == 0 && m.random.IntN(3) == 0:
			p.PerNamespaceLimit = 5 // of both families together
		case i == 1:
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

// poolOf returns the oldest pool that has a, unless it is the first or last address of an older one's network.
func (m *model) poolOf(a netip.Addr) *Pool {
	for i := range m.pools {
		if within(m.pools[i].Addresses, a) {
			return &m.pools[i]
		}
		if within(m.pools[i].Edges, a) {
			return nil
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
	r.WriteAhead = m.random.IntN(2) == 0
	offer, err := m.ledger.Reserve(m.t.Context(), r)
	m.judge(r, offer, err)
	if err == nil && offer.Claim == r.Claim {
		f := modelOffer{
			claim: r.Claim, owner: floatip.Owner{Namespace: r.Namespace, Name: r.Name}, addresses: offer.Addresses, pools: offer.Pools,
			expires: m.clock.now().Add(45 * time.Second), ahead: r.WriteAhead,
		}
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
		if open, promised := m.offers[f.claim]; promised {
			if m.ledger.Withdraw(f.claim); !open.kept {
				delete(m.offers, f.claim)
			}
			return
		}
	}
}

// keep shows the ledger the VM that a kept promise waits for, or one that it does not wait for, or gives the promise up.
func (m *model) keep() {
	var kept []modelOffer
	for _, f := range m.spent {
		if f = m.offers[f.claim]; f.kept {
			kept = append(kept, f)
		}
	}
	if len(kept) == 0 {
		return
	}
	f := kept[m.random.IntN(len(kept))]
	for _, line := range m.ledger.ByClaim(f.claim) {
		if line.State != Pending || line.Owner != f.owner || !slices.Contains(f.addresses, line.Address) {
			m.t.Errorf("%+v was kept, the ledger has %+v", f, line)
		}
	}
	owner := f.owner
	owner.UID = m.newUID()
	if owner.Name == "" {
		owner.Name = m.someone().Name
	}
	switch m.random.IntN(3) {
	case 0:
		if got := m.ledger.Expire(f.claim); len(got) != len(f.addresses) {
			m.t.Errorf("expire %+v: %+v", f, got)
		}
		delete(m.offers, f.claim)
	case 1:
		stranger := owner
		stranger.Name += "-other"
		if _, err := m.ledger.Bind(m.t.Context(), f.claim, stranger, Cause{}); f.owner.Name != "" && err == nil {
			m.t.Errorf("%+v was given to %s", f, stranger)
		} else if err == nil {
			m.take(f, stranger)
		}
	case 2:
		if _, err := m.ledger.Bind(m.t.Context(), f.claim, owner, Cause{}); err != nil {
			m.t.Errorf("bind %s, which %+v waits for: %v", owner, f, err)
		}
		m.take(f, owner)
	}
}

// take is what it does that owner was seen, whom f was kept for.
func (m *model) take(f modelOffer, owner floatip.Owner) {
	delete(m.offers, f.claim)
	for i, a := range f.addresses {
		m.write(Allocation{Address: a, Pool: f.pools[i], Owner: owner, Claim: f.claim, State: Bound, Since: m.clock.now()})
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
	want, n := m.mayCommit(f, owner)
	lines, err := m.ledger.Commit(m.t.Context(), f.claim, owner, f.addresses, Cause{User: "model"})
	if (err == nil) != want {
		m.t.Errorf("commit %+v for %s: %v, want success %t", f, owner, err, want)
	}
	if err != nil {
		return
	}
	delete(m.offers, f.claim)
	for _, line := range lines {
		m.write(line)
		if line.State != Pending || line.Owner != owner || line.Claim != f.claim {
			m.t.Errorf("commit %+v: got %+v", f, line)
		}
	}
	if len(lines) != n {
		m.t.Errorf("commit %+v: got %d allocations, want %d", f, len(lines), n)
	}
}

// mayCommit says whether owner may have what was offered, and how many addresses that are: after a dispute, the claim may
// have lost one.
func (m *model) mayCommit(f modelOffer, owner floatip.Owner) (may bool, n int) {
	held := 0
	for _, line := range m.lines {
		if line.held() && line.Claim == f.claim {
			if line.State == Bound {
				return false, 0
			}
			held++
		}
	}
	if held > 0 {
		return true, held
	}
	_, open := m.offers[f.claim]
	var taken []string
	for _, a := range f.addresses {
		p := m.poolOf(a)
		if p == nil {
			return false, 0
		}
		if open {
			continue
		}
		if p.Drain || m.limited(p, owner.Namespace, taken...) || !m.available(a, owner.Namespace, owner.Name) {
			return false, 0
		}
		taken = append(taken, p.Name)
	}
	return true, len(f.addresses)
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
	holds, may := m.mayBind(line)
	_, err := m.ledger.Bind(m.t.Context(), line.Claim, line.Owner, Cause{})
	if may != (err == nil) {
		m.t.Errorf("bind %+v: %v, want success %t", line, err, may)
	}
	if may {
		for _, other := range holds {
			other.Owner = line.Owner
			m.confirm(other)
		}
	}
}

// mayBind returns what the owner of line has when it is bound with the claim of line: what it holds, and what the claim
// holds for a UID that was validated later and not bound.
func (m *model) mayBind(line modelLine) (holds []modelLine, may bool) {
	families := map[Family]bool{}
	for _, other := range m.lines {
		if other.Owner.UID == line.Owner.UID && other.held() && !m.superseded(other.Allocation) {
			holds = append(holds, other)
			families[FamilyOf(other.Address)] = true
		}
	}
	may = true
	for _, other := range m.lines {
		if line.Claim.IsZero() || other.Claim != line.Claim || other.Owner.UID == line.Owner.UID || !other.held() {
			continue
		}
		if other.State != Pending || other.Owner.Namespace != line.Owner.Namespace || families[FamilyOf(other.Address)] {
			may = false
		}
		holds = append(holds, other)
		families[FamilyOf(other.Address)] = true
	}
	return holds, may && len(holds) > 0
}

func (m *model) release() {
	line, ok := m.someLine()
	if !ok {
		return
	}
	if _, err := m.ledger.Release(m.t.Context(), line.Owner.UID, Cause{}); err != nil {
		m.t.Errorf("release %+v: %v", line, err)
	}
	m.gone(line.Owner.UID)
}

// gone is what the release of a virtual machine does.
func (m *model) gone(uid string) {
	for a, line := range m.lines {
		if line.Owner.UID == uid && line.held() {
			m.giveBack(a, line)
		}
	}
	m.dropClaims(uid)
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
	m.compareDisputes()
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
