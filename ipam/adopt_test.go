package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
)

func sighting(owner floatip.Owner, a netip.Addr) Sighting {
	return Sighting{Address: a, Pool: "red", Owner: owner, Source: "VirtualMachine"}
}

// The file was lost: it is rebuilt from what the cluster shows, and no address moves.
func TestRebuild(t *testing.T) {
	p := pool(t, "red", "192.0.2.0/24")
	l, _ := start(t, p)
	var seen []Sighting
	want := map[string]netip.Addr{}
	for i := range 100 {
		line := give(t, l, vm(fmt.Sprint("vm-", i)))
		want[line.Owner.UID] = line.Address
		seen = append(seen, Sighting{Address: line.Address, Owner: line.Owner, Claim: line.Claim, Source: "FloatingIP"})
	}

	fresh, _ := start(t, p)
	found, err := fresh.Adopt(t.Context(), seen, true)
	if err != nil || len(found.Adopted) != 100 || len(found.Disputed)+len(found.Missing) != 0 {
		t.Fatalf("%+v, %v", found, err)
	}
	for uid, a := range want {
		if got := fresh.ByOwner(uid); len(got) != 1 || got[0].Address != a || got[0].State != Bound || got[0].Pool != "red" {
			t.Errorf("%s: %+v, want %s", uid, got, a)
		}
	}
	again, err := fresh.Adopt(t.Context(), seen, true)
	if err != nil || again.Confirmed != 100 || len(again.Adopted) != 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
	checkClean(t, fresh, Against{Pools: []Pool{p}, Seen: seen})
	if line := give(t, fresh, vm("new")); line.Address != addr("192.0.2.101") {
		t.Errorf("the next address is %s", line.Address)
	}
}

