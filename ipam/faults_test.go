package ipam

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"floatip.io/floatip"
)

// runHold keeps the ledger open until its standard input ends.
func runHold(path string) error {
	l, err := Open(path, Options{})
	if err != nil {
		return err
	}
	fmt.Println("open")
	bufio.NewReader(os.Stdin).ReadString('\n')
	return l.Close()
}

// runFillVolume commits until the file system of path has no room.
func runFillVolume(path string) error {
	l, err := Open(path, Options{})
	if err != nil {
		return err
	}
	pools, err := crashPools()
	if err != nil {
		return err
	}
	l.SetPools(pools)
	return fillUp(l)
}

// runFill commits until the file may not grow any more (RLIMIT_FSIZE, set by the shell's parent), then shows that what
// was acknowledged is still there and that reading goes on.
func runFill(path string) error {
	limit := unix.Rlimit{Cur: 2 << 20, Max: 2 << 20}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	return runFillVolume(path)
}

func fillUp(l *Ledger) error {
	ctx := context.Background()
	for n := 0; ; n++ {
		claim := floatip.NewClaim()
		owner := floatip.Owner{Namespace: "full", Name: fmt.Sprintf("vm-%d", n), UID: fmt.Sprintf("uid-%d", n)}
		offer, err := l.Reserve(ctx, Request{Claim: claim, Namespace: "full", Families: []Family{IPv6}})
		if err != nil {
			return err
		}
		_, err = l.Commit(ctx, claim, owner, offer.Addresses, Cause{})
		if err == nil && n > 1<<20 {
			return errors.New("the file grew past its limit")
		}
		if err == nil {
			continue
		}
		return afterFull(l, n, offer, err)
	}
}

// afterFull checks the ledger whose n-th commit failed.
func afterFull(l *Ledger, n int, offer Offer, failure error) error {
	if !errors.Is(failure, ErrDiskFull) || !strings.Contains(failure.Error(), "make room") {
		return fmt.Errorf("want ErrDiskFull with what to do, got: %w", failure)
	}
	if line, _ := l.Lookup(offer.Addresses[0]); line.State != Reserved {
		return fmt.Errorf("after the failure the address is %v, want still promised", line)
	}
	if held := len(l.ByOwner(fmt.Sprintf("uid-%d", n-1))); held != 1 {
		return fmt.Errorf("the last acknowledged VM holds %d addresses", held)
	}
	report, err := l.Check(context.Background(), Against{})
	if err := errors.Join(err, report.Err()); err != nil {
		return err
	}
	if report.Held != n {
		return fmt.Errorf("%d were acknowledged, %d are in the file", n, report.Held)
	}
	fmt.Println("acknowledged", n)
	return l.Close()
}

func child(t *testing.T, name, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+name, childPathEnv+"="+path)
	cmd.Stderr = os.Stderr
	return cmd
}

// A file system without room: the commit fails with what to do, nothing of it stays, and everything acknowledged does.
func TestFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	out, err := child(t, "fill", path).Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var acknowledged int
	if _, err := fmt.Sscanf(string(out), "acknowledged %d", &acknowledged); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	l := openTest(t, path, newClock(), pool(t, "six", "2001:db8::/64"))
	report := checkClean(t, l, Against{})
	if report.Held != acknowledged || acknowledged < 100 {
		t.Errorf("%d acknowledged, %d found", acknowledged, report.Held)
	}
	give(t, l, vm("after")) // there is room again
}

// A second process on the same file is told so at once.
func TestSecondProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	cmd := child(t, "hold", path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
		t.Fatalf("%q, %v", line, err)
	}
	_, err = Open(path, Options{})
	wantFault(t, err, ErrLocked, "stop the other one")
	if report, err := CheckFile(path, Against{}); err != nil || report.Err() != nil {
		t.Errorf("check of a file in use: %v, %v", err, report.Err())
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	openTest(t, path, newClock())
}

func wantFault(t *testing.T, err, want error, advice string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(err.Error(), advice) {
		t.Errorf("want %v with %q, got: %v", want, advice, err)
	}
}

func checkClean(t testing.TB, l *Ledger, against Against) Report {
	t.Helper()
	report, err := l.Check(t.Context(), against)
	if err := errors.Join(err, report.Err()); err != nil {
		t.Error(err)
	}
	return report
}

