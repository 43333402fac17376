package ipam

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"floatip.io/floatip"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// clock is a time that a test moves.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func pool(t testing.TB, name string, addresses ...string) Pool {
	t.Helper()
	p, err := ParsePool(PoolText{Name: name, Addresses: addresses})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// openTest opens a ledger that is checked and closed at the end of the test, if the test has not closed it.
func openTest(t testing.TB, path string, c *clock, pools ...Pool) *Ledger {
	t.Helper()
	return openWith(t, path, Options{Now: c.now}, pools...)
}

func openWith(t testing.TB, path string, options Options, pools ...Pool) *Ledger {
	t.Helper()
	l, err := Open(path, options)
	if err != nil {
		t.Fatal(err)
	}
	l.SetPools(pools)
	t.Cleanup(func() {
		report, err := l.Check(context.Background(), Against{})
		if err := errors.Join(err, report.Err()); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		l.Close()
	})
	return l
}

func vm(name string) floatip.Owner {
	return floatip.Owner{Namespace: "prod", Name: name, UID: "uid-" + name}
}

// give takes the next address for a VM, through both phases.
func give(t testing.TB, l *Ledger, owner floatip.Owner, wanted ...netip.Addr) Allocation {
	t.Helper()
	claim := floatip.NewClaim()
	offer, err := l.Reserve(t.Context(), Request{Claim: claim, Namespace: owner.Namespace, Name: owner.Name, Addresses: wanted})
	if err != nil {
		t.Fatal(err)
	}
	lines, err := l.Commit(t.Context(), claim, owner, offer.Addresses, Cause{User: "alice", RequestUID: "r-" + owner.Name})
	if err != nil {
		t.Fatal(err)
	}
	return lines[0]
}

func TestLifeOfAnAddress(t *testing.T) {
	c := newClock()
	path := filepath.Join(t.TempDir(), "ledger.db")
	p := pool(t, "red", "192.168.100.50-192.168.100.52")
	l := openTest(t, path, c, p)

	line := give(t, l, vm("a"))
	want := Allocation{Address: addr("192.168.100.50"), Pool: "red", Owner: vm("a"), State: Pending, Since: c.now()}
	if diff := cmp.Diff(want, line, cmpopts.IgnoreFields(Allocation{}, "Claim"), cmp.Comparer(sameAddress)); diff != "" {
		t.Errorf("after Commit (-want +got):\n%s", diff)
	}
	if _, err := l.Bind(t.Context(), line.Claim, vm("a"), Cause{}); err != nil {
		t.Fatal(err)
	}

	_, err := l.Reserve(t.Context(), Request{Claim: floatip.NewClaim(), Namespace: "dev", Name: "b", Addresses: []netip.Addr{line.Address}})
	var taken *TakenError
	if !errors.As(err, &taken) || taken.Holder.Owner != vm("a") {
		t.Errorf("reserve a held address: %v", err)
	}

	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openTest(t, path, c, p)
	if got, ok := l.Lookup(line.Address); !ok || got.State != Bound || got.Owner != vm("a") {
		t.Errorf("after a restart: %+v", got)
	}

	if _, err := l.Release(t.Context(), vm("a").UID, Cause{Reason: "VM is gone"}); err != nil {
		t.Fatal(err)
	}
	give(t, l, vm("b"))
	give(t, l, vm("c"))
	_, err = l.Reserve(t.Context(), Request{Claim: floatip.NewClaim(), Namespace: "prod", Name: "d"})
	if !errors.Is(err, ErrFull) {
		t.Errorf("an address that rests was given: %v", err)
	}
	c.advance(time.Minute)
	if got := give(t, l, floatip.Owner{Namespace: "prod", Name: "a", UID: "second"}); got.Address != line.Address {
		t.Errorf("the VM of the same name got %s, want its old %s", got.Address, line.Address)
	}
}

func sameAddress(a, b netip.Addr) bool { return a == b }
