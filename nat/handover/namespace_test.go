package handover

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// mainThreadAway, in the environment, has the main thread of this program leave the process's network namespace, as one that
// package netns runs on does for a while.
const mainThreadAway = "FLOATIP_TEST_MAIN_THREAD_AWAY"

func init() {
	if os.Getenv(mainThreadAway) == "" {
		return
	}
	runtime.LockOSThread() // goroutines and new threads are those of other threads from now on
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		panic(fmt.Sprintf("handover: leave the network namespace: %v", err))
	}
}

// TestMainThreadAway: which namespace is the process's own does not depend on where its main thread happens to be.
func TestMainThreadAway(t *testing.T) {
	if os.Getenv(mainThreadAway) == "" {
		if os.Geteuid() != 0 {
			const reason = "the main thread needs CAP_SYS_ADMIN to leave its namespace: run as root"
			if os.Getenv("FLOATIP_TEST_ROOT") != "" {
				t.Fatal(reason)
			}
			t.Skip(reason)
		}
		again := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMainThreadAway$", "-test.v")
		again.Env = append(os.Environ(), mainThreadAway+"=1")
		if out, err := again.CombinedOutput(); err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
		return
	}
	if err := checkForeign(int(ownNamespace(t).Fd())); !errors.Is(err, ErrOwnNamespace) {
		t.Errorf("the process's own namespace: %v, want %v", err, ErrOwnNamespace)
	}
	away, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer away.Close()
	if err := checkForeign(int(away.Fd())); err != nil {
		t.Errorf("the namespace that the main thread is in: %v", err)
	}
}
