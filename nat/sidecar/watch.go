package sidecar

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat"
)

// signal says "look again". It holds at most one token, so that any number of events costs one look.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) raise() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// watchFile raises changed whenever something happens in the directory of path, until ctx is done or the watch breaks
// off; then it calls ended. The kubelet replaces
// a downward-API file by renaming the link "..data" beside it (k8s.io/kubernetes pkg/volume/util/atomic_writer.go), so
// the file itself never changes. Without inotify the poll has to do.
func watchFile(ctx context.Context, path string, changed signal, ended func()) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	const events = unix.IN_CREATE | unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), events); err != nil {
		unix.Close(fd)
		return &os.PathError{Op: "inotify_add_watch", Path: filepath.Dir(path), Err: err}
	}
	f := os.NewFile(uintptr(fd), "inotify")
	context.AfterFunc(ctx, func() { f.Close() })
	go func() {
		defer ended()
		buf := make([]byte, 4096)
		for {
			if _, err := f.Read(buf); err != nil {
				return
			}
			changed.raise()
		}
	}()
	return nil
}

// watchRules raises changed whenever anybody changes nftables in the namespace, until ctx is done or the
// watch breaks off; then it calls ended. What changed is not looked at: the loop reads everything and compares.
func watchRules(ctx context.Context, c nat.Config, changed signal, ended func()) error {
	const groups = 1 << (unix.NFNLGRP_NFTABLES - 1)
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: c.NetNS, Groups: groups})
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	go func() {
		defer ended()
		for {
			_, err := conn.Receive()
			if err != nil && !errors.Is(err, unix.ENOBUFS) { // events were lost: look again
				return
			}
			changed.raise()
		}
	}()
	return nil
}
