package node

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"floatip.io/floatip/nat/node/nodetest"
)

// The loop hears of a guest that boots slowly, and a guest that was seen stays seen.
func TestGuestsAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var up atomic.Bool
		var looks, wakes atomic.Int32
		g := newGuests(slog.New(slog.DiscardHandler), func() { wakes.Add(1) })
		g.look = func(*os.File, string, netip.Addr) (bool, error) {
			if looks.Add(1)%2 == 0 {
				return false, errors.New("interrupted")
			}
			return up.Load(), nil
		}
		s := &session{netns: os.Stdin, guests: g, ctx: t.Context()}
		fixed := netip.MustParseAddr("10.0.2.2")
		for range 3 {
			if g.answers(t.Context(), s, "k6t-eth0", fixed) {
				t.Fatal("the guest is seen before it is up")
			}
		}
		time.Sleep(time.Minute) // of the bubble's clock
		if n := looks.Load(); n < 30 || n > 60 {
			t.Errorf("%d looks in the first minute, want one every 0.2 to 2 s", n)
		}
		up.Store(true)
		time.Sleep(2 * askMost)
		synctest.Wait()
		if wakes.Load() != 1 || !g.answers(t.Context(), s, "k6t-eth0", fixed) {
			t.Errorf("the guest is up: %d wakes, seen: %t", wakes.Load(), g.answers(t.Context(), s, "k6t-eth0", fixed))
		}
		before := looks.Load()
		time.Sleep(time.Minute)
		if n := looks.Load() - before; n != 0 {
			t.Errorf("%d looks for a guest that was seen", n)
		}
	})
}

// After a restart of the agent the first look is at once: Ready stays Ready.
func TestGuestsAnswersAtOnce(t *testing.T) {
	g := newGuests(slog.New(slog.DiscardHandler), func() {})
	g.look = func(*os.File, string, netip.Addr) (bool, error) { return true, nil }
	if !g.answers(t.Context(), &session{netns: os.Stdin}, "k6t-eth0", netip.MustParseAddr("10.0.2.2")) {
		t.Error("a guest that is up is not seen at the first look")
	}
}

// TestFewLookAtATime: however many guests are waited for, few threads are kept by looks.
func TestFewLookAtATime(t *testing.T) {
	const guests = 50
	var running, most, wakes atomic.Int32
	for range guests {
		first := true
		g := newGuests(slog.New(slog.DiscardHandler), func() { wakes.Add(1) })
		g.look = func(*os.File, string, netip.Addr) (bool, error) {
			if first {
				first = false
				return false, nil // at once, before anybody waits
			}
			now := running.Add(1)
			for seen := most.Load(); now > seen && !most.CompareAndSwap(seen, now); seen = most.Load() {
			}
			<-time.After(time.Millisecond)
			running.Add(-1)
			return true, nil
		}
		s := &session{netns: os.Stdin, guests: g, ctx: t.Context()}
		if g.answers(t.Context(), s, "k6t-eth0", netip.MustParseAddr("10.0.2.2")) {
			t.Fatal("a guest is seen before it is up")
		}
	}
	if !nodetest.Until(patience, func() bool { return wakes.Load() == guests }) {
		t.Fatalf("%d of %d guests are seen", wakes.Load(), guests)
	}
	if n := int(most.Load()); n > cap(looking) {
		t.Errorf("%d looked at a time, want at most %d", n, cap(looking))
	}
}
