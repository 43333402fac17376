package ipam

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"floatip.io/floatip"
)

var conflict = Cause{Reason: "another host has it"}

func replaceOf(owner floatip.Owner) Request {
	return Request{Namespace: owner.Namespace, Name: owner.Name}
}

// TestReplace: one address goes, the next one comes, and the history says why. None of them comes back before it has
// rested, whoever asks for the next.
func TestReplace(t *testing.T) {
	l, c := start(t, pool(t, "red", "192.0.2.1-192.0.2.3", "2001:db8::/126"))
	owner := vm("web")
	first := give(t, l, owner)
	if _, err := l.Bind(t.Context(), first.Claim, owner, Cause{}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"192.0.2.2", "192.0.2.3"} {
		held := l.ByOwner(owner.UID)[0]
		line, err := l.Replace(t.Context(), held.Address, owner.UID, replaceOf(owner), conflict)
		if err != nil || line.Address != addr(want) || line.State != Bound || line.Claim != first.Claim || line.Owner != owner {
			t.Fatalf("instead of %s: %+v, %v; want %s, Bound under the same claim", held.Address, line, err, want)
		}
		if gone, _ := l.Lookup(held.Address); gone.State != Released {
			t.Errorf("%s is %s, want Released", held.Address, gone.State)
		}
	}
	if held := l.ByOwner(owner.UID); len(held) != 2 || !held[1].Address.Is6() {
		t.Errorf("holds %+v, want one of each family", held)
	}
	_, err := l.Replace(t.Context(), addr("192.0.2.3"), owner.UID, replaceOf(owner), conflict)
	if full := new(FullError); !errors.As(err, &full) || full.Quarantined != 3 {
		t.Errorf("with all others resting: %v, want FullError with 3 in quarantine, the one that was to go among them", err)
	}
	if line, _ := l.Lookup(addr("192.0.2.3")); line.State != Bound {
		t.Errorf("a replacement that failed left %s, want Bound", line.State)
	}
	c.advance(time.Hour)
	if line, err := l.Replace(t.Context(), addr("192.0.2.3"), owner.UID, replaceOf(owner), conflict); err != nil || line.Address != addr("192.0.2.1") {
		t.Errorf("an hour later: %+v, %v; want 192.0.2.1, which rested longest", line, err)
	}
	events, err := l.History(Query{Address: addr("192.0.2.2")})
	if err != nil {
		t.Fatal(err)
	}
	var reasons []string
	for _, e := range events {
		reasons = append(reasons, e.Action.String()+": "+e.Cause.Reason)
	}
	if text := strings.Join(reasons, "; "); text != "Bound: instead of 192.0.2.1: another host has it; Released: another host has it" {
		t.Errorf("history of 192.0.2.2: %s", text)
	}
}

func TestReplaceRefusals(t *testing.T) {
	tight := pool(t, "tight", "192.0.2.1-192.0.2.9")
	tight.PerNamespaceLimit = 1
	l, _ := start(t, tight)
	owner := vm("web")
	line := give(t, l, owner)
	replace := func(uid string) error {
		_, err := l.Replace(t.Context(), line.Address, uid, replaceOf(owner), conflict)
		return err
	}
	if err := replace(owner.UID); !errors.Is(err, ErrNotHeld) {
		t.Errorf("a pending one: %v, want ErrNotHeld", err)
	}
	if _, err := l.Bind(t.Context(), line.Claim, owner, Cause{}); err != nil {
		t.Fatal(err)
	}
	if err := replace("somebody else"); !errors.Is(err, ErrNotHeld) {
		t.Errorf("another's: %v, want ErrNotHeld", err)
	}
	if err := replace(owner.UID); err != nil {
		t.Errorf("at the limit of the namespace: %v; want another one, since the number stays", err)
	}
	drained := tight
	drained.Drain = true
	l.SetPools([]Pool{drained})
	if _, err := l.Replace(t.Context(), l.ByOwner(owner.UID)[0].Address, owner.UID, replaceOf(owner), conflict); !errors.Is(err, ErrDraining) {
		t.Errorf("from a pool that is drained: %v, want ErrDraining", err)
	}
}

// TestReplaceSurvivesACrash: the cluster still shows the old address when the ledger is opened anew.
func TestReplaceSurvivesACrash(t *testing.T) {
	c, path := newClock(), filepath.Join(t.TempDir(), "ledger.db")
	red := pool(t, "red", "192.0.2.1-192.0.2.9")
	l := openTest(t, path, c, red)
	owner := vm("web")
	line := give(t, l, owner)
	if _, err := l.Bind(t.Context(), line.Claim, owner, Cause{}); err != nil {
		t.Fatal(err)
	}
	next, err := l.Replace(t.Context(), line.Address, owner.UID, replaceOf(owner), conflict)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openTest(t, path, c, red)
	found, err := l.Adopt(t.Context(), []Sighting{{Address: line.Address, Pool: "red", Owner: owner, Source: "FloatingIP"}}, true)
	if err != nil || len(found.Adopted)+len(found.Missing) != 0 {
		t.Errorf("adopted %+v, missing %+v, %v; want nothing", found.Adopted, found.Missing, err)
	}
	if held := l.ByOwner(owner.UID); len(held) != 1 || held[0].Address != next.Address {
		t.Errorf("holds %+v, want %s alone", held, next.Address)
	}
}
