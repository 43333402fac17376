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
