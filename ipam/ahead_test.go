package ipam

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.etcd.io/bbolt"

	"floatip.io/floatip"
)

// openSlow opens a ledger that writes what nobody waits for with the next transaction and not before.
func openSlow(t *testing.T, c *clock, pools ...Pool) (*Ledger, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ledger.db")
	return openWith(t, path, Options{Now: c.now, delay: time.Hour}, pools...), path
}

// ahead promises the next addresses of the pools to a VM, or to one whose name is not known, and has that on the disk.
func ahead(t *testing.T, l *Ledger, name string, wanted ...netip.Addr) Offer {
	t.Helper()
	offer, err := l.Reserve(t.Context(), Request{
		Claim: floatip.NewClaim(), Namespace: "prod", Name: name, Addresses: wanted, WriteAhead: true,
		Cause: Cause{User: "alice", RequestUID: "r-" + name},
	})
	if err != nil {
		t.Fatal(err)
	}
	l.settle()
	return offer
}

func commitTo(t *testing.T, l *Ledger, offer Offer, owner floatip.Owner) {
	t.Helper()
	if _, err := l.Commit(t.Context(), offer.Claim, owner, offer.Addresses, Cause{User: "alice", RequestUID: "second"}); err != nil {
		t.Fatal(err)
	}
}

// fileSays returns what the file at path says about a, which nobody closed: its allocation, and the claim that it is promised
// to.
func fileSays(t *testing.T, path string, a netip.Addr) (Allocation, floatip.Claim) {
	t.Helper()
	file := readFile(t, path)
	return file.lines[a], file.promised[a]
}

