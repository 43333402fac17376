// Package netns runs a function inside a network namespace that is known by a file descriptor.
//
// It is for what a socket cannot carry along: /proc/sys/net, which shows the namespace of the thread that looks
// (fs/proc/proc_sysctl.c), and libraries that open their own sockets. It makes no namespaces and searches none.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Do runs f on a thread inside the network namespace ns and returns its error. A nil ns is the namespace of the
// process. f must start no goroutine that relies on the namespace: only its own thread is moved.
//
// It fails if the namespace cannot be entered, for instance without CAP_SYS_ADMIN; f did not run then.
func Do(ns *os.File, f func() error) error {
	if ns == nil {
		return f()
	}
	done := make(chan error, 1)
	go func() { done <- inside(ns, f) }()
	return <-done
}

// inside moves its thread, and gives the thread back only if the way home worked: a locked thread ends together with
// its goroutine (runtime.LockOSThread), so a lost one serves nobody else.
func inside(ns *os.File, f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("own network namespace: %w", err)
	}
	defer home.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}
