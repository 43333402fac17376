package handover

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// OwnNamespace opens the network namespace of this process. No capability is needed for that.
func OwnNamespace() (*os.File, error) {
	return os.Open("/proc/self/ns/net")
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
	var given, own unix.Stat_t
	if err := unix.Fstat(fd, &given); err != nil {
		return fmt.Errorf("%w: %w", ErrNoNamespace, err)
	}
	if err := unix.Stat("/proc/self/ns/net", &own); err != nil {
		return fmt.Errorf("own network namespace: %w", err)
	}
	if given.Dev == own.Dev && given.Ino == own.Ino {
		return ErrOwnNamespace
	}
	return nil
}
