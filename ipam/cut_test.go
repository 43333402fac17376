package ipam

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
)

// sequence is what the traced process does: transactions of each kind, one after the other. Time and claims are fixed, so
// that the same is done twice.
var sequence = []func(ctx context.Context, l *Ledger) error{
	func(ctx context.Context, l *Ledger) error { return cutCommit(ctx, l, 1, IPv4, IPv6) },
	func(ctx context.Context, l *Ledger) error {
		_, err := l.Bind(ctx, floatip.Claim{1}, cutOwner(1), Cause{})
		return err
	},
	func(ctx context.Context, l *Ledger) error { return cutCommit(ctx, l, 2, IPv4) },
	func(ctx context.Context, l *Ledger) error {
		_, err := l.Release(ctx, cutOwner(1).UID, Cause{Reason: "VM is gone"})
		return err
	},
	func(ctx context.Context, l *Ledger) error { // hundreds of addresses at once: the file grows, pages split
		_, err := l.Adopt(ctx, cutSightings(600), false)
		return err
	},
	func(ctx context.Context, l *Ledger) error { // a dispute
		s := Sighting{Address: addr("203.0.113.1"), Owner: cutOwner(3), Source: "VirtualMachine"}
		_, err := l.Adopt(ctx, []Sighting{s}, false)
		return err
	},
}

func cutOwner(n byte) floatip.Owner {
	return floatip.Owner{Namespace: "cut", Name: fmt.Sprintf("vm-%d", n), UID: fmt.Sprintf("uid-%d", n)}
}

func cutCommit(ctx context.Context, l *Ledger, n byte, families ...Family) error {
	claim := floatip.Claim{n}
	offer, err := l.Reserve(ctx, Request{Claim: claim, Namespace: "cut", Families: families})
	if err == nil {
		_, err = l.Commit(ctx, claim, cutOwner(n), offer.Addresses, Cause{User: "alice", RequestUID: "r"})
	}
	return err
}

func cutSightings(n int) []Sighting {
	var seen []Sighting
	a := addr("203.0.113.1")
	for i := range n {
		owner := floatip.Owner{Namespace: "old", Name: fmt.Sprintf("vm-%d", i), UID: fmt.Sprintf("old-%d", i)}
		seen = append(seen, Sighting{Address: a, Owner: owner, Source: "FloatingIP"})
		a = a.Next()
	}
	return seen
}

func openCut(path string) (*Ledger, error) {
	l, err := Open(path, Options{Now: func() time.Time { return time.Unix(1_800_000_000, 0) }, growth: 64 << 10, lag: 1})
	if err != nil {
		return nil, err
	}
	pools, err := crashPools()
	l.SetPools(pools)
	return l, err
}

// runSequence is the traced process. It prints a line after each step that was acknowledged.
func runSequence(path string) error {
	l, err := openCut(path)
	if err != nil {
		return err
	}
	for i, step := range sequence {
		if err := step(context.Background(), l); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
		fmt.Println("acknowledged", i)
	}
	return l.Close()
}

