package ipam

import (
	"context"
	"errors"
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
