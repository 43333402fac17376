package lan

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// namespaceDir is where iproute2 keeps named network namespaces (ip-netns(8)).
const namespaceDir = "/run/netns"

// Command returns the command, to be run in the network namespace at path. It is entered by nsenter: `ip netns exec`
// would also remount /sys and so hide the cgroups, which container runtimes need.
func Command(ctx context.Context, namespace, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + namespace, "--", name}, args...)...)
}

// Exec runs a command in the network namespace at path and returns what it wrote to standard output. The error holds
// the command and what it wrote to standard error.
func Exec(ctx context.Context, namespace, name string, args ...string) (string, error) {
	return run(Command(ctx, namespace, name, args...), "")
}

// run runs cmd with stdin as its input.
func run(cmd *exec.Cmd, stdin string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Do calls f on a thread of its own inside the network namespace at path.
func Do(namespace string, f func() error) error {
	result := make(chan error, 1)
	go func() {
		// The thread is never unlocked: it ends with the goroutine instead of carrying the namespace elsewhere.
		runtime.LockOSThread()
		result <- func() error {
			fd, err := unix.Open(namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("open network namespace %s: %w", namespace, err)
			}
			defer unix.Close(fd)
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter network namespace %s: %w", namespace, err)
			}
			return f()
		}()
	}()
	return <-result
}

// addNamespace makes an empty named namespace with its loopback device up and returns its path.
func addNamespace(name string) (string, error) {
	if _, err := run(exec.Command("ip", "netns", "add", name), ""); err != nil {
		return "", err
	}
	path := filepath.Join(namespaceDir, name)
	_, err := Exec(context.Background(), path, "ip", "link", "set", "lo", "up")
	return path, err
}

// removeNamespace removes the namespace at path, and with it every link in it. It is fine if there is none.
func removeNamespace(path string) error {
	if _, err := os.Stat(path); os.IsNotExist(err) {
		return nil
	}
	_, err := run(exec.Command("ip", "netns", "delete", filepath.Base(path)), "")
	return err
}

// sysctls writes settings, "net/ipv4/ip_forward" = "1", in the network namespace at path.
func sysctls(namespace string, settings [][2]string) error {
	return Do(namespace, func() error {
		for _, s := range settings {
			if err := os.WriteFile(filepath.Join("/proc/sys", s[0]), []byte(s[1]), 0); err != nil {
				return fmt.Errorf("set sysctl %s = %s: %w", s[0], s[1], err)
			}
		}
		return nil
	})
}
