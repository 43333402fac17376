package ipam

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"floatip.io/floatip"
)

// TestPriority: the higher pool gives first, equal ones by name, a full, draining or limited one lets the next one give,
// and each family goes its own way.
func TestPriority(t *testing.T) {
	ranked := func(name string, priority int32, addresses ...string) Pool {
		p := pool(t, name, addresses...)
		p.Priority = priority
		return p
	}
	silent := func(p Pool) Pool { p.AutoAssign = false; return p }
	drained := func(p Pool) Pool { p.Drain = true; return p }
	limited := func(p Pool) Pool { p.PerNamespaceLimit = 1; return p }
	v4 := func(n int) string { return fmt.Sprintf("192.0.2.%d-192.0.2.%d", n, n+1) }
	v6 := func(n int) string { return fmt.Sprintf("2001:db8::%d-2001:db8::%d", n, n+1) }
	for _, c := range []struct {
		name  string
		pools []Pool
		ask   Request
		want  string // the pools of the addresses, one request after the other
	}{
		{"the higher one", []Pool{ranked("a", 1, v4(1)), ranked("b", 2, v4(3))}, Request{}, "[b] [b] [a] [a]"},
		{"negative is lower than nothing", []Pool{ranked("a", -1, v4(1)), ranked("b", 0, v4(3))}, Request{}, "[b] [b] [a] [a]"},
		{"equal: by name", []Pool{ranked("b", 5, v4(1)), ranked("c", 5, v4(3)), ranked("a", 5, v4(5))}, Request{}, "[a] [a] [b] [b] [c] [c]"},
		{"without autoAssign only by name", []Pool{silent(ranked("a", 9, v4(1))), ranked("b", 0, v4(3))}, Request{}, "[b] [b]"},
		{"named pools as they are named", []Pool{ranked("a", 1, v4(1)), ranked("b", 2, v4(3))}, Request{Pools: []string{"a", "b"}}, "[a] [a] [b] [b]"},
		{"one that drains gives nothing", []Pool{drained(ranked("a", 9, v4(1))), ranked("b", 0, v4(3))}, Request{}, "[b] [b]"},
		{"one whose limit is reached", []Pool{limited(ranked("a", 9, v4(1))), ranked("b", 0, v4(3))}, Request{}, "[a] [b] [b]"},
		{"each family by itself", []Pool{ranked("a", 1, v4(1), v6(1)), ranked("b", 2, v6(3)), ranked("c", 0, v4(5), v6(5))}, Request{},
			"[a b] [a b] [c a] [c a]"},
		{"one family is wanted", []Pool{ranked("a", 1, v4(1), v6(1)), ranked("b", 2, v6(3))}, Request{Families: []Family{IPv6}}, "[b] [b] [a] [a]"},
		{"the limit counts both addresses", []Pool{limited(ranked("a", 1, v4(1), v6(1))), ranked("b", 0, v6(3))}, Request{}, "[a b]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, _ := start(t, c.pools...)
			got := ""
			for {
				offer, err := l.Reserve(t.Context(), ask(c.ask))
				if err != nil {
					if !errors.Is(err, ErrFull) && !errors.Is(err, ErrLimit) {
						t.Error(err)
					}
					break
				}
				got += fmt.Sprint(offer.Pools, " ")
			}
			if got != c.want+" " {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// TestLimitUnderConcurrency: however many ask at once, in one step or late, a namespace never has more than its limit, and
// what one gives back another one gets.
func TestLimitUnderConcurrency(t *testing.T) {
	const limit, callers = 7, 64
	p := pool(t, "red", "192.0.2.0/24", "2001:db8::/64")
	p.PerNamespaceLimit = limit
	l, _ := start(t, p)
	var mu sync.Mutex
	var held []string
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			claim, owner := floatip.NewClaim(), vm(fmt.Sprintf("vm-%d", i))
			r := Request{Claim: claim, Namespace: owner.Namespace, Name: owner.Name, Families: []Family{IPv4, IPv6}[i%2 : i%2+1]}
			if i%8 == 0 {
				r.Families = nil // both
			}
			offer, err := l.Reserve(t.Context(), r)
			if err == nil && i%3 == 0 {
				l.Withdraw(claim) // as after a restart: the claim has its addresses from the object alone
			}
			if err == nil {
				_, err = l.Commit(t.Context(), claim, owner, offer.Addresses, Cause{})
			}
			if err != nil && !errors.Is(err, ErrLimit) && (i%3 > 0 || !errors.Is(err, ErrTaken)) {
				t.Errorf("%s: %v", owner, err)
			}
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				held = append(held, owner.UID)
			}
		})
	}
	wg.Wait()
	counts := l.Pools()[0]
	before := counts.IPv4.Used + counts.IPv6.Used
	if before > limit || len(held) == 0 {
		t.Fatalf("%d addresses are held by %v, the limit is %d", before, held, limit)
	}
	released, err := l.Release(t.Context(), held[0], Cause{})
	if err != nil {
		t.Fatal(err)
	}
	for n := before - len(released); n < limit; n++ {
		owner := vm(fmt.Sprintf("later-%d", n))
		give(t, l, owner, addr(fmt.Sprintf("192.0.2.%d", 200+n)))
	}
	_, err = l.Reserve(t.Context(), ask(Request{Name: "one-more"}))
	if !errors.Is(err, ErrLimit) {
		t.Errorf("one more than the limit: %v", err)
	}
	if other, err := l.Reserve(t.Context(), ask(Request{Namespace: "other"})); err != nil || !slices.Equal(other.Pools, []string{"red", "red"}) {
		t.Errorf("another namespace: %+v, %v", other, err)
	}
}