// Two VMs show one address: nobody loses it, it is flagged, also after a restart, and a person decides.
func TestDispute(t *testing.T) {
	c := newClock()
	path := filepath.Join(t.TempDir(), "ledger.db")
	p := pool(t, "red", "192.0.2.0/28")
	l := openTest(t, path, c, p)
	a := give(t, l, vm("holder")).Address
	found, err := l.Adopt(t.Context(), []Sighting{sighting(vm("rival"), a), sighting(vm("third"), a)}, false)
	if err != nil || len(found.Disputed) != 1 || len(found.Disputed[0].Claimants) != 2 {
		t.Fatalf("%+v, %v", found, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openTest(t, path, c, p)
	disputes := l.Disputes()
	if len(disputes) != 1 || disputes[0].Holder.Owner != vm("holder") || !disputes[0].Holder.Disputed || disputes[0].Claimants[0].Owner != vm("rival") {
		t.Fatalf("after a restart: %+v", disputes)
	}
	checkClean(t, l, Against{})
	if _, err := l.Resolve(t.Context(), a, "nobody", Cause{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("resolve for a stranger: %v", err)
	}
	line, err := l.Resolve(t.Context(), a, vm("rival").UID, Cause{User: "admin"})
	if err != nil || line.Owner != vm("rival") || line.Disputed || len(l.Disputes()) != 0 {
		t.Errorf("resolve: %+v, %v", line, err)
	}
	if _, err := l.Resolve(t.Context(), a, vm("rival").UID, Cause{}); !errors.Is(err, ErrNotHeld) {
		t.Errorf("resolve again: %v", err)
	}
	checkClean(t, l, Against{})
}

// One party of a dispute is gone: the others stay, the last one has the address.
func TestDisputeEndsWithAParty(t *testing.T) {
	l, _ := start(t, pool(t, "red", "192.0.2.0/28"))
	a := give(t, l, vm("holder")).Address
	if _, err := l.Adopt(t.Context(), []Sighting{sighting(vm("rival"), a), sighting(vm("third"), a)}, false); err != nil {
		t.Fatal(err)
	}
	var states []string
	note := func() {
		line, _ := l.Lookup(a)
		states = append(states, fmt.Sprint(line.Owner, " ", line.State, " ", line.Disputed))
	}
	for _, gone := range []string{"rival", "holder", "third"} {
		if _, err := l.Release(t.Context(), vm(gone).UID, Cause{}); err != nil {
			t.Fatal(err)
		}
		note()
		checkClean(t, l, Against{})
	}
	want := []string{"prod/holder Pending true", "prod/third Bound false", "prod/third Released false"}
	if diff := cmp.Diff(want, states); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The cluster is older than the file, or a VM is gone: what a complete view does not show stays held and is flagged.
func TestMissing(t *testing.T) {
	l, c := start(t, pool(t, "red", "192.0.2.0/28"))
	line := give(t, l, vm("a"))
	if _, err := l.Bind(t.Context(), line.Claim, vm("a"), Cause{}); err != nil {
		t.Fatal(err)
	}
	found, err := l.Adopt(t.Context(), nil, true)
	if err != nil || len(found.Missing) != 1 || !found.Missing[0].Missing {
		t.Fatalf("%+v, %v", found, err)
	}
	c.advance(10000 * 3600 * 1e9)
	if got, _ := l.Lookup(line.Address); got.State != Bound || !got.Missing {
		t.Errorf("after a year: %+v", got)
	}
	if _, err := l.Bind(t.Context(), line.Claim, vm("a"), Cause{}); err != nil {
		t.Fatal(err)
	}
	if got, _ := l.Lookup(line.Address); got.Missing {
		t.Errorf("seen again: %+v", got)
	}
}

// An address that rests, or is only promised, is adopted for the VM that shows it; an address outside of every pool too.
func TestAdoptWhatIsNotHeld(t *testing.T) {
	l, _ := start(t, pool(t, "red", "192.0.2.1-192.0.2.3"))
	rests := give(t, l, vm("a")).Address
	if _, err := l.Release(t.Context(), vm("a").UID, Cause{}); err != nil {
		t.Fatal(err)
	}
	promised := ask(Request{Name: "b"})
	offer, err := l.Reserve(t.Context(), promised)
	if err != nil {
		t.Fatal(err)
	}
	outside := addr("203.0.113.9")
	found, err := l.Adopt(t.Context(), []Sighting{
		sighting(vm("x"), rests), sighting(vm("y"), offer.Addresses[0]), sighting(vm("z"), outside),
	}, false)
	if err != nil || len(found.Adopted) != 3 {
		t.Fatalf("%+v, %v", found, err)
	}
	if _, err := l.Commit(t.Context(), promised.Claim, vm("b"), offer.Addresses, Cause{}); !errors.Is(err, ErrTaken) {
		t.Errorf("commit of the promise: %v", err)
	}
	report, err := l.Check(t.Context(), Against{Pools: []Pool{pool(t, "red", "192.0.2.1-192.0.2.3")}})
	if err != nil || len(report.Problems) != 1 || !strings.Contains(report.Problems[0].String(), "203.0.113.9: it is held by VM prod/z and lies in no pool") {
		t.Errorf("check: %v, %v", report.Problems, err)
	}
}

// An old copy of the file has a VM with an address that it had before, and the cluster shows it with a later one: both are
// held, the VM has the later one, also after a restart, and the earlier one goes with the VM or by command.
func TestEarlierAddressOfTheSameVM(t *testing.T) {
	for name, end := range map[string]func(l *Ledger, earlier, later netip.Addr) error{
		"given up by command": func(l *Ledger, earlier, later netip.Addr) error {
			if _, err := l.GiveUp(t.Context(), later, vm("a").UID, Cause{}); !errors.Is(err, ErrNotHeld) {
				t.Errorf("give up what the VM has: %v", err)
			}
			if _, err := l.GiveUp(t.Context(), earlier, vm("b").UID, Cause{}); !errors.Is(err, ErrNotHeld) {
				t.Errorf("give up in the name of another VM: %v", err)
			}
			_, err := l.GiveUp(t.Context(), earlier, vm("a").UID, Cause{})
			return err
		},
		"the VM is gone": func(l *Ledger, earlier, later netip.Addr) error {
			_, err := l.Release(t.Context(), vm("a").UID, Cause{})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, path := newClock(), filepath.Join(t.TempDir(), "ledger.db")
			red := pool(t, "red", "192.0.2.1-192.0.2.3", "2001:db8::/64")
			l := openTest(t, path, c, red)
			line := give(t, l, vm("a"))
			if _, err := l.Bind(t.Context(), line.Claim, vm("a"), Cause{}); err != nil {
				t.Fatal(err)
			}
			earlier, later := line.Address, addr("192.0.2.2")
			shown := Sighting{Address: later, Owner: vm("a"), Claim: line.Claim, Source: "FloatingIP"}
			both := []Sighting{shown, {Address: earlier, Owner: vm("a"), Claim: line.Claim, Source: "FloatingIP"}}
			for n, seen := range [][]Sighting{{shown}, both} {
				found, err := l.Adopt(t.Context(), seen, true)
				if err != nil || len(found.Superseded) != 1-n || len(found.Missing)+len(found.Disputed) != 0 {
					t.Fatalf("%+v, %v", found, err)
				}
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				l = openTest(t, path, c, red)
				checkClean(t, l, Against{})
				var has []string
				for _, line := range l.ByOwner(vm("a").UID) {
					has = append(has, line.Address.String())
				}
				if diff := cmp.Diff([]string{"192.0.2.2", "2001:db8::1"}, has); diff != "" {
					t.Errorf("the VM has (-want +got):\n%s", diff)
				}
				if line, _ := l.Lookup(earlier); line.State != Bound || !line.Superseded || line.Owner != vm("a") {
					t.Errorf("the earlier address: %+v", line)
				}
			}
			_, err := l.Reserve(t.Context(), ask(Request{Addresses: []netip.Addr{earlier}}))
			if !errors.Is(err, ErrTaken) {
				t.Errorf("somebody else asks for the earlier one: %v", err)
			}
			if err := end(l, earlier, later); err != nil {
				t.Fatal(err)
			}
			if line, _ := l.Lookup(earlier); line.State != Released || line.Superseded {
				t.Errorf("in the end the earlier one is %+v", line)
			}
			checkClean(t, l, Against{})
		})
	}
}

// Check names what does not agree with the cluster.
func TestCheckAgainstVMs(t *testing.T) {
	l, _ := start(t, pool(t, "red", "192.0.2.0/28"))
	line := give(t, l, vm("a"))
	if _, err := l.Bind(t.Context(), line.Claim, vm("a"), Cause{}); err != nil {
		t.Fatal(err)
	}
	report, err := l.Check(t.Context(), Against{Seen: []Sighting{sighting(vm("b"), line.Address), sighting(vm("c"), addr("192.0.2.9"))}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range report.Problems {
		got = append(got, p.String())
	}
	want := []string{
		"192.0.2.1: VirtualMachine of VM prod/b (uid-b) has it, the ledger says that VM prod/a (uid-a) holds it",
		"192.0.2.1: the ledger says that VM prod/a (uid-a) holds it, the cluster does not show it",
		"192.0.2.9: VirtualMachine of VM prod/c has it, the ledger says that nobody holds it",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
