package leg

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat"
	"floatip.io/floatip/nat/node/netns"
)

// DefaultSysctls is where the kernel shows the network's settings, those of the namespace of the thread that looks.
const DefaultSysctls = "/proc/sys/net"

// FindSysctls returns a directory in which the settings can be written. Container runtimes make /proc/sys read-only in
// a container that is not privileged (OCI runtime specification, linux.readonlyPaths). CAP_SYS_ADMIN, which entering
// another namespace takes anyway, allows an own instance of procfs; it is attached nowhere and goes with the process.
func FindSysctls() (string, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(DefaultSysctls, &fs); err != nil {
		return "", fmt.Errorf("%s: %w", DefaultSysctls, err)
	}
	if fs.Flags&unix.ST_RDONLY == 0 {
		return DefaultSysctls, nil
	}
	fd, err := detachedProc()
	if err != nil {
		return "", fmt.Errorf("%s is read-only, and an own procfs is refused (is CAP_SYS_ADMIN missing?): %w",
			DefaultSysctls, err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/sys/net", fd), nil
}

// detachedProc makes a procfs that is mounted nowhere.
func detachedProc() (int, error) {
	context, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(context)
	if err := unix.FsconfigCreate(context); err != nil {
		return -1, fmt.Errorf("fsconfig: %w", err)
	}
	fd, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC,
		unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsmount: %w", err)
	}
	return fd, nil
}

// sysctls reads and writes settings of one network namespace.
type sysctls struct {
	dir string
	ns  *os.File
}

// read returns the values of the paths. Those that do not exist are left out.
func (s sysctls) read(paths []string) (map[string]string, error) {
	values := map[string]string{}
	err := netns.Do(s.ns, func() error {
		for _, path := range paths {
			value, err := readSetting(filepath.Join(s.dir, path))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("read %s: %w", path, err)
			}
			values[path] = value
		}
		return nil
	})
	return values, err
}

// readSetting takes three calls of the kernel. os.ReadFile takes twice as many, and there are some for each leg.
func readSetting(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var buf [64]byte // a number, or a few
	n, err := unix.Read(fd, buf[:])
	return strings.TrimSpace(string(buf[:max(n, 0)])), err
}

// rpFilterOfAll holds for each link whose own value is not larger (Documentation/networking/ip-sysctl.rst).
const rpFilterOfAll = "ipv4/conf/all/rp_filter"

// handDown sets rpFilterOfAll to value, which must be smaller than what it is, and gives what it was to all links but the
// leg, those to come included. For none of them anything changes.
func (s sysctls) handDown(path, value string) error {
	before, err := s.read([]string{path})
	if err != nil {
		return err
	}
	var links []os.DirEntry
	err = netns.Do(s.ns, func() (err error) {
		links, err = os.ReadDir(filepath.Join(s.dir, "ipv4/conf"))
		return err
	})
	if err != nil {
		return err
	}
	// A link without a value of its own follows the default (devinet_copy_dflt_conf in net/ipv4/devinet.c), so the leg is
	// given one. Links that come from now on start with the default, so that goes next.
	if err := s.write("ipv4/conf/"+nat.LegInterface+"/rp_filter", value); err != nil {
		return err
	}
	names := []string{"default"}
	for _, link := range links {
		if name := link.Name(); name != "all" && name != "default" && name != nat.LegInterface {
			names = append(names, name)
		}
	}
	for _, name := range names {
		if err := s.raise("ipv4/conf/"+name+"/rp_filter", before[path]); err != nil {
			return err
		}
	}
	return s.write(path, value)
}

// raise makes a setting at least least. A link that is gone needs none.
func (s sysctls) raise(path, least string) error {
	have, err := s.read([]string{path})
	if value, known := have[path]; err != nil || !known || value >= least { // 0, 1 or 2
		return err
	}
	if err := s.write(path, least); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (s sysctls) write(path, value string) error {
	return netns.Do(s.ns, func() error {
		// Never O_CREATE: a setting that the kernel does not have is an error with its name in it.
		f, err := os.OpenFile(filepath.Join(s.dir, path), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		if _, err := f.WriteString(value); err != nil {
			f.Close()
			return err
		}
		return f.Close()
	})
}
