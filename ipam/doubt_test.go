package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"floatip.io/floatip"
)

// doubtful is how many addresses the process with the failing disk adopts at once: two entries of the history.
const doubtful = entrySteps + 40

// doubtfulAddress is the i-th of them; nobody has it before.
func doubtfulAddress(i int) netip.Addr { return addr(fmt.Sprintf("198.51.100.%d", 10+i)) }

// runDoubt adopts, which fails, and then tries to give one of the addresses to somebody else.
func runDoubt(path string) error {
	ctx := context.Background()
	l, err := openCut(path)
	if err != nil {
		return err
	}
	seen := cutSightings(doubtful)
	for i := range seen {
		seen[i].Address = doubtfulAddress(i)
	}
	fmt.Println("from here on")
	if _, err := l.Adopt(ctx, seen, false); !errors.Is(err, ErrUncertain) || !errors.Is(err, unix.EIO) ||
		!strings.Contains(err.Error(), "start floatip-webhook again") {
		fmt.Println("adopt:", err)
	}
	select {
	case <-l.Broken():
	default:
		fmt.Println("nobody is told that the file is in doubt")
	}
	claim, a := floatip.NewClaim(), doubtfulAddress(doubtful-1)
	offer, err := l.Reserve(ctx, Request{Claim: claim, Namespace: "cut", Addresses: []netip.Addr{a}})
	if err != nil {
		return fmt.Errorf("what was not adopted is not free: %w", err)
	}
	if _, err := l.Commit(ctx, claim, cutOwner(9), offer.Addresses, Cause{}); !errors.Is(err, ErrUncertain) {
		fmt.Println("commit:", err)
	}
	os.Exit(0) // as a process that ends at once
	return nil
}

// TestFlushThatFailed: the second flush of a transaction, that of the meta page, reports an error of the disk. Whether the
// transaction is in the file then nobody knows, so nothing may be built on it in one way or the other: no other transaction
// is written, and the next start finds a whole ledger.
func TestFlushThatFailed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l, err := openCut(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(cutCommit(t.Context(), l, 1, IPv4), l.Close()); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=doubt", childPathEnv+"="+path)
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	failed := 0
	for _, one := range trace(t, cmd, path, func(effects []effect) bool {
		fails := failed == 0 && said(effects, "from here on") && lastWrite(effects).offset < 2*int64(os.Getpagesize()) // the two meta pages
		if fails {
			failed++
		}
		return fails
	}) {
		if one.kind == effectPrint && !strings.Contains(string(one.data), "from here on") {
			t.Errorf("the process says: %s", one.data)
		}
	}
	if failed != 1 {
		t.Error("no flush of a meta page failed: the test shows nothing")
	}
	if l, err = openCut(path); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	report, err := l.Check(t.Context(), Against{})
	if err := errors.Join(err, report.Err()); err != nil {
		t.Error(err)
	}
	if n := report.Held; n != 1 && n != 1+doubtful {
		t.Errorf("%d addresses are held, want the one from before, with or without the %d that are in doubt", n, doubtful)
	}
	if lines := l.ByOwner(cutOwner(9).UID); len(lines) != 0 {
		t.Errorf("somebody who was refused holds %v", lines)
	}
}

func lastWrite(effects []effect) (last effect) {
	for _, one := range effects {
		if one.kind == effectWrite {
			last = one
		}
	}
	return last
}

// said reports whether the process has printed text.
func said(effects []effect, text string) bool {
	for _, one := range effects {
		if one.kind == effectPrint && strings.Contains(string(one.data), text) {
			return true
		}
	}
	return false
}
