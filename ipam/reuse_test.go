package ipam

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"floatip.io/floatip"
)

// What was released is given after all that nobody had, the first one first, and not before it has rested.
func TestReuseComesLast(t *testing.T) {
	l, c := start(t, pool(t, "red", "192.0.2.1-192.0.2.4"))
	for _, name := range []string{"a", "b"} {
		give(t, l, vm(name))
	}
	for _, name := range []string{"b", "a"} {
		if _, err := l.Release(t.Context(), vm(name).UID, Cause{}); err != nil {
			t.Fatal(err)
		}
		c.advance(time.Second)
	}
	c.advance(DefaultQuarantine - 2*time.Second) // b's has rested, a's has not
	for i, want := range []string{"192.0.2.3", "192.0.2.4", "192.0.2.2"} {
		if got := give(t, l, vm(fmt.Sprint("new-", i))).Address.String(); got != want {
			t.Errorf("%s is given, want %s", got, want)
		}
	}
	if offer, err := l.Reserve(t.Context(), ask(Request{})); !errors.Is(err, ErrFull) {
		t.Errorf("an address that rests is given: %v, %v", offer.Addresses, err)
	}
	c.advance(time.Second)
	if got := give(t, l, vm("last")).Address.String(); got != "192.0.2.1" {
		t.Errorf("%s is given when all have rested", got)
	}
}