// The power fails at each write of several transactions. Of what was written since the last completed flush, everything,
// nothing, or an arbitrary part is on the disk, also halves of pages. The ledger opens, is right, and is as it was either
// before or after the transaction; what was acknowledged is in it.
func TestCutAtEveryWrite(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	base, states := cutStates(t)
	path := filepath.Join(t.TempDir(), "traced.db")
	if err := os.WriteFile(path, base, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=sequence", childPathEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout = out
	effects := trace(t, cmd, path, nil)

	counts := map[effectKind]int{}
	disk := &disk{durable: base}
	acknowledged := 0
	for i, e := range effects {
		counts[e.kind]++
		if e.kind == effectPrint {
			acknowledged += strings.Count(string(e.data), "acknowledged")
			continue
		}
		disk.apply(e)
		for name, image := range disk.images(random) {
			label := fmt.Sprintf("after effect %d (%s), %s on disk", i, e.kind, name)
			checkCut(t, image, states[acknowledged:min(acknowledged+2, len(states))], label)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("effects: %v", counts)
	if acknowledged != len(sequence) || counts[effectSync] < 2*len(sequence) || counts[effectWrite] < 4*len(sequence) {
		t.Errorf("the trace is not whole: %d acknowledged, %v", acknowledged, counts)
	}
}

// cutState is what a ledger says: who has what, who claims it, and where the search goes on.
type cutState struct {
	lines []Allocation
	rest  string
}

func stateOf(l *Ledger) cutState {
	rest := fmt.Sprint(l.Disputes())
	for _, h := range l.book.homes {
		rest += fmt.Sprint(" ", h.pool.Name, h.cursor)
	}
	return cutState{slices.Collect(l.All()), rest}
}

// cutStates returns the file before the sequence, and the ledger before it and after each step.
func cutStates(t *testing.T) ([]byte, []cutState) {
	path := filepath.Join(t.TempDir(), "base.db")
	l, err := openCut(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := byte(100); n < 140; n++ {
		if err := cutCommit(t.Context(), l, n, IPv4, IPv6); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	base, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if l, err = openCut(path); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	states := []cutState{stateOf(l)}
	for i, step := range sequence {
		if err := step(t.Context(), l); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		states = append(states, stateOf(l))
	}
	return base, states
}

// disk is a file of which only what was flushed is certain.
type disk struct {
	durable []byte
	pending []effect
}

func (d *disk) apply(e effect) {
	if e.kind == effectSync {
		d.durable, d.pending = d.image(func(int) bool { return true }), nil
		return
	}
	d.pending = append(d.pending, e)
}

// image is the file with those pending effects that reached the disk.
func (d *disk) image(reached func(i int) bool) []byte {
	file := slices.Clone(d.durable)
	for i, e := range d.pending {
		if !reached(i) {
			continue
		}
		end := e.offset + int64(len(e.data))
		if e.kind == effectTruncate {
			if end < int64(len(file)) {
				file = file[:end]
			}
		}
		if end > int64(len(file)) {
			file = append(file, make([]byte, end-int64(len(file)))...)
		}
		copy(file[e.offset:], e.data)
	}
	return file
}

// images are files that a power failure may leave now.
func (d *disk) images(random *rand.Rand) map[string][]byte {
	images := map[string][]byte{"nothing since the flush": d.durable}
	if len(d.pending) == 0 {
		return images
	}
	last := len(d.pending) - 1
	images["everything"] = d.image(func(int) bool { return true })
	images["only the last write"] = d.image(func(i int) bool { return i == last })
	for n := range 2 {
		images[fmt.Sprintf("random part %d", n)] = d.image(func(int) bool { return random.IntN(2) == 0 })
	}
	if torn := d.pending[last]; torn.kind == effectWrite && len(torn.data) > 512 {
		half := *d
		half.pending = slices.Clone(d.pending)
		sectors := 1 + random.IntN(len(torn.data)/512-1)
		half.pending[last].data = torn.data[:512*sectors] // a disk writes whole sectors
		images["a torn page"] = half.image(func(int) bool { return true })
	}
	return images
}

func checkCut(t *testing.T, image []byte, allowed []cutState, label string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cut.db")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := openCut(path)
	if err != nil {
		t.Errorf("%s: %v", label, err)
		return
	}
	defer l.Close()
	report, err := l.Check(t.Context(), Against{})
	if err := errors.Join(err, report.Err()); err != nil {
		t.Errorf("%s: %v", label, err)
	}
	got := stateOf(l)
	for _, want := range allowed {
		if slices.Equal(got.lines, want.lines) && got.rest == want.rest {
			return
		}
	}
	diff := cmp.Diff(allowed[0].lines, got.lines, cmp.Comparer(sameAddress))
	t.Errorf("%s: neither before nor after the transaction (-before +got):\n%.2000s\n%s\n%s", label, diff, allowed[0].rest, got.rest)
}
