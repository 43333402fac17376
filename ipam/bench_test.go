package ipam

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"floatip.io/floatip"
)

// line is the n-th allocation of a benchmark: names and UIDs as long as real ones.
func line(random *rand.Rand, a netip.Addr, pool string, state State) Allocation {
	hi, lo := random.Uint64(), random.Uint64()
	var claim floatip.Claim
	for i := range claim {
		claim[i] = byte(random.Uint32())
	}
	return Allocation{
		Address: a, Pool: pool, Claim: claim, State: state, Since: time.Unix(1_700_000_000, 0).UTC(),
		Owner: floatip.Owner{
			Namespace: fmt.Sprintf("team-%03d", hi%200),
			Name:      fmt.Sprintf("vm-%08x", uint32(hi>>20)),
			UID: fmt.Sprintf("%08x-%04x-4%03x-8%03x-%012x",
				uint32(hi), uint16(hi>>32), hi>>48&0xfff, lo&0xfff, lo>>12&0xffffffffffff),
		},
	}
}

// filled returns a book with one pool of which held addresses are taken: the first ones, or random ones.
func filled(tb testing.TB, network string, held int, holes bool) (*book, *home, *rand.Rand) {
	tb.Helper()
	p := pool(tb, "red", network)
	b := newBook()
	b.settle(divide([]Pool{p}), nil, nil)
	h, random := b.homes[0], rand.New(rand.NewPCG(1, 2))
	family := FamilyOf(p.Addresses[0].First)
	taken := 0
	base := numOf(p.Addresses[0].First)
	size := numOf(p.Addresses[0].Last).lo - base.lo + 1
	for taken < held {
		a, ok := b.next(h, family, time.Time{})
		if holes {
			n := num{base.hi, base.lo + random.Uint64N(min(size, 1<<40))}
			if !h.free[slot(family)].has(n) {
				continue
			}
			a, ok = n.addr(family), true
		}
		if !ok {
			tb.Fatalf("%s is full after %d", network, taken)
		}
		one := line(random, a, "red", Bound)
		b.put(&one)
		taken++
	}
	return b, h, random
}

// BenchmarkAllocate finds the next free address and enters an allocation with its owner, 64 times if as many are free, then
// gives them back so that the fill stays: ns/op is the time of both. At 100 % one is free, and reading the clock counts.
func BenchmarkAllocate(b *testing.B) {
	for _, c := range []struct {
		network string
		size    int
	}{{"10.1.1.0/24", 254}, {"10.1.0.0/16", 65534}, {"2001:db8::/64", 65536}} {
		for _, fill := range []int{0, 50, 99, 100} {
			for _, holes := range []bool{false, true} {
				held := min(c.size*fill/100, c.size-1)
				if holes && (fill == 0 || fill == 100) {
					continue
				}
				name := fmt.Sprintf("%s/%d%%", c.network, fill)
				if holes {
					name += "/holes"
				}
				b.Run(name, func(b *testing.B) { benchmarkAllocate(b, c.network, held, holes, c.size) })
			}
		}
	}
}

func benchmarkAllocate(b *testing.B, network string, held int, holes bool, size int) {
	book, h, random := filled(b, network, held, holes)
	family := FamilyOf(h.ranges[0].First)
	owners := make([]Allocation, 64)
	for i := range owners {
		owners[i] = line(random, netip.Addr{}, "red", Bound)
	}
	taken := make([]netip.Addr, min(len(owners), size-held))
	var allocating, releasing time.Duration
	rounds := (b.N + len(taken) - 1) / len(taken)
	b.ReportAllocs()
	b.ResetTimer()
	for range rounds {
		began := time.Now()
		for i := range taken {
			a, ok := book.next(h, family, time.Time{})
			if !ok {
				b.Fatal("no free address")
			}
			one := owners[i]
			one.Address = a
			book.put(&one)
			h.cursor[slot(family)] = numOf(a).next()
			taken[i] = a
		}
		full := time.Now()
		for _, a := range taken {
			book.remove(a)
		}
		allocating, releasing = allocating+full.Sub(began), releasing+time.Since(full)
	}
	n := float64(rounds * len(taken))
	b.ReportMetric(float64(allocating.Nanoseconds())/n, "allocate-ns")
	b.ReportMetric(float64(releasing.Nanoseconds())/n, "release-ns")
}

// BenchmarkFill allocates the whole pool, one after the other, each with its owner.
func BenchmarkFill(b *testing.B) {
	for _, network := range []string{"10.1.0.0/16", "2001:db8::/64"} {
		b.Run(network, func(b *testing.B) {
			random := rand.New(rand.NewPCG(1, 2))
			owners := make([]Allocation, 65534)
			for i := range owners {
				owners[i] = line(random, netip.Addr{}, "red", Bound)
			}
			for b.Loop() {
				book, h, _ := filled(b, network, 0, false)
				family := FamilyOf(h.ranges[0].First)
				for _, one := range owners {
					one.Address, _ = book.next(h, family, time.Time{})
					book.put(&one)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(owners)), "ns/address")
		})
	}
}

// BenchmarkMemory reports the bytes per held address, all indexes and texts counted.
func BenchmarkMemory(b *testing.B) {
	for _, c := range []struct {
		network string
		held    int
		holes   bool
	}{{"10.0.0.0/15", 65536, false}, {"2001:db8::/64", 65536, true}, {"10.0.0.0/8", 1_000_000, false}, {"2001:db8::/64", 1_000_000, true}} {
		b.Run(fmt.Sprintf("%s/%d/holes=%t", c.network, c.held, c.holes), func(b *testing.B) {
			for b.Loop() {
				before := heap()
				book, _, _ := filled(b, c.network, c.held, c.holes)
				b.ReportMetric(float64(heap()-before)/float64(c.held), "B/address")
				runtime.KeepAlive(book)
			}
		})
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
