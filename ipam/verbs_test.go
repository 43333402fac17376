package ipam

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
)

// start opens a new ledger that is checked at the end of the test.
func start(t *testing.T, pools ...Pool) (*Ledger, *clock) {
	t.Helper()
	c := newClock()
	return openTest(t, filepath.Join(t.TempDir(), "ledger.db"), c, pools...), c
}

func ask(r Request) Request {
	if r.Claim.IsZero() {
		r.Claim = floatip.NewClaim()
	}
	if r.Namespace == "" {
		r.Namespace = "prod"
	}
	return r
}

// Each refusal names what is wrong and who has the address.
func TestRefusals(t *testing.T) {
	red := pool(t, "red", "192.0.2.0/29")
	blue := pool(t, "blue", "198.51.100.1-198.51.100.2")
	blue.AutoAssign = false
	blue.Selects = func(labels map[string]string) bool { return labels["team"] == "blue" }
	dry := pool(t, "dry", "203.0.113.1")
	dry.Drain, dry.AutoAssign = true, false
	tight := pool(t, "tight", "203.0.113.8-203.0.113.9")
	tight.PerNamespaceLimit, tight.AutoAssign = 1, false
	node := pool(t, "node", "203.0.113.20-203.0.113.21")
	node.Reserved, node.AutoAssign = []netip.Addr{addr("203.0.113.20")}, false
	l, _ := start(t, red, blue, dry, tight, node)
	give(t, l, vm("db-1"), addr("192.0.2.3"))
	give(t, l, vm("tight-1"), addr("203.0.113.8"))
	if _, err := l.Reserve(t.Context(), ask(Request{Name: "soon", Addresses: []netip.Addr{addr("192.0.2.4")}})); err != nil {
		t.Fatal(err)
	}

	cases := []struct {
		name string
		ask  Request
		want error
		text string
	}{
		{"held", Request{Addresses: []netip.Addr{addr("192.0.2.3")}}, ErrTaken, "192.0.2.3 is held by VM prod/db-1"},
		{"promised", Request{Addresses: []netip.Addr{addr("192.0.2.4")}}, ErrTaken, "promised to VM prod/soon"},
		{"network address", Request{Addresses: []netip.Addr{addr("192.0.2.0")}}, ErrNeverGiven, "pool red"},
		{"broadcast address", Request{Addresses: []netip.Addr{addr("192.0.2.7")}}, ErrNeverGiven, "pool red"},
		{"a node's address", Request{Addresses: []netip.Addr{addr("203.0.113.20")}}, ErrNeverGiven, "pool node"},
		{"in no pool", Request{Addresses: []netip.Addr{addr("192.0.2.8")}}, ErrNotInPool, "no pool has it"},
		{"in another pool", Request{Addresses: []netip.Addr{addr("192.0.2.5")}, Pools: []string{"tight"}}, ErrNotInPool, "belongs to pool red"},
		{"unknown pool", Request{Pools: []string{"green"}}, ErrUnknownPool, "pool green"},
		{"pool of others", Request{Pools: []string{"blue"}}, ErrNotAllowed, "namespaceSelector does not match prod"},
		{"address of others", Request{Addresses: []netip.Addr{addr("198.51.100.1")}}, ErrNotAllowed, "pool blue"},
		{"draining", Request{Pools: []string{"dry"}}, ErrDraining, "pool dry"},
		{"address that drains", Request{Addresses: []netip.Addr{addr("203.0.113.1")}}, ErrDraining, "203.0.113.1: pool dry"},
		{"limit", Request{Pools: []string{"tight"}}, ErrLimit, "namespace prod holds 1 of the 1 addresses that it may hold of pool tight"},
		{"no such family", Request{Families: []Family{IPv6}}, ErrNoPool, "IPv6"},
		{"two of one family", Request{Addresses: []netip.Addr{addr("192.0.2.1"), addr("192.0.2.2")}}, ErrInvalid, "both IPv4"},
		{"three pools", Request{Pools: []string{"a", "b", "c"}}, ErrInvalid, "3 pools"},
		{"mapped", Request{Addresses: []netip.Addr{addr("::ffff:192.0.2.1")}}, ErrInvalid, "ParseAddress"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := l.Reserve(t.Context(), ask(c.ask))
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got: %v\nwant %v with %q", err, c.want, c.text)
			}
		})
	}
	if _, err := l.Reserve(t.Context(), ask(Request{Pools: []string{"blue"}, NamespaceLabels: map[string]string{"team": "blue"}})); err != nil {
		t.Errorf("a pool of ours: %v", err)
	}
}