func readFile(t *testing.T, path string) checker {
	t.Helper()
	s, err := openStore(copyOf(t, path), 0, func(_, _, _ []byte) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	var c checker
	if err := s.db.View(func(tx *bbolt.Tx) error { c.file(tx); return nil }); err != nil {
		t.Fatal(err)
	}
	if err := c.report.Err(); err != nil {
		t.Error(err)
	}
	return c
}

// TestCommitOfAPromiseThatIsWritten: it does not wait for the disk, which is busy here until the test lets go.
func TestCommitOfAPromiseThatIsWritten(t *testing.T) {
	s := newStuck(t, "192.0.2.0/29")
	offer := ahead(t, s.l, "a")
	s.hold()
	commitTo(t, s.l, offer, vm("a"))
	if line, _ := s.l.Lookup(offer.Addresses[0]); line.State != Pending || line.Owner != vm("a") {
		t.Errorf("after Commit: %+v", line)
	}
	s.tx.Rollback()
	s.check()
}

// TestCommitWaitsForItsPromise: while the promise is on its way to the disk nothing is acknowledged.
func TestCommitWaitsForItsPromise(t *testing.T) {
	s := newStuck(t, "192.0.2.0/29")
	s.hold()
	offer, err := s.l.Reserve(t.Context(), Request{Claim: floatip.NewClaim(), Namespace: "prod", Name: "a", WriteAhead: true})
	if err != nil {
		t.Fatal(err)
	}
	for underWay := s.waiting(0); !underWay(); {
		runtime.Gosched()
	}
	applied := func() bool { return len(s.l.ByOwner("uid-a")) == 1 }
	answer := s.start(applied, func() error {
		_, err := s.l.Commit(t.Context(), offer.Claim, vm("a"), offer.Addresses, Cause{})
		return err
	})
	select {
	case err := <-answer:
		t.Errorf("it did not wait: %v", err)
	default:
	}
	s.tx.Rollback()
	if err := <-answer; err != nil {
		t.Error(err)
	}
	s.check()
}

// TestPromiseThatIsNotWritten: it stands as any other, and its Commit waits for the disk as any other.
func TestPromiseThatIsNotWritten(t *testing.T) {
	c := newClock()
	l, path := openSlow(t, c, pool(t, "red", "192.0.2.0/29"))
	spoilt := errors.New("the disk is away")
	l.store.doubt = spoilt
	offer := ahead(t, l, "a")
	if _, err := l.Commit(t.Context(), offer.Claim, vm("a"), offer.Addresses, Cause{}); !errors.Is(err, spoilt) {
		t.Errorf("commit: %v", err)
	}
	if lines := l.ByClaim(offer.Claim); len(lines) != 1 || lines[0].State != Reserved {
		t.Errorf("after that: %+v", lines)
	}
	l.store.doubt = nil
	commitTo(t, l, offer, vm("a"))
	if line, claim := fileSays(t, path, offer.Addresses[0]); line.Owner != vm("a") || !claim.IsZero() {
		t.Errorf("the file says %+v, promised to %s", line, claim)
	}
}

// TestAcknowledgedWhileTheDiskFails: the promise was acknowledged, and the transaction that follows it fails. The VM keeps
// what it was told, however long that lasts.
func TestAcknowledgedWhileTheDiskFails(t *testing.T) {
	c := newClock()
	l, path := openSlow(t, c, pool(t, "red", "192.0.2.0/29"))
	offer := ahead(t, l, "a")
	commitTo(t, l, offer, vm("a"))
	l.store.doubt = errors.New("the disk is away")
	if _, err := l.Bind(t.Context(), offer.Claim, vm("a"), Cause{}); !errors.Is(err, l.store.doubt) {
		t.Errorf("bind: %v", err)
	}
	if young := l.StalePending(time.Second); len(young) > 0 {
		t.Errorf("it was kept this moment and is called old: %+v", young)
	}
	c.advance(time.Hour)
	if line, _ := l.Lookup(offer.Addresses[0]); line.State != Pending || line.Owner != (floatip.Owner{Namespace: "prod", Name: "a"}) {
		t.Errorf("it is %+v, want it kept for the VM", line)
	}
	l.store.doubt = nil
	if _, claim := fileSays(t, path, offer.Addresses[0]); claim != offer.Claim {
		t.Errorf("the file promises it to %s", claim)
	}
	if got := give(t, l, vm("b")).Address; got == offer.Addresses[0] {
		t.Errorf("%s was given to another VM", got)
	}
	if _, err := l.Bind(t.Context(), offer.Claim, vm("a"), Cause{}); err != nil {
		t.Error(err)
	}
	checkBound(t, l, offer, vm("a"))
}

// crashed promises addresses to a VM of that name, "" if it is not known yet, and acknowledges them for VM a. It returns the
// ledger as the next process finds it, whose file has no more than the promise.
func crashed(t *testing.T, c *clock, name string, pools ...Pool) (*Ledger, Offer) {
	t.Helper()
	l, path := openSlow(t, c, pools...)
	offer := ahead(t, l, name)
	commitTo(t, l, offer, vm("a"))
	for _, a := range offer.Addresses {
		if line, claim := fileSays(t, path, a); line.held() || claim != offer.Claim {
			t.Errorf("the file says of %s: %+v, promised to %s", a, line, claim)
		}
	}
	return openTest(t, copyOf(t, path), c, pools...), offer
}

func checkBound(t *testing.T, l *Ledger, offer Offer, owner floatip.Owner) {
	t.Helper()
	lines := l.ByOwner(owner.UID)
	if len(lines) != len(offer.Addresses) {
		t.Errorf("it has %+v, want %v", lines, offer.Addresses)
	}
	for i, line := range lines {
		if line.Address != offer.Addresses[i] || line.State != Bound || line.Owner != owner || line.Claim != offer.Claim || line.Pool != offer.Pools[i] {
			t.Errorf("it has %+v, want %s", line, offer.Addresses[i])
		}
	}
	for _, left := range l.StalePending(0) {
		if left.Claim == offer.Claim {
			t.Errorf("still Pending: %+v", left)
		}
	}
}

// TestPromiseOutlivesTheProcess: what was acknowledged, and of what the file has no more than the promise, stays with its VM,
// in whichever way the ledger hears of it.
func TestPromiseOutlivesTheProcess(t *testing.T) {
	red := pool(t, "red", "192.0.2.0/29", "2001:db8::/125")
	bind := func(l *Ledger, o Offer) error {
		_, err := l.Bind(t.Context(), o.Claim, vm("a"), Cause{Reason: "VM is stored"})
		return err
	}
	again := func(l *Ledger, o Offer) error { commitTo(t, l, o, vm("a")); return bind(l, o) }
	list := func(l *Ledger, o Offer) error {
		var seen []Sighting
		for _, a := range o.Addresses {
			seen = append(seen, Sighting{Address: a, Owner: vm("a"), Claim: o.Claim, Source: "VirtualMachine"})
		}
		found, err := l.Adopt(t.Context(), seen, true)
		if found.Confirmed != 2 || len(found.Disputed) > 0 {
			t.Errorf("adopt: %+v", found)
		}
		return err
	}
	for _, c := range []struct {
		name string
		vm   string // that the promise was made for, empty if its name was not known
		show func(l *Ledger, o Offer) error
	}{
		{"the stored VM is seen", "a", bind},
		{"the stored VM is seen, its name was generated", "", bind},
		{"the API server asks again", "a", again},
		{"the API server asks again, the name was generated", "", again},
		{"the cluster is listed", "a", list},
		{"the cluster is listed, the name was generated", "", list},
	} {
		t.Run(c.name, func(t *testing.T) {
			clock := newClock()
			l, offer := crashed(t, clock, c.vm, red)
			stale := l.StalePending(0)
			want := Allocation{
				Address: offer.Addresses[0], Pool: "red", Owner: floatip.Owner{Namespace: "prod", Name: c.vm}, Claim: offer.Claim, State: Pending,
				Since: clock.now(),
			}
			if len(stale) != 2 || stale[0] != want {
				t.Errorf("kept: %+v, want %+v", stale, want)
			}
			if early := l.StalePending(time.Second); len(early) > 0 {
				t.Errorf("it was kept this moment and is called old: %+v", early)
			}
			var taken *TakenError
			_, err := l.Reserve(t.Context(), Request{Claim: floatip.NewClaim(), Namespace: "dev", Name: "b", Addresses: offer.Addresses[:1]})
			if !errors.As(err, &taken) || taken.Holder.State != Pending || !strings.Contains(taken.Error(), "being created") {
				t.Errorf("somebody else asks for it: %v", err)
			}
			if given := give(t, l, floatip.Owner{Namespace: "dev", Name: "c", UID: "uid-c"}).Address; given == offer.Addresses[0] {
				t.Errorf("%s was given to another VM", given)
			}
			clock.advance(time.Hour) // nothing is freed by age alone
			l.Withdraw(offer.Claim)  // nor by a hook that sees the VM stored
			if err := c.show(l, offer); err != nil {
				t.Fatal(err)
			}
			checkBound(t, l, offer, vm("a"))
			events, err := l.History(Query{Address: offer.Addresses[0]})
			if err != nil {
				t.Fatal(err)
			}
			var said []string
			for _, e := range events {
				said = append(said, e.Action.String()+" by "+e.Cause.User)
			}
			if diff := cmp.Diff([]string{"Committed by alice", "Bound by "}, said); diff != "" {
				t.Errorf("history (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPromiseIsForItsVM: no other VM gets it by showing the claim, which many may read by then.
func TestPromiseIsForItsVM(t *testing.T) {
	l, offer := crashed(t, newClock(), "a", pool(t, "red", "192.0.2.0/29"))
	for _, other := range []floatip.Owner{{Namespace: "dev", Name: "a", UID: "uid-a"}, vm("b")} {
		if _, err := l.Bind(t.Context(), offer.Claim, other, Cause{}); !errors.Is(err, ErrNotHeld) {
			t.Errorf("bind %s: %v", other, err)
		}
		if _, err := l.Commit(t.Context(), offer.Claim, other, offer.Addresses, Cause{}); !errors.Is(err, ErrClaimInUse) {
			t.Errorf("commit %s: %v", other, err)
		}
	}
	if lines := l.ByClaim(offer.Claim); len(lines) != 1 || lines[0].Owner.Name != "a" {
		t.Errorf("after that: %+v", lines)
	}
	if !l.Keeps(vm("a")) || l.Keeps(vm("b")) || l.Keeps(floatip.Owner{Namespace: "dev", Name: "a"}) {
		t.Error("it is kept for another one than vm a")
	}
	if _, err := l.Bind(t.Context(), offer.Claim, vm("a"), Cause{}); err != nil {
		t.Error(err)
	}
	if at := l.book.home("red").cursor[0]; !numOf(offer.Addresses[0]).less(at) {
		t.Errorf("the next address is looked for from %s on", at.addr(IPv4))
	}
	if ahead(t, l, "d"); l.Keeps(vm("a")) || l.Keeps(vm("d")) {
		t.Error("something is kept that was taken up, or promised only now")
	}
}

// TestPromiseToAVMThatHasAnAddress: it would have two of one family. What was promised stays until a person or the sweep looks.
func TestPromiseToAVMThatHasAnAddress(t *testing.T) {
	l, offer := crashed(t, newClock(), "a", pool(t, "red", "192.0.2.0/29"))
	other := Sighting{Address: addr("192.0.2.5"), Owner: vm("a"), Claim: floatip.NewClaim(), Source: "FloatingIP"}
	if _, err := l.Adopt(t.Context(), []Sighting{other}, false); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Bind(t.Context(), offer.Claim, vm("a"), Cause{}); !errors.Is(err, ErrOwnerHolds) {
		t.Errorf("bind: %v", err)
	}
	if line, _ := l.Lookup(offer.Addresses[0]); line.State != Pending || line.Owner.UID != "" {
		t.Errorf("after that: %+v", line)
	}
}

// TestPromiseOfAHeldAddress: whatever else went wrong, an address has one holder.
func TestPromiseOfAHeldAddress(t *testing.T) {
	l, offer := crashed(t, newClock(), "a", pool(t, "red", "192.0.2.0/29"))
	held := give(t, l, vm("b"))
	l.mu.Lock()
	l.offers.byClaim[offer.Claim].addresses[0] = held.Address
	l.mu.Unlock()
	var taken *TakenError
	if _, err := l.Bind(t.Context(), offer.Claim, vm("a"), Cause{}); !errors.As(err, &taken) || taken.Holder.Owner != vm("b") {
		t.Errorf("bind: %v", err)
	}
	l.mu.Lock()
	l.offers.byClaim[offer.Claim].addresses[0] = offer.Addresses[0]
	l.mu.Unlock()
}

// TestWhatIsAskedOfTheFile: who asks the file for the history or a copy hears all that was acknowledged.
func TestWhatIsAskedOfTheFile(t *testing.T) {
	red := pool(t, "red", "192.0.2.0/29")
	l, _ := openSlow(t, newClock(), red)
	first, second := ahead(t, l, "a"), ahead(t, l, "b")
	commitTo(t, l, first, vm("a"))
	if events, err := l.History(Query{}); err != nil || len(events) != 1 {
		t.Errorf("history: %+v, %v", events, err)
	}
	commitTo(t, l, second, vm("b"))
	copied := filepath.Join(t.TempDir(), "copy.db")
	file, err := os.Create(copied)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Backup(file), file.Close()); err != nil {
		t.Fatal(err)
	}
	if line, claim := fileSays(t, copied, second.Addresses[0]); line.Owner != vm("b") || !claim.IsZero() {
		t.Errorf("the copy says %+v, promised to %s", line, claim)
	}
}

// TestPromiseThatNobodyTakesUp: the caller has looked for the VM in vain. The address is free then, and goes from the file.
func TestPromiseThatNobodyTakesUp(t *testing.T) {
	clock, red := newClock(), pool(t, "red", "192.0.2.0/29")
	l, offer := crashed(t, clock, "a", red)
	if gone := l.Expire(floatip.NewClaim()); gone != nil {
		t.Errorf("expire what nobody promised: %+v", gone)
	}
	reserved, err := l.Reserve(t.Context(), Request{Claim: floatip.NewClaim(), Namespace: "prod", Name: "c", WriteAhead: true})
	if err != nil {
		t.Fatal(err)
	}
	if gone := l.Expire(reserved.Claim); gone != nil || len(l.ByClaim(reserved.Claim)) != 1 {
		t.Errorf("expire what is about to be committed: %+v", gone)
	}
	l.Withdraw(reserved.Claim)
	if gone := l.Expire(offer.Claim); len(gone) != 1 || gone[0].Address != offer.Addresses[0] {
		t.Errorf("expire: %+v", gone)
	}
	if gone := l.Expire(offer.Claim); gone != nil {
		t.Errorf("expire again: %+v", gone)
	}
	path := l.store.path
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openTest(t, path, clock, red)
	if left := l.StalePending(0); len(left) > 0 {
		t.Errorf("kept once more: %+v", left)
	}
	if got := give(t, l, vm("b")).Address; got != offer.Addresses[0] {
		t.Errorf("%s was given, want %s, which is free", got, offer.Addresses[0])
	}
}

// TestPromiseThatTheFileKnowsBetter: a floatip that knows no promises, as before an update that was taken back, leaves those
// of the later one in the file. What has become of their addresses since then counts.
func TestPromiseThatTheFileKnowsBetter(t *testing.T) {
	clock, red := newClock(), pool(t, "red", "192.0.2.0/28")
	l, path := openSlow(t, clock, red)
	taken, committed, open := ahead(t, l, "taken"), ahead(t, l, "committed"), ahead(t, l, "open")
	moved := ahead(t, l, "moved")
	stale := appendPromises(nil, maps.Clone(l.offers.written))
	commitTo(t, l, committed, vm("committed"))
	commitTo(t, l, moved, vm("moved"))
	if _, err := l.Bind(t.Context(), moved.Claim, vm("moved"), Cause{}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Replace(t.Context(), moved.Addresses[0], vm("moved").UID, replaceOf(vm("moved")), Cause{}); err != nil {
		t.Fatal(err)
	}
	l.Withdraw(taken.Claim)
	give(t, l, vm("other"), taken.Addresses...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketLedger).Put(keyPromises, seal(keyPromises, stale)) })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	l = openTest(t, path, clock, red)
	for _, line := range l.StalePending(0) {
		if line.Owner.UID == "" && line.Claim != open.Claim {
			t.Errorf("kept: %+v", line)
		}
	}
	for offer, want := range map[*Offer]floatip.Owner{&taken: vm("other"), &committed: vm("committed"), &open: {Namespace: "prod", Name: "open"}} {
		if line, _ := l.Lookup(offer.Addresses[0]); line.Owner != want {
			t.Errorf("the ledger has %+v, want %s", line, want)
		}
	}
}

// TestPromisesEnd: what is withdrawn or was promised too long ago is kept by no later process.
func TestPromisesEnd(t *testing.T) {
	clock, red := newClock(), pool(t, "red", "192.0.2.0/28")
	l, path := openSlow(t, clock, red)
	old := ahead(t, l, "old")
	clock.advance(30 * time.Second)
	withdrawn := ahead(t, l, "withdrawn")
	l.Withdraw(withdrawn.Claim)
	young := ahead(t, l, "young")
	clock.advance(30 * time.Second)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openTest(t, path, clock, red)
	kept := map[floatip.Claim]bool{}
	for _, line := range l.StalePending(0) {
		kept[line.Claim] = true
	}
	if kept[old.Claim] || kept[withdrawn.Claim] || !kept[young.Claim] {
		t.Errorf("kept are %v, want only %s", kept, young.Claim)
	}
}

// TestPromisesShareATransaction: the first one is written at once. Those that come right after it wait for one another, unless
// a Commit waits for one of them.
func TestPromisesShareATransaction(t *testing.T) {
	slow := Options{delay: time.Hour, rest: time.Hour}
	l := openWith(t, filepath.Join(t.TempDir(), "ledger.db"), slow, pool(t, "red", "192.0.2.0/28"))
	reserve := func(name string) (Offer, *batch) {
		offer, err := l.Reserve(t.Context(), Request{Claim: floatip.NewClaim(), Namespace: "prod", Name: name, WriteAhead: true})
		if err != nil {
			t.Fatal(err)
		}
		return offer, l.offers.byClaim[offer.Claim].ahead
	}
	_, first := reserve("first")
	<-first.answered
	var shared *batch
	var last Offer
	for i := range 5 {
		offer, b := reserve(fmt.Sprint("vm-", i))
		if last = offer; i > 0 && b != shared || b == first || b.durable() {
			t.Errorf("promise %d has a transaction of its own", i)
		}
		shared = b
		for range 1000 {
			runtime.Gosched() // the writer may do what it wants to
		}
	}
	commitTo(t, l, last, vm("vm-4"))
	if !shared.durable() {
		t.Error("the others did not share the transaction of the Commit")
	}
}

// TestMostPromisesWrittenAhead: there is a bound, and who comes after waits in Commit.
func TestMostPromisesWrittenAhead(t *testing.T) {
	l, path := openSlow(t, newClock(), pool(t, "red", "198.51.100.0/22"))
	var offers []Offer
	for i := range maxAhead + 20 {
		offers = append(offers, ahead(t, l, fmt.Sprint("vm-", i)))
	}
	if written := len(readFile(t, path).promised); written != maxAhead {
		t.Errorf("the file has %d promises, want %d", written, maxAhead)
	}
	for i, o := range offers {
		commitTo(t, l, o, vm(fmt.Sprint("vm-", i)))
	}
	l.settle()
	file := readFile(t, path)
	for i, o := range offers {
		if line, claim := file.lines[o.Addresses[0]], file.promised[o.Addresses[0]]; line.Owner != vm(fmt.Sprint("vm-", i)) || !claim.IsZero() {
			t.Fatalf("the file says of %s: %+v, promised to %s", o.Addresses[0], line, claim)
		}
	}
}

// TestNobodyWaitsForEver: what nobody waits for is written after a while by itself.
func TestNobodyWaitsForEver(t *testing.T) {
	clock, path := newClock(), filepath.Join(t.TempDir(), "ledger.db")
	l := openTest(t, path, clock, pool(t, "red", "192.0.2.0/29"))
	offer := ahead(t, l, "a")
	commitTo(t, l, offer, vm("a"))
	for {
		if line, _ := fileSays(t, path, offer.Addresses[0]); line.Owner == vm("a") {
			return
		}
		runtime.Gosched()
	}
}

// TestDamagedPromises: the file is refused, as for any other value.
func TestDamagedPromises(t *testing.T) {
	l, path := openSlow(t, newClock(), pool(t, "red", "192.0.2.0/29"))
	ahead(t, l, "a")
	image := copyOf(t, path)
	db, err := bbolt.Open(image, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bucketLedger)
		value := slices.Clone(bucket.Get(keyPromises))
		value[3] ^= 1
		return bucket.Put(keyPromises, value)
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = Open(image, Options{})
	wantFault(t, err, ErrDamaged, "promises")
	report, err := CheckFile(image, Against{})
	if err != nil || report.Damage() == nil {
		t.Errorf("check: %+v, %v", report, err)
	}
}

// TestPromisedTwice: Check finds it.
func TestPromisedTwice(t *testing.T) {
	l, path := openSlow(t, newClock(), pool(t, "red", "192.0.2.0/29"))
	offer := ahead(t, l, "a")
	image := copyOf(t, path)
	db, err := bbolt.Open(image, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	twice := maps.Clone(l.offers.written)
	other := *twice[offer.Claim]
	other.claim = floatip.NewClaim()
	twice[other.claim] = &other
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketLedger).Put(keyPromises, seal(keyPromises, appendPromises(nil, twice)))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	report, err := CheckFile(image, Against{})
	if err != nil || len(report.Problems) != 1 || report.Problems[0].Address != offer.Addresses[0] {
		t.Errorf("check: %+v, %v", report, err)
	}
}

// TestPromiseThatTheFileLacks: Check finds it.
func TestPromiseThatTheFileLacks(t *testing.T) {
	l, _ := openSlow(t, newClock(), pool(t, "red", "192.0.2.0/29"))
	ahead(t, l, "a")
	lost := &offer{claim: floatip.NewClaim(), addresses: []netip.Addr{addr("192.0.2.5")}}
	l.mu.Lock()
	l.offers.written[lost.claim] = lost
	l.mu.Unlock()
	report, err := l.Check(t.Context(), Against{})
	if err != nil || len(report.Problems) != 1 || report.Problems[0].Address != lost.addresses[0] {
		t.Errorf("check: %+v, %v", report, err)
	}
	l.mu.Lock()
	delete(l.offers.written, lost.claim)
	l.mu.Unlock()
}

// FuzzPromises: no value makes the decoder fail but with an error, and what it reads is written the same.
func FuzzPromises(f *testing.F) {
	one := &offer{claim: floatip.Claim{1}, namespace: "prod", name: "a", cause: Cause{User: "alice"}}
	one.addresses, one.pools = []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")}, []string{"red", "blue"}
	f.Add(appendPromises(nil, map[floatip.Claim]*offer{}))
	f.Add(appendPromises(nil, map[floatip.Claim]*offer{one.claim: one}))
	f.Fuzz(func(t *testing.T, value []byte) {
		promises, err := decodePromises(seal(keyPromises, value))
		if err != nil || len(promises) != 1 {
			return
		}
		again, err := decodePromises(seal(keyPromises, appendPromises(nil, map[floatip.Claim]*offer{promises[0].claim: promises[0]})))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(promises, again, cmp.AllowUnexported(offer{}), cmp.Comparer(sameAddress), cmpopts.IgnoreFields(offer{}, "room")); diff != "" {
			t.Errorf("(-read +written):\n%s", diff)
		}
	})
}
