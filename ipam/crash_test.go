package ipam

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"floatip.io/floatip"
)

var crashRounds = flag.Int("crash.rounds", 300, "how often the crash test kills the writers")

// crashOptions keep the file small over hundreds of rounds, and make the ledger forget.
var crashOptions = Options{HistorySize: 3000, Hold: time.Millisecond, Remember: time.Second}

// crashPools are given back at once, so that addresses go from one VM to the next.
func crashPools() ([]Pool, error) {
	four, err := ParsePool(PoolText{Name: "four", Addresses: []string{"198.51.100.0/25"}})
	if err != nil {
		return nil, err
	}
	six, err := ParsePool(PoolText{Name: "six", Addresses: []string{"2001:db8::/64"}})
	four.Quarantine, six.Quarantine = 0, 0
	return []Pool{four, six}, err
}

// runWriters is the process that is killed: 64 writers that commit, bind and release, and tell on standard output what
// they are about to release ("release") and what the ledger acknowledged ("committed", "bound", "released"). A line is one
// write to a pipe and arrives whole (pipe(7), PIPE_BUF).
func runWriters(path string) error {
	l, err := Open(path, crashOptions)
	if err != nil {
		return err
	}
	pools, err := crashPools()
	if err != nil {
		return err
	}
	l.SetPools(pools)
	kept := &keepers{}
	for line := range l.All() {
		if line.held() {
			kept.add(line)
		}
	}
	failed := make(chan error)
	for range 64 {
		go func() {
			for {
				if err := oneLife(l, kept); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	return <-failed
}

// keepers are VMs that live on after their writer has finished with them.
type keepers struct {
	mu  sync.Mutex
	vms []Allocation // one address of each
}

func (k *keepers) add(line Allocation) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.vms = append(k.vms, line)
}

// take returns one of them.
func (k *keepers) take() (Allocation, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.vms) == 0 {
		return Allocation{}, false
	}
	at, last := rand.IntN(len(k.vms)), len(k.vms)-1
	k.vms[at], k.vms[last] = k.vms[last], k.vms[at]
	line := k.vms[last]
	k.vms = k.vms[:last]
	return line, true
}

// oneLife takes addresses for a VM, and nearly always gives them back.
func oneLife(l *Ledger, kept *keepers) error {
	ctx := context.Background()
	claim := floatip.NewClaim()
	uid := floatip.NewClaim().String()
	owner := crashOwner(uid)
	offer, err := l.Reserve(ctx, Request{
		Claim: claim, Namespace: owner.Namespace, Name: owner.Name, Families: families(rand.IntN(3)),
		WriteAhead: rand.IntN(2) == 0, Cause: Cause{User: "crash"},
	})
	if errors.Is(err, ErrFull) {
		if line, ok := kept.take(); ok {
			return releaseOne(ctx, l, line.Owner.UID, line.Address)
		}
		return nil
	}
	if err != nil {
		return err
	}
	lines, err := l.Commit(ctx, claim, owner, offer.Addresses, Cause{User: "crash", RequestUID: uid})
	if errors.Is(err, ErrTaken) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, line := range lines {
		fmt.Fprintln(os.Stdout, "committed", uid, line.Address)
	}
	if rand.IntN(2) == 0 {
		if _, err := l.Bind(ctx, claim, owner, Cause{}); err != nil {
			return err
		}
		fmt.Fprintln(os.Stdout, "bound", uid, lines[0].Address)
	}
	if rand.IntN(8) == 0 {
		kept.add(lines[0])
		return nil
	}
	return releaseOne(ctx, l, uid, lines[0].Address)
}

// crashOwner is the VM with that UID, which is a claim and begins with the time.
func crashOwner(uid string) floatip.Owner {
	return floatip.Owner{Namespace: "crash", Name: "vm-" + uid[24:], UID: uid}
}

func families(n int) []Family { return [][]Family{{IPv4}, {IPv6}, {IPv4, IPv6}}[n] }

func releaseOne(ctx context.Context, l *Ledger, uid string, a netip.Addr) error {
	fmt.Fprintln(os.Stdout, "release", uid, a)
	if _, err := l.Release(ctx, uid, Cause{}); err != nil {
		return err
	}
	fmt.Fprintln(os.Stdout, "released", uid, a)
	return nil
}

// witness is what the parent knows from the pipe.
type witness struct {
	t      *testing.T
	holder map[netip.Addr]string          // acknowledged
	held   map[string]map[netip.Addr]bool // by UID
	bound  map[string]bool
	fate   map[string]bool // a release was begun: the VM may have its addresses or not
	acks   int
	kept   int // addresses that were acknowledged, and that only a promise was left of
}

func newWitness(t *testing.T) *witness {
	return &witness{
		t: t, holder: map[netip.Addr]string{}, held: map[string]map[netip.Addr]bool{},
		bound: map[string]bool{}, fate: map[string]bool{},
	}
}

func (w *witness) hear(line string) {
	var verb, uid, text string
	if _, err := fmt.Sscan(line, &verb, &uid, &text); err != nil {
		w.t.Fatalf("line %q: %v", line, err)
	}
	a := netip.MustParseAddr(text)
	switch verb {
	case "committed":
		if other, taken := w.holder[a]; taken && !w.fate[other] {
			w.t.Errorf("%s was given to %s while %s held it", a, uid, other)
		}
		if w.held[uid] == nil {
			w.held[uid] = map[netip.Addr]bool{}
		}
		w.holder[a], w.held[uid][a] = uid, true
	case "bound":
		w.bound[uid] = true
	case "release":
		w.fate[uid] = true
	case "released":
		w.forget(uid)
	}
	w.acks++
}

func (w *witness) forget(uid string) {
	for a := range w.held[uid] {
		if w.holder[a] == uid {
			delete(w.holder, a)
		}
	}
	delete(w.held, uid)
	delete(w.bound, uid)
	delete(w.fate, uid)
}

// settle does what the cluster does with promises that were kept: the VM that was acknowledged shows up and gets what it was
// promised, for another one is looked in vain.
func (w *witness) settle(l *Ledger) {
	w.t.Helper()
	for _, line := range l.StalePending(0) {
		uid := w.holder[line.Address]
		switch {
		case line.Owner.UID != "":
		case uid != "" && line.Owner == (floatip.Owner{Namespace: "crash", Name: crashOwner(uid).Name}):
			w.kept++
			if _, err := l.Bind(w.t.Context(), line.Claim, crashOwner(uid), Cause{}); err != nil && !w.fate[uid] {
				w.t.Errorf("%s was promised and acknowledged for %s: %v", line.Address, uid, err)
			}
		default:
			l.Expire(line.Claim)
		}
	}
}

// compare proves that what was acknowledged is in the ledger, and makes the ledger's answer the truth where the process
// died before it could tell.
func (w *witness) compare(l *Ledger) {
	w.t.Helper()
	w.settle(l)
	for a, uid := range w.holder {
		line, _ := l.Lookup(a)
		there := line.held() && line.Owner.UID == uid
		if !there && !w.fate[uid] {
			w.t.Errorf("%s was acknowledged for %s and is lost: %+v", a, uid, line)
		}
		if there && w.bound[uid] && line.State != Bound {
			w.t.Errorf("%s was bound, is %s", a, line.State)
		}
	}
	kept := w.kept
	*w = *newWitness(w.t)
	w.kept = kept
	for line := range l.All() {
		if !line.held() {
			continue
		}
		if w.held[line.Owner.UID] == nil {
			w.held[line.Owner.UID] = map[netip.Addr]bool{}
		}
		w.holder[line.Address], w.held[line.Owner.UID][line.Address] = line.Owner.UID, true
		w.bound[line.Owner.UID] = line.State == Bound
	}
}

// A process with 64 concurrent writers is killed at random moments, over and over on the same file. Every acknowledged
// allocation is there afterwards, none is doubled, and the ledger is right.
func TestKilledAtRandomMoments(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	pools, err := crashPools()
	if err != nil {
		t.Fatal(err)
	}
	w, acks := newWitness(t), 0
	for round := range *crashRounds {
		crashOnce(t, path, w)
		acks += w.acks
		l, err := Open(path, crashOptions)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		l.SetPools(pools)
		report, err := l.Check(t.Context(), Against{Pools: pools})
		if err := errors.Join(err, report.Err()); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		w.compare(l)
		if err := l.Close(); err != nil || t.Failed() {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	t.Logf("%d rounds, %d acknowledgements, %d of them kept by a promise", *crashRounds, acks, w.kept)
	if *crashRounds >= 300 && w.kept == 0 {
		t.Error("no process was killed between an acknowledgement and its transaction: of promises the test shows nothing")
	}
	if acks < *crashRounds {
		t.Errorf("the writers acknowledged only %d operations", acks)
	}
}

// crashOnce runs the writers and kills them up to 60 ms after their first acknowledgement, or, now and then, before it.
func crashOnce(t *testing.T, path string, w *witness) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=writers", childPathEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// A timer, not a sleep: the moment of the kill is what the test varies.
	kill := func() { cmd.Process.Kill() }
	early := rand.IntN(20) == 0
	if early {
		time.AfterFunc(time.Duration(rand.Int64N(int64(30*time.Millisecond))), kill)
	}
	lines := bufio.NewReader(out)
	for n := 0; ; n++ {
		line, err := lines.ReadString('\n')
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		w.hear(line)
		if n == 0 && !early {
			time.AfterFunc(time.Duration(rand.Int64N(int64(60*time.Millisecond))), kill)
		}
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() > 0 {
		t.Fatalf("the writers ended by themselves: %v", err)
	}
}
