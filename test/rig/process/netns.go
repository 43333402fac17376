package process

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// selfNetNS names the network namespace of the calling thread.
const selfNetNS = "/proc/thread-self/ns/net"

// enter puts the calling thread, which must be locked, into the network namespace at path.
func enter(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return nil
}

// InNetNS calls f on a thread that is inside the network namespace at path; with an empty path f is simply called.
// Sockets keep the namespace they were made in, so f may return them. What f starts in other goroutines is outside.
// A thread that cannot be brought back is left to die instead of running other goroutines in the wrong namespace.
func InNetNS(path string, f func() error) error {
	if path == "" {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open(selfNetNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- fmt.Errorf("open own network namespace: %w", err)
			return
		}
		defer unix.Close(home)
		if err := enter(path); err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err = f()
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// dialTimeout bounds one connection attempt when the caller's context does not: inside the rig an address answers in
// microseconds or not at all.
const dialTimeout = 10 * time.Second

// Dialer returns a dial function, as rest.Config.Dial wants it, that makes its connections inside the network
// namespace at path. Addresses must be literal (201.0.0.1:6443): a name would be resolved on other threads, outside
// of the namespace.
func Dialer(path string) func(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if _, err := netip.ParseAddrPort(address); err != nil {
			return nil, fmt.Errorf("dial %s in %s: not a literal address and port: %w", address, path, err)
		}
		var conn net.Conn
		err := InNetNS(path, func() (err error) {
			conn, err = dialer.DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}
