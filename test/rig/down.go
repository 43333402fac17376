package rig

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"floatip.io/floatip/test/rig/kubelet"
	"floatip.io/floatip/test/rig/lan"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/rig/reaper"
)

// Rigs have their folders at dirPattern, with short names for the sake of unix sockets in them (unix(7): 107 bytes).
const (
	dirParent  = "/tmp"
	dirPattern = "fip-*"
)

// Files in a rig's folder.
const (
	lockFile    = "lock"           // locked by the program that uses the rig
	keptFile    = "kept"           // exists if the rig shall survive that program
	processFile = "processes.json" // of package process
)

// newDir makes the folder of a new rig below parent and locks it.
func newDir(parent string, keep bool) (dir string, lock *os.File, err error) {
	if dir, err = os.MkdirTemp(parent, dirPattern); err != nil {
		return "", nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // containers of other users have their files in it
		return "", nil, err
	}
	if keep {
		if err := os.WriteFile(filepath.Join(dir, keptFile), nil, 0o644); err != nil {
			return "", nil, err
		}
	}
	lock, err = firstLock(dir)
	return dir, lock, err
}

// firstLock makes a new rig's lock. Others look for rigs by the lock's name, so it gets that name when it is locked: one
// that is there and free would be a crashed rig to them, and removed.
func firstLock(dir string) (*os.File, error) {
	const unnamed = lockFile + ".new"
	lock, err := tryLock(dir, unnamed)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(filepath.Join(dir, unnamed), filepath.Join(dir, lockFile)); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// errInUse means that the program that started the rig still runs.
var errInUse = errors.New("the rig is in use")

// tryLock locks a rig's folder by a file in it until the file is closed, at the latest by the end of this program. The
// error is errInUse if another program has it.
func tryLock(dir, name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", dir, errInUse), f.Close())
	}
	return f, nil
}

// Down removes all rigs that no running program uses: kept ones, and what crashed runs left.
func Down(ctx context.Context, progress process.Progress) error {
	return sweep(ctx, dirParent, progress, func(string) bool { return true })
}

// crashedOnly spares rigs that were kept on purpose.
func crashedOnly(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, keptFile))
	return errors.Is(err, fs.ErrNotExist)
}

// sweep removes the rigs below parent that nobody uses and that wanted names.
func sweep(ctx context.Context, parent string, progress process.Progress, wanted func(dir string) bool) error {
	locks, err := filepath.Glob(filepath.Join(parent, dirPattern, lockFile))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range locks {
		dir := filepath.Dir(path)
		if !wanted(dir) {
			continue
		}
		lock, err := tryLock(dir, lockFile)
		if errors.Is(err, errInUse) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		progress.Sayf("removing the rig in %s", dir)
		errs = append(errs, remove(ctx, dir, progress), lock.Close())
	}
	return errors.Join(errs...)
}

// crashed rigs are removed when their program ends; what that misses, the next program removes that starts a rig.
var crashed = reaper.Register("rig", reap)

// reap removes the rig in dir, whose program has ended, unless another one does that already.
func reap(ctx context.Context, dir string) error {
	var lock *os.File
	err := process.Wait(ctx, nil, "the lock of "+dir, func(context.Context) (err error) {
		lock, err = tryLock(dir, lockFile)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // and so is the rig
		}
		return err
	})
	if err != nil || lock == nil {
		return err
	}
	return errors.Join(remove(ctx, dir, nil), lock.Close())
}

// remove ends and removes a rig by what its folder says. It may be repeated.
func remove(ctx context.Context, dir string, progress process.Progress) error {
	if err := process.Down(ctx, filepath.Join(dir, processFile), progress); err != nil {
		return err
	}
	network, err := lan.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return os.RemoveAll(dir)
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, node := range network.Nodes {
		errs = append(errs, kubelet.Remove(ctx, nodeDir(dir, node.Name)))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// Guests are not containers, and neither is what a person has started in a namespace.
	if err := endAll(ctx, network); err != nil {
		return err
	}
	if err := network.Close(); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// Processes in the rig's namespaces get so long to end on SIGTERM, and on SIGKILL, which takes longer on a busy machine only.
const (
	endWithin  = 5 * time.Second
	killWithin = time.Minute
)

// endAll ends the processes in the namespaces of a LAN, first kindly.
func endAll(ctx context.Context, network *lan.LAN) error {
	for _, step := range []struct {
		signal syscall.Signal
		within time.Duration
	}{{syscall.SIGTERM, endWithin}, {syscall.SIGKILL, killWithin}} {
		pids, err := network.Processes()
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, step.signal); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("end process %d in a namespace of the rig: %w", pid, err)
			}
		}
		bounded, cancel := context.WithTimeout(ctx, step.within)
		err = process.Wait(bounded, nil, "processes in the rig's namespaces to end", func(context.Context) error {
			left, err := network.Processes()
			if err == nil && len(left) > 0 {
				err = fmt.Errorf("processes %v run", left)
			}
			return err
		})
		cancel()
		if err == nil {
			return nil
		}
		if step.signal == syscall.SIGKILL {
			return err
		}
	}
	return nil
}