// The search goes on behind the address that was given last, also after a restart: an address that is forgotten after its
// release is not the next one because it is the lowest.
func TestCursorSurvives(t *testing.T) {
	c, path := newClock(), filepath.Join(t.TempDir(), "ledger.db")
	red, blue := pool(t, "red", "192.0.2.1-192.0.2.9", "2001:db8::/64"), pool(t, "blue", "198.51.100.1")
	for i, want := range []string{"192.0.2.1 2001:db8::1", "192.0.2.2 2001:db8::2", "192.0.2.3 2001:db8::3"} {
		l := openTest(t, path, c, red, blue)
		claim := floatip.NewClaim()
		offer, err := l.Reserve(t.Context(), Request{Claim: claim, Namespace: "prod", Pools: []string{"red"}})
		if err == nil {
			_, err = l.Commit(t.Context(), claim, vm(fmt.Sprint(i)), offer.Addresses, Cause{})
		}
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, line := range l.ByOwner(vm(fmt.Sprint(i)).UID) {
			got += line.Address.String() + " "
		}
		if got != want+" " {
			t.Errorf("start %d: got %s, want %s", i, got, want)
		}
		if _, err := l.Release(t.Context(), vm(fmt.Sprint(i)).UID, Cause{}); err != nil {
			t.Fatal(err)
		}
		c.advance(25 * time.Hour)
		give(t, l, vm("else"), addr("198.51.100.1")) // with each change something is forgotten
		if _, there := l.Lookup(addr("192.0.2.1")); there {
			t.Errorf("start %d: the address is remembered, the test shows nothing", i)
		}
		if _, err := l.Release(t.Context(), vm("else").UID, Cause{}); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// For ten minutes the VM of the same namespace and name gets back what it had, before it has rested, unless somebody has it;
// then it is one of many.
func TestHold(t *testing.T) {
	const hold = 10 * time.Minute // as Options say
	for name, tc := range map[string]struct {
		after     time.Duration
		quarter   time.Duration // quarantine
		namespace string
		other     bool // somebody else has it
		want      string
	}{
		"at once":                                {0, time.Hour, "prod", false, "192.0.2.1"},
		"just in time, though it rests":          {hold - time.Second, time.Hour, "prod", false, "192.0.2.1"},
		"too late":                               {hold, time.Hour, "prod", false, "192.0.2.2"},
		"too late, though it has rested":         {hold, 0, "prod", false, "192.0.2.2"},
		"another namespace":                      {0, 0, "dev", false, "192.0.2.2"},
		"somebody has asked for it and holds it": {time.Minute, 0, "prod", true, "192.0.2.2"},
	} {
		t.Run(name, func(t *testing.T) {
			p := pool(t, "red", "192.0.2.1-192.0.2.9")
			p.Quarantine = tc.quarter
			l, c := start(t, p)
			give(t, l, vm("web"))
			if _, err := l.Release(t.Context(), vm("web").UID, Cause{}); err != nil {
				t.Fatal(err)
			}
			c.advance(tc.after)
			if tc.other {
				give(t, l, vm("other"), addr("192.0.2.1"))
			}
			again := floatip.Owner{Namespace: tc.namespace, Name: "web", UID: "uid-second"}
			if got := give(t, l, again).Address.String(); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

// A promise is in memory for 45 s, and in the file not at all: neither its making nor its end changes a byte.
func TestPromiseIsInMemory(t *testing.T) {
	c, path := newClock(), filepath.Join(t.TempDir(), "ledger.db")
	l := openTest(t, path, c, pool(t, "red", "192.0.2.1-192.0.2.1"))
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := ask(Request{Name: "a"})
	offer, err := l.Reserve(t.Context(), r)
	if err != nil || !offer.Expires.Equal(c.now().Add(45*time.Second)) {
		t.Fatalf("%+v, %v", offer, err)
	}
	c.advance(45*time.Second - 1)
	if lines := l.ByClaim(r.Claim); len(lines) != 1 || lines[0].State != Reserved {
		t.Errorf("a moment before its end: %+v", lines)
	}
	if _, err := l.Reserve(t.Context(), ask(Request{Name: "b"})); !errors.Is(err, ErrFull) {
		t.Errorf("somebody else asks a moment before: %v", err)
	}
	c.advance(1)
	if lines := l.ByClaim(r.Claim); len(lines) != 0 {
		t.Errorf("at its end: %+v", lines)
	}
	if _, err := l.Reserve(t.Context(), ask(Request{Name: "b"})); err != nil {
		t.Errorf("somebody else asks at its end: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file was changed, %v", err)
	}
}

// A namespaceSelector that changes, or a namespace whose labels do, decides about new addresses: what is held stays, what
// is promised is kept, and the namespace of the VM that is gone has no right to its old address.
func TestSelectorThatChanges(t *testing.T) {
	p := pool(t, "red", "192.0.2.1-192.0.2.9")
	p.Selects = func(labels map[string]string) bool { return labels["team"] == "blue" }
	l, _ := start(t, p)
	blue := map[string]string{"team": "blue"}
	reserve := func(name string, labels map[string]string, wanted ...netip.Addr) (Offer, error) {
		return l.Reserve(t.Context(), ask(Request{Name: name, NamespaceLabels: labels, Addresses: wanted}))
	}
	held, err := reserve("held", blue)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := l.Commit(t.Context(), held.Claim, vm("held"), nil, Cause{})
	if err != nil {
		t.Fatal(err)
	}
	promised, err := reserve("promised", blue)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reserve("x", nil); !errors.Is(err, ErrNoPool) {
		t.Errorf("a namespace without the label: %v", err)
	}
	p.Selects = func(labels map[string]string) bool { return labels["team"] == "green" }
	if err := l.CanChange(p); err != nil {
		t.Errorf("another selector while addresses are held: %v", err)
	}
	l.SetPools([]Pool{p})
	for what, refused := range map[string]error{
		"next":    func() error { _, err := reserve("y", blue); return err }(),
		"request": func() error { _, err := reserve("y", blue, addr("192.0.2.5")); return err }(),
	} {
		if !errors.Is(refused, ErrNoPool) && !errors.Is(refused, ErrNotAllowed) {
			t.Errorf("%s, of a namespace that is not selected any more: %v", what, refused)
		}
	}
	if line, _ := l.Lookup(lines[0].Address); line.State != Pending || line.Owner != vm("held") {
		t.Errorf("what was held: %+v", line)
	}
	if _, err := l.Commit(t.Context(), promised.Claim, vm("promised"), nil, Cause{}); err != nil {
		t.Errorf("what was promised: %v", err)
	}
	if _, err := l.Release(t.Context(), vm("held").UID, Cause{}); err != nil {
		t.Fatal(err)
	}
	if _, err := reserve("held", blue); !errors.Is(err, ErrNoPool) {
		t.Errorf("the VM of the same name comes back: %v", err)
	}
	if _, err := reserve("z", map[string]string{"team": "green"}); err != nil {
		t.Errorf("a namespace that is selected now: %v", err)
	}
}
