package leg

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/nodetest"
)

// TestSysctlsInContainer: where /proc/sys is read-only, as container runtimes make it, settings of a pod's namespace
// are written all the same.
func TestSysctlsInContainer(t *testing.T) {
	pod := nodetest.NewNamespace(t)
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the mounts of this thread go with it
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""); err != nil {
				return err
			}
			if err := unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				return err
			}
			if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); !errors.Is(err, unix.EROFS) {
				return errors.New("the test did not make /proc/sys read-only")
			}
			dir, err := FindSysctls()
			if err != nil {
				return err
			}
			return sysctls{dir: dir, ns: pod.File}.write("ipv4/ip_forward", "1")
		}()
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if have := pod.ReadSysctl("ipv4/ip_forward"); have != "1" {
		t.Errorf("ip_forward of the pod is %s, want 1", have)
	}
}

// TestForwarding6: an IPv6 address on a node that forwards none, and on one whose kernel has none, is told what is missing.
func TestForwarding6(t *testing.T) {
	dir := t.TempDir()
	n := &Node{sysctls: sysctls{dir: dir}}
	want := state{rules: map[rule]struct{}{{V6: true}: {}}}
	if err := n.checkForwarding6(want); !errors.Is(err, ErrNoIPv6) {
		t.Errorf("without IPv6: %v, want %v", err, ErrNoIPv6)
	}
	if err := n.checkForwarding6(state{}); err != nil {
		t.Errorf("without IPv6 and addresses of it: %v", err)
	}
	if err := os.MkdirAll(dir+"/ipv6/conf/all", 0o755); err != nil {
		t.Fatal(err)
	}
	for value, want6 := range map[string]error{"0": ErrNoForwarding6, "1": nil} {
		if err := os.WriteFile(dir+"/ipv6/conf/all/forwarding", []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := n.checkForwarding6(want); !errors.Is(err, want6) {
			t.Errorf("forwarding=%s: %v, want %v", value, err, want6)
		}
	}
}
