package handover

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// own is the network namespace of this process. It is looked up by the thread that asks: what runs inside other namespaces
// (package netns) locks its thread, while /proc/self is the main thread, and that may be the one that is away.
const own = "/proc/thread-self/ns/net"

// OwnNamespace opens the network namespace of this process. No capability is needed for that.
func OwnNamespace() (*os.File, error) {
	return os.Open(own)
}

// checkNamespace wants fd to be a network namespace.
//
// The link in /proc names nsfs files "net:[inode]" without asking a file system (fs/nsfs.c, ns_dname), while fstat on a
// descriptor of the sidecar's choice, say on FUSE, may never return.
func checkNamespace(fd int) error {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoNamespace, err)
	}
	if !strings.HasPrefix(name, "net:[") {
		return fmt.Errorf("%w: have %.60q", ErrNoNamespace, name)
	}
	return nil
}

// checkForeign wants fd to be a network namespace, and another one than that of this process.
func checkForeign(fd int) error {
	if err := checkNamespace(fd); err != nil {
		return err
	}
	var given, home unix.Stat_t
	if err := unix.Fstat(fd, &given); err != nil {
		return fmt.Errorf("%w: %w", ErrNoNamespace, err)
	}
	if err := unix.Stat(own, &home); err != nil {
		return fmt.Errorf("own network namespace: %w", err)
	}
	if given.Dev == home.Dev && given.Ino == home.Ino {
		return ErrOwnNamespace
	}
	return nil
}