// A full pool says so, and when the next address has rested.
func TestFull(t *testing.T) {
	l, c := start(t, pool(t, "red", "192.0.2.1-192.0.2.2"))
	give(t, l, vm("a"))
	give(t, l, vm("b"))
	if _, err := l.Release(t.Context(), vm("a").UID, Cause{}); err != nil {
		t.Fatal(err)
	}
	_, err := l.Reserve(t.Context(), ask(Request{Name: "c"}))
	var full *FullError
	if !errors.As(err, &full) || full.Quarantined != 1 || !full.Next.Equal(c.now().Add(DefaultQuarantine)) {
		t.Errorf("%v: %+v", err, full)
	}
	c.advance(DefaultQuarantine)
	if offer, err := l.Reserve(t.Context(), ask(Request{Name: "c"})); err != nil || offer.Addresses[0] != addr("192.0.2.1") {
		t.Errorf("after the quarantine: %v, %v", offer.Addresses, err)
	}
}

// A dry run gives the answer that the real request gets, and leaves file and memory as they were.
func TestDryRunChangesNothing(t *testing.T) {
	c := newClock()
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := openTest(t, path, c, pool(t, "red", "192.0.2.0/28"), pool(t, "six", "2001:db8::/64"))
	give(t, l, vm("a"))
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := ask(Request{Name: "b", DryRun: true})
	var dry Offer
	for range 3 {
		if dry, err = l.Reserve(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	after, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file changed, %v", err)
	}
	if got := l.ByClaim(r.Claim); got != nil {
		t.Errorf("a dry run reserved %v", got)
	}
	if _, err := l.Commit(t.Context(), r.Claim, vm("b"), nil, Cause{}); !errors.Is(err, ErrUnknownClaim) {
		t.Errorf("commit of a dry run: %v", err)
	}
	r.DryRun = false
	real, err := l.Reserve(t.Context(), r)
	if diff := cmp.Diff(dry.Addresses, real.Addresses, cmp.Comparer(sameAddress)); err != nil || diff != "" {
		t.Errorf("%v, (-dry run +real):\n%s", err, diff)
	}
}

// The API server may call twice, validate one object under several names and UIDs, or come back after a restart: there is
// one allocation of each family all the while.
func TestTwoPhases(t *testing.T) {
	c := newClock()
	path := filepath.Join(t.TempDir(), "ledger.db")
	pools := []Pool{pool(t, "red", "192.0.2.0/28"), pool(t, "six", "2001:db8::/64")}
	l := openTest(t, path, c, pools...)
	r := ask(Request{}) // generateName: no name yet
	offer, err := l.Reserve(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	again, err := l.Reserve(t.Context(), r)
	if diff := cmp.Diff(offer, again, cmp.Comparer(sameAddress)); err != nil || diff != "" {
		t.Errorf("called twice: %v (-first +second):\n%s", err, diff)
	}
	if err := l.Close(); err != nil { // between the phases
		t.Fatal(err)
	}
	l = openTest(t, path, c, pools...)
	for _, name := range []string{"web-1", "web-2", "web-3", "web-3"} {
		lines, err := l.Commit(t.Context(), r.Claim, vm(name), offer.Addresses, Cause{})
		if err != nil || len(lines) != 2 || lines[0].Owner != vm(name) {
			t.Fatalf("%s: %+v, %v", name, lines, err)
		}
	}
	if committed, err := l.Reserve(t.Context(), r); err != nil || !committed.Committed || len(committed.Addresses) != 2 {
		t.Errorf("called again after the commit: %+v, %v", committed, err)
	}
	if report := checkClean(t, l, Against{Pools: pools}); report.Held != 2 {
		t.Errorf("%d held, want 2", report.Held)
	}
	if got := l.ByOwner(vm("web-1").UID); len(got) != 0 {
		t.Errorf("the first UID holds %v", got)
	}
	if _, err := l.Bind(t.Context(), r.Claim, vm("web-3"), Cause{}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Commit(t.Context(), r.Claim, vm("copy"), nil, Cause{}); !errors.Is(err, ErrClaimInUse) {
		t.Errorf("a copy with the claim of a VM that lives: %v", err)
	}
	if _, err := l.Release(t.Context(), vm("web-1").UID, Cause{}); err != nil || len(l.ByOwner(vm("web-3").UID)) != 2 {
		t.Errorf("the release of an earlier UID took the address away, %v", err)
	}
	if _, err := l.Commit(t.Context(), floatip.NewClaim(), vm("web-3"), []netip.Addr{addr("192.0.2.9")}, Cause{}); !errors.Is(err, ErrOwnerHolds) {
		t.Errorf("a second IPv4 address: %v", err)
	}
}

// An expired promise goes to whoever comes, and the late commit learns who has it.
func TestLateCommit(t *testing.T) {
	l, c := start(t, pool(t, "red", "192.0.2.1-192.0.2.2"))
	slow := ask(Request{Name: "slow"})
	offer, err := l.Reserve(t.Context(), slow)
	if err != nil {
		t.Fatal(err)
	}
	c.advance(46 * time.Second)
	give(t, l, vm("quick"), offer.Addresses[0])
	if _, err := l.Commit(t.Context(), slow.Claim, vm("slow"), nil, Cause{}); !errors.Is(err, ErrUnknownClaim) {
		t.Errorf("without its address: %v", err)
	}
	_, err = l.Commit(t.Context(), slow.Claim, vm("slow"), offer.Addresses, Cause{})
	var taken *TakenError
	if !errors.As(err, &taken) || taken.Holder.Owner != vm("quick") {
		t.Errorf("with its address: %v", err)
	}
}

// Many ask for one address at once: one gets it, all others learn who.
func TestOneAddressManyWriters(t *testing.T) {
	l, _ := start(t, pool(t, "red", "192.0.2.1-192.0.2.100"))
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for i := range 64 {
		wg.Go(func() {
			owner, claim := vm(fmt.Sprint(i)), floatip.NewClaim()
			_, err := l.Commit(t.Context(), claim, owner, []netip.Addr{addr("192.0.2.7")}, Cause{})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !errors.Is(err, ErrTaken) {
				t.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d have the address", won)
	}
	checkClean(t, l, Against{})
}

// What is Pending for long is shown to the caller and never freed by itself.
func TestStalePending(t *testing.T) {
	l, c := start(t, pool(t, "red", "192.0.2.0/28"))
	old := give(t, l, vm("old"))
	bound := give(t, l, vm("bound"))
	if _, err := l.Bind(t.Context(), bound.Claim, vm("bound"), Cause{}); err != nil {
		t.Fatal(err)
	}
	c.advance(80 * time.Second)
	give(t, l, vm("young"))
	c.advance(10 * time.Second)
	stale := l.StalePending(90 * time.Second)
	if len(stale) != 1 || stale[0].Address != old.Address {
		t.Errorf("stale: %+v", stale)
	}
	c.advance(1000 * time.Hour)
	if line, _ := l.Lookup(old.Address); line.State != Pending {
		t.Errorf("age alone freed it: %+v", line)
	}
	counts := l.Pools()[0].IPv4
	if diff := cmp.Diff("14 used 3 pending 2 quarantined 0", fmt.Sprintf("%s used %d pending %d quarantined %d",
		counts.Capacity, counts.Used, counts.Pending, counts.Quarantined)); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
}

// A pool in use cannot shrink or go; the first ten holders are named. Empty it can.
func TestChangeOfAPoolInUse(t *testing.T) {
	l, _ := start(t, pool(t, "red", "192.0.2.0/26"))
	for i := range 12 {
		give(t, l, vm(fmt.Sprintf("vm-%02d", i)))
	}
	err := l.CanDelete("red")
	var used *InUseError
	if !errors.As(err, &used) || used.Count != 12 || len(used.Holders) != 10 ||
		!strings.Contains(err.Error(), "192.0.2.1 (VM prod/vm-00)") || !strings.Contains(err.Error(), "and 2 more") {
		t.Errorf("delete: %v", err)
	}
	if err := l.CanChange(pool(t, "red", "192.0.2.1-192.0.2.12")); err != nil {
		t.Errorf("shrink to what is held: %v", err)
	}
	if err := l.CanChange(pool(t, "red", "192.0.2.2-192.0.2.62")); !errors.As(err, &used) || used.Count != 1 {
		t.Errorf("shrink below: %v", err)
	}
	// Another pool that has the address keeps it: a pool in use is split by making the other one first.
	l.SetPools([]Pool{pool(t, "red", "192.0.2.0/26"), pool(t, "rest", "192.0.2.1-192.0.2.1")})
	if err := l.CanChange(pool(t, "red", "192.0.2.2-192.0.2.62")); err != nil {
		t.Errorf("shrink to what no other pool has: %v", err)
	}
	if err := l.CanDelete("red"); !errors.As(err, &used) || used.Count != 11 {
		t.Errorf("delete while another pool has one of its addresses: %v", err)
	}
	l.SetPools([]Pool{pool(t, "red", "192.0.2.0/26")})
	for i := range 12 {
		if _, err := l.Release(t.Context(), vm(fmt.Sprintf("vm-%02d", i)).UID, Cause{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.CanDelete("red"); err != nil {
		t.Errorf("delete when empty: %v", err)
	}
}

// The history tells who had an address, from when to when, and by whose request; it is bounded.
func TestHistory(t *testing.T) {
	c := newClock()
	l, err := Open(filepath.Join(t.TempDir(), "ledger.db"), Options{Now: c.now, HistorySize: 50, HistoryAge: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := pool(t, "red", "192.0.2.0/28")
	p.Quarantine = 0
	l.SetPools([]Pool{p})
	a := give(t, l, vm("a")).Address
	c.advance(time.Minute)
	l.Release(t.Context(), vm("a").UID, Cause{Reason: "VM is gone"})
	c.advance(time.Minute)
	give(t, l, vm("b"), a)

	events, err := l.History(Query{Address: a})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range events {
		got = append(got, fmt.Sprint(e.Action, " ", e.Owner, " ", e.Cause.User, e.Cause.RequestUID, e.Cause.Reason))
	}
	want := []string{"Committed prod/a alicer-a", "Released prod/a VM is gone", "Committed prod/b alicer-b"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, c := range []struct {
		name  string
		query Query
		n     int
	}{
		{"by VM", Query{Namespace: "prod", Name: "a"}, 2},
		{"by UID", Query{UID: vm("b").UID}, 1},
		{"by namespace", Query{Namespace: "dev"}, 0},
		{"from", Query{From: events[1].Time}, 2},
		{"until", Query{Until: events[1].Time}, 1},
		{"limit", Query{Limit: 1}, 1},
		{"all", Query{}, 3},
	} {
		if got, err := l.History(c.query); err != nil || len(got) != c.n {
			t.Errorf("%s: %d events, %v, want %d", c.name, len(got), err, c.n)
		}
	}

	for i := range 100 {
		give(t, l, vm(fmt.Sprint("x", i)))
		l.Release(t.Context(), vm(fmt.Sprint("x", i)).UID, Cause{})
	}
	if got, err := l.History(Query{}); err != nil || len(got) != 50 {
		t.Errorf("bounded by size: %d events, %v", len(got), err)
	}
	c.advance(2 * time.Hour)
	for i := range 6 {
		give(t, l, vm(fmt.Sprint("y", i)))
	}
	if got, err := l.History(Query{Until: c.now().Add(-time.Hour)}); err != nil || len(got) > 50-6*trimStep {
		t.Errorf("bounded by age: %d old events, %v", len(got), err)
	}
	checkClean(t, l, Against{})
}

// TestBindBesidesWhatItHolds: a VM that shows the claim of another one, which the API server has not stored yet, does not
// get the other one's address on top of its own.
func TestBindBesidesWhatItHolds(t *testing.T) {
	l, _ := start(t, pool(t, "red", "192.0.2.0/29", "2001:db8::/64"))
	a, b := vm("a"), vm("b")
	give(t, l, a, addr("192.0.2.1"))
	both := give(t, l, b, addr("192.0.2.2"), addr("2001:db8::2"))
	if _, err := l.Bind(t.Context(), both.Claim, a, Cause{}); !errors.Is(err, ErrOwnerHolds) {
		t.Errorf("bind: %v, want %v", err, ErrOwnerHolds)
	}
	for _, line := range l.ByClaim(both.Claim) {
		if line.Owner != b || line.State != Pending {
			t.Errorf("%+v, want it Pending for b", line)
		}
	}
	if _, err := l.Bind(t.Context(), both.Claim, b, Cause{}); err != nil {
		t.Error(err)
	}
}

// TestReleasePending: what a machine holds is given back as long as none of it is Bound.
func TestReleasePending(t *testing.T) {
	l, _ := start(t, pool(t, "red", "192.168.100.50-192.168.100.59"))
	line := give(t, l, vm("a"))
	if released, err := l.ReleasePending(t.Context(), "", Cause{}); !errors.Is(err, ErrInvalid) || released != nil {
		t.Errorf("of nobody: %v, %v", released, err)
	}
	if _, err := l.Bind(t.Context(), line.Claim, vm("a"), Cause{}); err != nil {
		t.Fatal(err)
	}
	if released, err := l.ReleasePending(t.Context(), vm("a").UID, Cause{}); err != nil || len(released) != 0 {
		t.Errorf("of a machine that is Bound: %v, %v; want nothing", released, err)
	}
	if got, _ := l.Lookup(line.Address); got.State != Bound || got.Claim != line.Claim {
		t.Errorf("the ledger has %+v, want it Bound", got)
	}
	line = give(t, l, vm("b"))
	if released, err := l.ReleasePending(t.Context(), vm("b").UID, Cause{}); err != nil || len(released) != 1 {
		t.Errorf("of a machine that is Pending: %v, %v; want its address", released, err)
	}
	if got, _ := l.Lookup(line.Address); got.State != Released {
		t.Errorf("the ledger has %+v, want it Released", got)
	}
}
