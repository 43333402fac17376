package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"floatip.io/floatip"
)

// stuck is a ledger whose file the test holds, so that a transaction is under way until it lets go.
type stuck struct {
	t  *testing.T
	l  *Ledger
	tx *bbolt.Tx
}

// newStuck opens a ledger that folds everything at once, with VMs that hold the first addresses of the pool.
func newStuck(t *testing.T, addresses string, vms ...string) *stuck {
	t.Helper()
	l, err := Open(filepath.Join(t.TempDir(), "ledger.db"), Options{Now: newClock().now, HistorySize: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	l.SetPools([]Pool{pool(t, "red", addresses)})
	for _, name := range vms {
		give(t, l, vm(name))
	}
	return &stuck{t: t, l: l}
}

// hold makes the next transaction wait.
func (s *stuck) hold() {
	s.t.Helper()
	var err error
	if s.tx, err = s.l.store.db.Begin(true); err != nil {
		s.t.Fatal(err)
	}
}

// start runs f, which calls one verb, until applied says that its operation is.
func (s *stuck) start(applied func() bool, f func() error) <-chan error {
	s.t.Helper()
	answer := make(chan error, 1)
	go func() { answer <- f() }()
	for !applied() {
		select {
		case err := <-answer:
			s.t.Fatalf("it did not wait for the transaction: %v", err)
		default:
			runtime.Gosched()
		}
	}
	return answer
}

// startSpoilt starts a transaction that will fail.
func (s *stuck) startSpoilt(holder string) <-chan error {
	s.t.Helper()
	underWay := func() bool { return len(s.l.Disputes()) > 0 && s.l.writer.waiting.Load() == 0 }
	return s.start(underWay, func() error { return s.spoil(s.t.Context(), holder) })
}

// waiting says that n operations wait for the transaction after the one that is under way.
func (s *stuck) waiting(n int32) func() bool {
	return func() bool { return s.l.writer.waiting.Load() == n }
}

// spoil adopts a claimant that does not fit into the file: keys have at most 32 KiB (bbolt.MaxKeySize).
func (s *stuck) spoil(ctx context.Context, holder string) error {
	claimant := floatip.Owner{Namespace: "prod", Name: "large", UID: strings.Repeat("u", bbolt.MaxKeySize)}
	line := s.l.ByOwner("uid-" + holder)[0]
	_, err := s.l.Adopt(ctx, []Sighting{{Address: line.Address, Owner: claimant, Source: "FloatingIP"}}, false)
	return err
}

func (s *stuck) check() {
	s.t.Helper()
	report, err := s.l.Check(s.t.Context(), Against{})
	if err := errors.Join(err, report.Err()); err != nil {
		s.t.Error(err)
	}
}

// TestFailedTransactionTakesWhatCameAfterIt: operations that were applied while a transaction was under way may have built
// on it. When it fails, all of them fail, nothing of them is left, and each works again.
func TestFailedTransactionTakesWhatCameAfterIt(t *testing.T) {
	s := newStuck(t, "192.0.2.0/29", "a", "b")
	ctx, claim, c := t.Context(), floatip.NewClaim(), vm("c")
	offer, err := s.l.Reserve(ctx, Request{Claim: claim, Namespace: c.Namespace, Name: c.Name})
	if err != nil {
		t.Fatal(err)
	}
	commit := func() error {
		_, err := s.l.Commit(ctx, claim, c, offer.Addresses, Cause{})
		return err
	}
	release := func() error {
		_, err := s.l.Release(ctx, "uid-a", Cause{})
		return err
	}
	s.hold()
	answers := map[string]<-chan error{"the one that fails": s.startSpoilt("a")}
	answers["a release that hands over to the claimant"] = s.start(s.waiting(1), release)
	answers["a commit"] = s.start(s.waiting(2), commit)
	answers["a commit again, which only confirms"] = s.start(s.waiting(3), commit)
	if len(s.l.ByOwner("uid-a")) != 0 || len(s.l.ByOwner("uid-c")) != 1 {
		t.Error("the operations are not applied while the transaction waits: the test shows nothing")
	}
	if err := s.tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	for what, answer := range answers {
		if err := <-answer; err == nil || !strings.Contains(err.Error(), "key too large") {
			t.Errorf("%s: %v, want the transaction's error", what, err)
		}
	}
	if lines := s.l.ByOwner("uid-a"); len(lines) != 1 || lines[0].Disputed || len(s.l.Disputes()) != 0 {
		t.Errorf("a holds %+v, disputes %+v; want what it was before", lines, s.l.Disputes())
	}
	if lines := s.l.ByClaim(claim); len(lines) != 1 || lines[0].State != Reserved {
		t.Errorf("the promise is %+v, want it back", lines)
	}
	s.check()
	if err := errors.Join(commit(), release()); err != nil {
		t.Error(err)
	}
	s.check()
}

// TestPromiseOfAFailedRelease: an address was promised when its release, which then failed, had been applied. It is nobody
// else's while the promise lasts, not even after it is released for good.
func TestPromiseOfAFailedRelease(t *testing.T) {
	s := newStuck(t, "192.0.2.1-192.0.2.2", "a", "b")
	ctx := t.Context()
	s.hold()
	spoilt := s.startSpoilt("a")
	released := s.start(s.waiting(1), func() error {
		_, err := s.l.Release(ctx, "uid-b", Cause{})
		return err
	})
	offer, err := s.l.Reserve(ctx, Request{Claim: floatip.NewClaim(), Namespace: "prod", Name: "b"})
	if err != nil || offer.Addresses[0] != addr("192.0.2.2") {
		t.Fatalf("the machine of the same name is promised %v, %v; want its old address", offer.Addresses, err)
	}
	if err := s.tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if <-spoilt == nil || <-released == nil {
		t.Fatal("the transaction was to fail")
	}
	s.check()
	later := vm("b")
	later.UID = "uid-later"
	var taken *TakenError
	if _, err := s.l.Commit(ctx, offer.Claim, later, nil, Cause{}); !errors.As(err, &taken) {
		t.Errorf("commit of the promise: %v, want that b has the address", err)
	}
	if _, err := s.l.Release(ctx, "uid-b", Cause{}); err != nil {
		t.Fatal(err)
	}
	s.check()
	if stranger, err := s.l.Reserve(ctx, Request{Claim: floatip.NewClaim(), Namespace: "other", Name: "x"}); !errors.Is(err, ErrFull) {
		t.Errorf("a stranger is promised %v, %v; want nothing", stranger.Addresses, err)
	}
	if _, err := s.l.Commit(ctx, offer.Claim, later, nil, Cause{}); err != nil {
		t.Errorf("commit of the promise, now that the address is released: %v", err)
	}
	s.check()
}

// TestWritersShareATransaction: a lone commit is one transaction, and so are sixty-four that come while another one is under
// way.
func TestWritersShareATransaction(t *testing.T) {
	s := newStuck(t, "192.0.2.0/24")
	transactions := func() (id int) {
		if err := s.l.store.db.View(func(tx *bbolt.Tx) error { id = tx.ID(); return nil }); err != nil {
			t.Fatal(err)
		}
		return id
	}
	commit := func(n int) func() error {
		owner, claim := vm(fmt.Sprint("vm-", n)), floatip.NewClaim()
		offer, err := s.l.Reserve(t.Context(), Request{Claim: claim, Namespace: owner.Namespace, Name: owner.Name})
		if err != nil {
			t.Fatal(err)
		}
		return func() error {
			_, err := s.l.Commit(t.Context(), claim, owner, offer.Addresses, Cause{})
			return err
		}
	}
	before := transactions()
	if err := commit(0)(); err != nil {
		t.Fatal(err)
	}
	if n := transactions() - before; n != 1 {
		t.Errorf("a lone commit took %d transactions", n)
	}
	before = transactions()
	s.hold()
	underWay := func() bool { return len(s.l.ByOwner("uid-vm-1")) > 0 && s.l.writer.waiting.Load() == 0 }
	answers := []<-chan error{s.start(underWay, commit(1))}
	for n := range 64 {
		answers = append(answers, s.start(s.waiting(int32(n+1)), commit(n+2)))
	}
	if err := s.tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	for _, answer := range answers {
		if err := <-answer; err != nil {
			t.Error(err)
		}
	}
	if n := transactions() - before; n != 2 {
		t.Errorf("one commit and the sixty-four after it took %d transactions, want 2", n)
	}
	s.check()
}

// TestPromiseThatWasPromisedAgain: a promise is taken up, what it gave is released and promised to somebody else, and all of
// that fails. The address is promised once.
func TestPromiseThatWasPromisedAgain(t *testing.T) {
	s := newStuck(t, "192.0.2.1-192.0.2.2", "a")
	ctx, c := t.Context(), vm("c")
	p := pool(t, "red", "192.0.2.1-192.0.2.2")
	p.Quarantine = 0
	s.l.SetPools([]Pool{p})
	first, err := s.l.Reserve(ctx, Request{Claim: floatip.NewClaim(), Namespace: c.Namespace, Name: c.Name})
	if err != nil {
		t.Fatal(err)
	}
	s.hold()
	answers := []<-chan error{s.startSpoilt("a")}
	answers = append(answers, s.start(s.waiting(1), func() error {
		_, err := s.l.Commit(ctx, first.Claim, c, nil, Cause{})
		return err
	}))
	answers = append(answers, s.start(s.waiting(2), func() error {
		_, err := s.l.Release(ctx, c.UID, Cause{})
		return err
	}))
	second, err := s.l.Reserve(ctx, Request{Claim: floatip.NewClaim(), Namespace: "other", Name: "x"})
	if err != nil || second.Addresses[0] != first.Addresses[0] {
		t.Fatalf("promised again: %v, %v; want %v", second.Addresses, err, first.Addresses)
	}
	if err := s.tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	for _, answer := range answers {
		if <-answer == nil {
			t.Fatal("the transactions were to fail")
		}
	}
	s.check()
	s.l.Withdraw(first.Claim) // as when the API server is told of the failure
	s.check()
	if third, err := s.l.Reserve(ctx, Request{Claim: floatip.NewClaim(), Namespace: "third", Name: "y"}); !errors.Is(err, ErrFull) {
		t.Errorf("a third VM is promised %v, %v; want nothing", third.Addresses, err)
	}
	x := floatip.Owner{Namespace: "other", Name: "x", UID: "uid-x"}
	if _, err := s.l.Commit(ctx, second.Claim, x, nil, Cause{}); err != nil {
		t.Errorf("commit of the second promise: %v", err)
	}
	if _, err := s.l.Commit(ctx, first.Claim, c, first.Addresses, Cause{}); !errors.Is(err, ErrTaken) {
		t.Errorf("commit of the first one: %v, want that x has it", err)
	}
	s.check()
}

// TestPoolsThatChangeUnderATransaction: a transaction fails after its address went to another pool. What is put back counts
// where it is.
func TestPoolsThatChangeUnderATransaction(t *testing.T) {
	s := newStuck(t, "192.0.2.1-192.0.2.4", "a", "b")
	s.hold()
	spoilt := s.startSpoilt("a")
	released := s.start(s.waiting(1), func() error {
		_, err := s.l.Release(t.Context(), "uid-b", Cause{})
		return err
	})
	s.l.SetPools([]Pool{pool(t, "blue", "192.0.2.1-192.0.2.4")})
	if err := s.tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if <-spoilt == nil || <-released == nil {
		t.Fatal("the transactions were to fail")
	}
	s.check()
	if counts := s.l.Pools()[0].IPv4; counts.Used != 2 {
		t.Errorf("%d are used in the pool that has them, want 2", counts.Used)
	}
	if err := s.l.CanDelete("blue"); !errors.Is(err, ErrInUse) {
		t.Errorf("the pool that has them may go: %v", err)
	}
}

// TestOneKeyForOneAddress: what is not written as ParseAddress writes it is taken by no verb: under a second key it would be a
// second address, which a promise does not protect, and a mapped one could not be read from the file again.
func TestOneKeyForOneAddress(t *testing.T) {
	c, path := newClock(), filepath.Join(t.TempDir(), "ledger.db")
	red := pool(t, "red", "192.0.2.0/29", "2001:db8::/64")
	l := openTest(t, path, c, red)
	promised, err := l.Reserve(t.Context(), ask(Request{Name: "a", Families: []Family{IPv6}}))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{addr("::ffff:192.0.2.1"), promised.Addresses[0].WithZone("eth0"), {}} {
		if _, err := l.Commit(t.Context(), floatip.NewClaim(), vm("b"), []netip.Addr{a}, Cause{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("commit of %s: %v", a, err)
		}
		if _, err := l.Adopt(t.Context(), []Sighting{sighting(vm("b"), a)}, false); !errors.Is(err, ErrInvalid) {
			t.Errorf("adopt %s: %v", a, err)
		}
	}
	checkClean(t, l, Against{})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openTest(t, path, c, red)
	for line := range l.All() {
		t.Errorf("the file has %+v", line)
	}
}

// TestFailureLeavesNoGap: after a transaction that failed, as on a full disk, the history goes on where it was. A gap would be
// damage to the next start.
func TestFailureLeavesNoGap(t *testing.T) {
	c, path := newClock(), filepath.Join(t.TempDir(), "ledger.db")
	red := pool(t, "red", "192.0.2.0/28")
	l := openTest(t, path, c, red)
	give(t, l, vm("before"))
	full := errors.New("no space left on device")
	l.store.doubt = full
	_, err := l.Commit(t.Context(), floatip.NewClaim(), vm("fails"), []netip.Addr{addr("192.0.2.9")}, Cause{})
	if !errors.Is(err, full) {
		t.Fatal(err)
	}
	l.store.doubt = nil // there is room again
	give(t, l, vm("after"))
	checkClean(t, l, Against{})
	killed := copyOf(t, path) // as a process that is killed leaves it
	again := openTest(t, killed, c, red)
	for _, name := range []string{"before", "after"} {
		if len(again.ByOwner(vm(name).UID)) != 1 {
			t.Errorf("%s holds nothing after the next start", name)
		}
	}
}
