package ipam

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"floatip.io/floatip"
)

// heldLedger returns the path of a ledger with n addresses held of 10.0.0.0/8, written in few transactions.
func heldLedger(tb testing.TB, n int) (string, Pool) {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "ledger.db")
	p := pool(tb, "red", "10.0.0.0/8")
	l := openTest(tb, path, newClock(), p)
	a := addr("10.0.0.1")
	for at := 0; at < n; {
		var seen []Sighting
		for ; at < n && len(seen) < 50_000; at++ {
			uid := fmt.Sprintf("%08x-0000-4000-8000-%012x", at, at)
			owner := floatip.Owner{Namespace: fmt.Sprintf("team-%03d", at%200), Name: fmt.Sprintf("vm-%08x", at), UID: uid}
			seen = append(seen, Sighting{Address: a, Owner: owner, Claim: floatip.NewClaim(), Source: "FloatingIP"})
			a = a.Next()
		}
		if _, err := l.Adopt(tb.Context(), seen, false); err != nil {
			tb.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		tb.Fatal(err)
	}
	return path, p
}

// BenchmarkOpen is the start: read and prove the whole file, build the index, know the pools.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{65_536, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			path, p := heldLedger(b, n)
			for b.Loop() {
				l, err := Open(path, Options{})
				if err != nil {
					b.Fatal(err)
				}
				l.SetPools([]Pool{p})
				if err := l.Close(); err != nil {
					b.Fatal(err)
				}
			}
			info, err := os.Stat(path)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(info.Size())/float64(n), "file-B/address")
		})
	}
}

