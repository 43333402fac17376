package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
)

// failingDisk lets transactions fail from time to time, until stop is closed, and now and then does what besides says. It
// changes what the writer reads between two of its transactions.
func failingDisk(ctx context.Context, l *Ledger, failure error, besides func(), stop <-chan struct{}) (times int) {
	for {
		select {
		case <-stop:
			return times
		default:
		}
		set := failure
		if rand.IntN(2) == 0 {
			set = nil
		} else {
			times++
		}
		if rand.IntN(200) == 0 {
			besides()
		}
		_ = l.writer.between(ctx, func() error { l.store.doubt = set; return nil })
	}
}

// Thirty-two callers take addresses of a small pool and give them back at once, while transactions fail again and again, with
// what was applied on top of them, and pools and clock change. Whatever was acknowledged is so, whatever failed has changed nothing, and no address has
// two holders, in memory and in the file.
func TestCallersOnAFailingDisk(t *testing.T) {
	const callers, lives = 32, 200
	c, path := newClock(), filepath.Join(t.TempDir(), "ledger.db")
	red := pool(t, "red", "192.0.2.0/28", "2001:db8::/124")
	red.Quarantine = 0
	l := openTest(t, path, c, red)
	failure := errors.New("the disk is away")
	stop, ended := make(chan struct{}), make(chan int, 1)
	split := [2]Pool{pool(t, "blue", "192.0.2.1-192.0.2.7", "2001:db8::1-2001:db8::7"), red}
	split[0].Quarantine = 0
	changes := func() { // pools are split and joined, what was released is forgotten
		c.advance(time.Duration(rand.IntN(30)) * time.Hour)
		l.SetPools(split[rand.IntN(2):])
	}
	go func() { ended <- failingDisk(context.Background(), l, failure, changes, stop) }()

	var mu sync.Mutex
	held := map[string]string{} // address and UID of what was acknowledged and not given back
	failed := 0
	note := func(err error) bool {
		if err == nil {
			return true
		}
		mu.Lock()
		defer mu.Unlock()
		if failed++; !errors.Is(err, failure) {
			t.Error(err)
		}
		return false
	}
	life := func(owner floatip.Owner, keep bool) (kept bool) {
		claim := floatip.NewClaim()
		offer, err := l.Reserve(t.Context(), Request{
			Claim: claim, Namespace: owner.Namespace, Name: owner.Name, Families: families(rand.IntN(3)), WriteAhead: rand.IntN(2) == 0,
		})
		if errors.Is(err, ErrFull) {
			return false
		}
		if err != nil {
			t.Error(err)
			return false
		}
		lines, err := l.Commit(t.Context(), claim, owner, offer.Addresses, Cause{})
		if errors.Is(err, ErrTaken) { // a release that failed: somebody has it still
			l.Withdraw(claim)
			return false
		}
		if !note(err) {
			l.Withdraw(claim)
			return false
		}
		mu.Lock()
		for _, line := range lines {
			if other, twice := held[line.Address.String()]; twice {
				t.Errorf("%s was acknowledged for %s and for %s", line.Address, other, owner.UID)
			}
			held[line.Address.String()] = owner.UID
		}
		mu.Unlock()
		// The VM shows up. What was acknowledged before its transaction failed has only the promise until then.
		for {
			if _, err := l.Bind(t.Context(), claim, owner, Cause{}); note(err) {
				break
			}
		}
		if keep {
			return true
		}
		mu.Lock() // before, since the next holder may be quicker than the answer
		for _, line := range lines {
			delete(held, line.Address.String())
		}
		mu.Unlock()
		for {
			if _, err := l.Release(t.Context(), owner.UID, Cause{}); note(err) {
				return false
			}
		}
	}
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for j := range lives {
				if life(vm(fmt.Sprintf("vm-%d-%d", i, j)), i < 6 && j >= lives/2) {
					return
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	times := <-ended
	if err := l.writer.between(t.Context(), func() error { l.store.doubt = nil; return nil }); err != nil {
		t.Fatal(err)
	}
	t.Logf("the disk went away %d times, %d operations failed, %d addresses are held", times, failed, len(held))
	if failed == 0 {
		t.Error("nothing failed: the test shows nothing")
	}
	l.SetPools([]Pool{red})
	give(t, l, vm("after")) // something is written behind the last failure
	for _, line := range l.ByOwner(vm("after").UID) {
		held[line.Address.String()] = line.Owner.UID
	}
	checkClean(t, l, Against{Pools: []Pool{red}})
	for name, ledger := range map[string]*Ledger{"memory": l, "file": openTest(t, copyOf(t, path), c, red)} {
		have := map[string]string{}
		for line := range ledger.All() {
			if line.held() {
				have[line.Address.String()] = line.Owner.UID
			}
		}
		if diff := cmp.Diff(maps.Clone(held), have); diff != "" {
			t.Errorf("%s (-acknowledged +held):\n%s", name, diff)
		}
	}
}
