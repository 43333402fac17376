package reaper

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

var (
	marks = Register("marks", func(_ context.Context, path string) error { return os.WriteFile(path, []byte("undone"), 0o644) })
	fails = Register("fails", func(context.Context, string) error { return errors.New("it is stuck") })
)

// end closes a reaper's pipe as the kernel does for a program that is killed, and waits until the reaper has ended.
func (g *Guard) end() error { return errors.Join(g.pipe.Close(), g.cmd.Wait()) }

func pid(g *Guard) string { return strconv.Itoa(g.cmd.Process.Pid) }

func guard(t *testing.T, k Kind) (*Guard, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "of")
	g, err := k.Guard(path)
	if err != nil {
		t.Fatal(err)
	}
	return g, path
}

// A reaper undoes when its program ends without a farewell, and only then.
func TestReaper(t *testing.T) {
	g, path := guard(t, marks)
	if _, err := os.Stat(path); err == nil {
		t.Error("undone while the program runs")
	}
	if err := g.end(); err != nil {
		t.Error(err)
	}
	if said, err := os.ReadFile(path); err != nil || string(said) != "undone" {
		t.Errorf("after the program: %q, %v", said, err)
	}
	if g, path = guard(t, marks); g.Dismiss() != nil {
		t.Error("the reaper did not end well")
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("undone after the farewell: %v", err)
	}
}

// A reaper whose Guard nobody holds waits all the same: a file that is garbage is closed.
func TestForgotten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "of")
	process := func() int {
		g, err := marks.Guard(path)
		if err != nil {
			t.Fatal(err)
		}
		return g.cmd.Process.Pid
	}()
	for range 3 { // a cycle to find it, one to run what shall be run then
		runtime.GC()
	}
	var kept *Guard
	guards.Range(func(g, _ any) bool {
		if g.(*Guard).cmd.Process.Pid == process {
			kept = g.(*Guard)
		}
		return kept == nil
	})
	if kept == nil || kept.Dismiss() != nil {
		t.Error("the reaper is gone")
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("undone while the program runs: %v", err)
	}
}

// What could not be undone stands beside it.
func TestFailure(t *testing.T) {
	g, path := guard(t, fails)
	if err := g.end(); err == nil {
		t.Error("the reaper says that all is well")
	}
	if said, err := os.ReadFile(path + ".reaper"); err != nil || !strings.Contains(string(said), "it is stuck") {
		t.Errorf("%q, %v", said, err)
	}
}

// The reaper is in a session of its own: what ends the program's group does not end it.
func TestSession(t *testing.T) {
	g, _ := guard(t, marks)
	defer g.Dismiss()
	stat, err := os.ReadFile(filepath.Join("/proc", pid(g), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat)[strings.LastIndexByte(string(stat), ')')+1:])
	if group, session := fields[2], fields[3]; group != pid(g) || session != pid(g) {
		t.Errorf("process %s is of group %s and session %s", pid(g), group, session)
	}
}