// BenchmarkDurable commits allocations with owner index and history, 65 536 held, from 1 to 256 writers, beside raw
// flushes on the same disk: a 4 KiB write and fdatasync in a preallocated file. Rounds alternate; the figures are medians
// of the rounds' ratios.
//
// The garbage collector is set as manifests/webhook/deployment.yaml sets it.
func BenchmarkDurable(b *testing.B) {
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	path, p := heldLedger(b, 65_536)
	l, err := Open(path, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	l.SetPools([]Pool{p})
	raw, err := os.Create(filepath.Join(b.TempDir(), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	defer raw.Close()
	if _, err := raw.Write(make([]byte, 4<<20)); err != nil {
		b.Fatal(err)
	}
	if err := raw.Sync(); err != nil {
		b.Fatal(err)
	}
	for _, writers := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			var rates, p50s, p99s, absolute, flushes, shared, processor []float64
			for b.Loop() {
				for range rounds {
					flush := rawFlushes(b, raw, 200*time.Millisecond)
					before, spent := transactions(b, l), processorTime(b)
					commits := ledgerCommits(b, l, writers, 400*time.Millisecond)
					shared = append(shared, float64(commits.n)/float64(transactions(b, l)-before))
					processor = append(processor, (processorTime(b)-spent).Seconds()*1e6/float64(commits.n))
					rates = append(rates, commits.perSecond/flush.perSecond)
					p50s = append(p50s, commits.p50/flush.p50)
					p99s = append(p99s, commits.p99/flush.p50)
					absolute, flushes = append(absolute, commits.perSecond), append(flushes, flush.perSecond)
				}
			}
			b.ReportMetric(median(rates), "x-raw-rate")
			b.ReportMetric(median(p50s), "p50/raw-p50")
			b.ReportMetric(median(p99s), "p99/raw-p50")
			b.ReportMetric(median(absolute), "commits/s")
			b.ReportMetric(median(flushes), "raw-flushes/s")
			b.ReportMetric(median(shared), "commits/transaction")
			b.ReportMetric(median(processor), "cpu-µs/commit")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// rounds of raw flushes and commits make one iteration, so that a median stands for something with one of them.
const rounds = 5

// figures are latencies in seconds and operations per second.
type figures struct {
	n                   int
	perSecond, p50, p99 float64
}

// processorTime returns what this process has used, in user and system mode.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// transactions returns how many there were since the file was made.
func transactions(b *testing.B, l *Ledger) int {
	b.Helper()
	tx, err := l.store.db.Begin(false)
	if err != nil {
		b.Fatal(err)
	}
	defer tx.Rollback()
	return tx.ID()
}

func summarize(latencies []time.Duration, took time.Duration) figures {
	slices.Sort(latencies)
	at := func(q float64) float64 { return latencies[int(q*float64(len(latencies)-1))].Seconds() }
	return figures{len(latencies), float64(len(latencies)) / took.Seconds(), at(0.5), at(0.99)}
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

func rawFlushes(b *testing.B, file *os.File, lasting time.Duration) figures {
	page := make([]byte, 4096)
	var latencies []time.Duration
	start := time.Now()
	for i := int64(0); time.Since(start) < lasting; i++ {
		begin := time.Now()
		page[0]++
		if _, err := file.WriteAt(page, i%1024*4096); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fdatasync(int(file.Fd())); err != nil {
			b.Fatal(err)
		}
		latencies = append(latencies, time.Since(begin))
	}
	return summarize(latencies, time.Since(start))
}

// ledgerCommits measures the writers, each of which reserves and commits one address after the other; the latencies are
// those of Commit alone.
func ledgerCommits(b *testing.B, l *Ledger, writers int, lasting time.Duration) figures {
	ctx := context.Background()
	all := make([][]time.Duration, writers)
	for i := range all {
		all[i] = make([]time.Duration, 0, 4096)
	}
	var wg sync.WaitGroup
	start := time.Now()
	for i := range writers {
		wg.Go(func() {
			own := all[i]
			for begin := start; begin.Sub(start) < lasting; {
				claim, owner := floatip.NewClaim(), freshMachine()
				offer, err := l.Reserve(ctx, Request{Claim: claim, Namespace: owner.Namespace, Name: owner.Name})
				if err != nil {
					b.Error(err)
					return
				}
				begin = time.Now()
				if _, err := l.Commit(ctx, claim, owner, offer.Addresses, Cause{User: "bench", RequestUID: owner.UID}); err != nil {
					b.Error(err)
					return
				}
				own = append(own, time.Since(begin))
			}
			all[i] = own
		})
	}
	wg.Wait()
	return summarize(slices.Concat(all...), time.Since(start))
}

// freshMachine returns a virtual machine whose name and UID no call before returned. It takes some 0.2 µs of what is
// measured.
func freshMachine() floatip.Owner {
	return floatip.Owner{Namespace: "bench", Name: "vm-" + strconv.FormatUint(machines.Add(1)+1<<32, 16), UID: uuid()}
}

var machines atomic.Uint64 // how many freshMachine has returned

// uuid returns a UID as the API server makes them, random (RFC 9562, version 4).
func uuid() string {
	var raw [16]byte
	binary.NativeEndian.PutUint64(raw[:], rand.Uint64())
	binary.NativeEndian.PutUint64(raw[8:], rand.Uint64())
	raw[6], raw[8] = raw[6]&0x0f|0x40, raw[8]&0x3f|0x80
	return (&records{}).textUID(raw)
}

// BenchmarkReserve is the mutating phase: an address is promised in memory and withdrawn, 65 536 held.
func BenchmarkReserve(b *testing.B) {
	path, p := heldLedger(b, 65_536)
	l, err := Open(path, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	l.SetPools([]Pool{p})
	b.ReportAllocs()
	for b.Loop() {
		claim := floatip.NewClaim()
		if _, err := l.Reserve(b.Context(), Request{Claim: claim, Namespace: "bench", Name: "vm"}); err != nil {
			b.Fatal(err)
		}
		l.Withdraw(claim)
	}
}

// BenchmarkLookup is what the pod's admission asks.
func BenchmarkLookup(b *testing.B) {
	path, p := heldLedger(b, 65_536)
	l, err := Open(path, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	l.SetPools([]Pool{p})
	a := addr("10.0.0.77")
	for b.Loop() {
		if _, ok := l.Lookup(a); !ok {
			b.Fatal(netip.Addr{})
		}
	}
}