// sample returns the bytes of a ledger with n holders.
func sample(t *testing.T, n int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := openTest(t, path, newClock(), pool(t, "red", "192.168.0.0/16"))
	for i := range n {
		give(t, l, vm(fmt.Sprintf("vm-%d", i)))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Whatever is wrong with the file, Open says what and what to do, and leaves the file as it is.
func TestFaultyFiles(t *testing.T) {
	good := sample(t, 200)
	cases := []struct {
		name   string
		file   []byte
		want   error
		advice string
	}{
		{"cut to half", good[:lastUsedPage(t, good)/2], ErrDamaged, "it was cut off"},
		{"cut by one page", good[:lastUsedPage(t, good)], ErrDamaged, "it was cut off"},
		{"cut inside the meta pages", good[:5000], ErrDamaged, "FloatingIP objects"},
		{"empty", nil, ErrDamaged, "keep a copy"},
		{"one byte", []byte{1}, ErrDamaged, "keep a copy"},
		{"first meta page", overwritten(good, 30), ErrDamaged, "the last change may be missing"},
		{"second meta page", overwritten(good, os.Getpagesize()+30), ErrDamaged, "the last change may be missing"},
		{"zeros", make([]byte, len(good)), ErrDamaged, "keep a copy"},
		{"text", bytes.Repeat([]byte("floating\n"), 4000), ErrDamaged, "keep a copy"},
		{"another database", otherDatabase(t), ErrFormat, "start the version"},
		{"format 1", earlierFormat(t, 1), ErrFormat, "version 01, this floatip knows 3; start the version of floatip that wrote it, or move the file away"},
		{"format 2", earlierFormat(t, 2), ErrFormat, "version 02, this floatip knows 3; start the version of floatip that wrote it, or move the file away"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ledger.db")
			if err := os.WriteFile(path, c.file, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(path, Options{})
			wantFault(t, err, c.want, c.advice)
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, c.file) {
				t.Errorf("the file was changed, %v", err)
			}
		})
	}
}

func overwritten(file []byte, at int) []byte {
	bad := bytes.Clone(file)
	bad[at] ^= 0xff
	return bad
}

// lastUsedPage returns the offset of the last page that the meta page counts.
func lastUsedPage(t *testing.T, file []byte) int64 {
	t.Helper()
	m, err := readMeta(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	return m.size() - int64(m.pageSize)
}

// Bytes anywhere in the file are overwritten. Open refuses with ErrDamaged, or what it loads is whole and a check says
// whether anything is wrong; it never ends the process and never invents an allocation.
func TestDamagedAnywhere(t *testing.T) {
	good := sample(t, 120)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	path := filepath.Join(t.TempDir(), "ledger.db")
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	want := lines(t, path)
	refused, harmless := 0, 0
	for round := range 400 {
		bad := bytes.Clone(good)
		at := random.IntN(len(bad))
		for range 1 + random.IntN(64) {
			bad[at%len(bad)] ^= byte(1 + random.IntN(255))
			at++
		}
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := Open(path, Options{})
		if err != nil {
			refused++
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrFormat) {
				t.Errorf("round %d: %v", round, err)
			}
			continue
		}
		harmless++
		report, err := l.Check(t.Context(), Against{})
		if err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		for line := range l.All() {
			if want[line.Address.String()] != line {
				t.Errorf("round %d: the damaged file shows %+v", round, line)
			}
		}
		if report.Err() == nil && report.Held != len(want) {
			t.Errorf("round %d: %d of %d allocations, and nobody noticed", round, report.Held, len(want))
		}
		l.Close()
	}
	t.Logf("%d refused, %d opened", refused, harmless)
	if refused == 0 {
		t.Error("no damage was noticed")
	}
}

func lines(t *testing.T, path string) map[string]Allocation {
	t.Helper()
	l := openTest(t, path, newClock())
	defer l.Close()
	all := map[string]Allocation{}
	for line := range l.All() {
		all[line.Address.String()] = line
	}
	return all
}

// A file system that became read-only refuses to open the ledger and says what to do.
func TestReadOnly(t *testing.T) {
	for err, want := range map[error]error{
		syscall.EROFS: ErrReadOnly, fs.ErrPermission: ErrReadOnly,
		syscall.ENOSPC: ErrDiskFull, syscall.EDQUOT: ErrDiskFull, syscall.EFBIG: ErrDiskFull,
	} {
		if got := fileError("x", &fs.PathError{Op: "open", Path: "x", Err: err}); !errors.Is(got, want) {
			t.Errorf("%v: %v", err, got)
		}
	}
	raw := sample(t, 3)
	dir := readOnlyDirectory(t, raw)
	_, err := Open(filepath.Join(dir, "ledger.db"), Options{})
	wantFault(t, err, ErrReadOnly, "mount its volume writable")
	if report, err := CheckFile(filepath.Join(dir, "ledger.db"), Against{}); err != nil || report.Err() != nil || report.Held != 3 {
		t.Errorf("check of a read-only file: %+v, %v", report, err)
	}
}
