package cluster

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"floatip.io/floatip/nat/node/nodetest"
	"floatip.io/floatip/test/rig/reaper"
)

// killed ends the API server and its etcd when this program was killed, and removes what they wrote.
var killed = reaper.Register("API server", func(_ context.Context, dir string) error {
	pids, err := programsOf(dir)
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by now
	}
	return errors.Join(err, os.RemoveAll(dir))
})

// guard makes the folders below dir of programs that are to end with this one.
func guard(t testing.TB, dir string, folders ...string) {
	t.Helper()
	g, err := killed.Guard(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Dismiss(); err != nil {
			t.Error(err)
		}
	})
	for _, folder := range folders {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
	}
}

// programsOf finds the programs that were given something below dir.
func programsOf(dir string) (pids []int, err error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, line := range lines {
		raw, _ := os.ReadFile(line) // it may have ended by now
		if bytes.Contains(raw, []byte("="+dir+"/")) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(line)))
			if err != nil {
				return nil, err
			}
			pids = append(pids, pid)
		}
	}
	return pids, err
}

// TestKilledChild is what TestKilled runs, and kills.
func TestKilledChild(t *testing.T) {
	if os.Getenv("KILLED_CHILD") == "" {
		return
	}
	fmt.Println(newWorld(t).dir)
	<-t.Context().Done() // never
}

// TestKilled: when the test program is killed, API server and etcd end.
func TestKilled(t *testing.T) {
	child := exec.Command("/proc/self/exe", "-test.run=^TestKilledChild$")
	child.Env = append(os.Environ(), "KILLED_CHILD=1")
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = child.Process.Kill() })
	lines := bufio.NewScanner(out)
	if !lines.Scan() || !filepath.IsAbs(lines.Text()) {
		t.Fatalf("the child says %q", lines.Text())
	}
	dir := lines.Text()
	if pids, err := programsOf(dir); err != nil || len(pids) != 2 {
		t.Errorf("of the child run %v (%v), want API server and etcd", pids, err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	gone := nodetest.Until(patience, func() bool {
		pids, err := programsOf(dir)
		_, there := os.Stat(dir)
		return err == nil && len(pids) == 0 && errors.Is(there, os.ErrNotExist)
	})
	if pids, _ := programsOf(dir); !gone {
		t.Errorf("%v still run, or %s is still there, after %s", pids, dir, patience)
	}
}
