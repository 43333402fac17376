package kernel

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// run boots a machine for a command, until ctx is done.
func run(ctx context.Context, t *testing.T, folder, command string, without ...string) outcome {
	t.Helper()
	m, err := newMachine(ctx, cache, without...)
	if err != nil {
		t.Fatal(err)
	}
	return m.run(ctx, folder, command)
}

// TestMachine: a command's output and status come back, the kernel loads what it is asked for, and nothing that is left out.
func TestMachine(t *testing.T) {
	t.Parallel()
	o := run(t.Context(), t, t.TempDir(), `
ip link add blue type vrf table 10 && echo has vrf
ip link add bond0 type bond || echo has no bond
exit 3`, "bonding")
	if o.err != nil || o.status != 3 {
		t.Fatalf("status %d, %v", o.status, o.err)
	}
	for _, want := range []string{"has vrf\n", "has no bond\n"} {
		if !strings.Contains(string(o.output), want) {
			t.Errorf("output %q, want %q in it", o.output, want)
		}
	}
}

// TestMachineThatPanics: what the kernel said last is in the error.
func TestMachineThatPanics(t *testing.T) {
	t.Parallel()
	o := run(t.Context(), t, t.TempDir(), "echo begun; echo c >/proc/sysrq-trigger; sleep 1000")
	if o.err == nil || !strings.Contains(o.err.Error(), "Kernel panic") || string(o.output) != "begun\n" {
		t.Errorf("output %q, %v; want what the kernel said", o.output, o.err)
	}
}

// TestMachineThatHangs: it ends when its time is over, and qemu with it.
func TestMachineThatHangs(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	folder, done := t.TempDir(), make(chan struct{})
	go func() {
		defer cancel()
		for tick := time.NewTicker(50 * time.Millisecond); ; {
			select {
			case <-done:
				return
			case <-tick.C:
				if said, _ := os.ReadFile(filepath.Join(folder, "output")); len(said) > 0 {
					return
				}
			}
		}
	}()
	o := run(ctx, t, folder, "echo begun; sleep 1000")
	close(done)
	if o.err == nil || !strings.Contains(o.err.Error(), "did not end in time") || string(o.output) != "begun\n" {
		t.Errorf("output %q, %v; want that it did not end", o.output, o.err)
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range processes {
		if arguments, _ := os.ReadFile(path); strings.Contains(string(arguments), "path="+folder+"/") {
			t.Errorf("%s is still there", path)
		}
	}
}
