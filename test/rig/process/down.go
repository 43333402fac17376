package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// netnsDir is where ip-netns(8) keeps names of network namespaces.
const netnsDir = "/run/netns"

// Down undoes what the state file at path notes: it ends the processes in reverse order of their start, removes the
// namespaces and the folders, and then the file itself. What could not be undone stays in the file, so Down may be
// repeated. A missing file means that there is nothing to do. The processes need not be children of the caller.
func Down(ctx context.Context, path string, progress Progress) error {
	state, err := ReadState(path)
	if err != nil {
		return err
	}
	var left State
	var errs []error
	for _, r := range slices.Backward(state.Processes) {
		if err := r.end(ctx, progress); err != nil {
			left.Processes = slices.Insert(left.Processes, 0, r)
			errs = append(errs, err)
		}
	}
	for _, name := range state.NetNS {
		if err := removeNetNS(name); err != nil {
			left.NetNS = append(left.NetNS, name)
			errs = append(errs, err)
		}
	}
	for _, dir := range state.Dirs {
		if !left.empty() {
			left.Dirs = append(left.Dirs, dir) // the state file may be in it
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			left.Dirs = append(left.Dirs, dir)
			errs = append(errs, err)
		}
	}
	if left.empty() {
		return errors.Join(append(errs, os.RemoveAll(path))...)
	}
	return errors.Join(append(errs, left.write(path))...)
}

// end stops a process of the state file, unless it is gone or its number belongs to another one by now.
func (r Running) end(ctx context.Context, progress Progress) error {
	if !r.Alive() {
		return nil
	}
	progress.Sayf("stopping %s (pid %d)", r.Name, r.PID)
	done := make(chan struct{})
	watch, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		if r.vanish(watch) == nil {
			close(done)
		}
	}()
	if err := terminate(ctx, r.PID, done, r.Grace); err != nil {
		return fmt.Errorf("stop %s (pid %d): %w", r.Name, r.PID, err)
	}
	return nil
}

// vanish returns nil once the process is no longer there. Only a parent can wait for a process; others look.
func (r Running) vanish(ctx context.Context) error {
	return Wait(ctx, nil, r.Name+" to end", func(context.Context) error {
		if r.Alive() {
			return errors.New("it is running")
		}
		return nil
	})
}

// removeNetNS takes a name away as `ip netns delete` does: the namespace itself ends with its last process and socket.
func removeNetNS(name string) error {
	path := filepath.Join(netnsDir, name)
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}
