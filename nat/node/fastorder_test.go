package node

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"floatip.io/floatip/nat/node/fastpath"
	"floatip.io/floatip/nat/node/nodetest"
	"floatip.io/floatip/test/lab"
)

// TestFastPathComesLater: nobody who waits for the first answer of a new address waits for its place on the fast path. It gets
// that by itself in the next round, which comes at once, and whatever else changes then. An address that leaves the node leaves
// the fast path first, before its route goes.
func TestFastPathComesLater(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.wide()
	behind, all := nodetest.NewNamespace(t), []netip.Addr{standing(0), standing(1), standing(2), standing(3)}
	b.addStandingLeg(0, behind)
	a, log := b.quiet(), &testLog{t: t}
	a.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	add := func(n int) {
		b.addStandingLeg(n, behind)
		b.reached(a)
	}
	round := func(what string, again bool, want ...netip.Addr) {
		t.Helper()
		log.said.Reset()
		if _, err := a.round(t.Context(), b.view); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for _, address := range all {
			if got, want := b.isFast(address), slices.Contains(want, address); got != want {
				t.Errorf("%s: %s is on the fast path: %v, want %v", what, address, got, want)
			}
		}
		if got := a.pause(nil) == 0; got != again {
			t.Errorf("%s: another round is due at once: %v, want %v", what, got, again)
		}
	}
	leaves := func(address netip.Addr) {
		t.Helper()
		fast := strings.Index(log.said.String(), "fast path: "+address.String()+" no more")
		route := strings.Index(log.said.String(), "removed route "+address.String())
		if fast < 0 || route < fast {
			t.Errorf("%s is off the fast path at %d of the log, its route gone at %d", address, fast, route)
		}
	}

	round("a new agent, which does not know what stands", false, all[0])
	add(1)
	round("an address more", true, all[0])
	add(2)
	round("another one in the next round", false, all[:3]...)
	round("nothing new", false, all[:3]...)
	b.view.Pods = b.view.Pods[1:]
	round("an address less", false, all[1:3]...)
	leaves(all[0])
	add(3)
	b.view.Pods = b.view.Pods[1:]
	round("one goes, and another one comes", false, all[2:]...)
	leaves(all[1])
}

// isFast reports whether the node's table has the address.
func (b *bench) isFast(a netip.Addr) bool {
	b.t.Helper()
	list, _ := lab.At("node", b.node.File).Try("", "nft", "list", "table", "netdev", fastpath.Table)
	return strings.Contains(list, " "+a.String()+" : ")
}
