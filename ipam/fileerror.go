package ipam

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	berrors "go.etcd.io/bbolt/errors"
)

// fileError wraps err into one of the errors of the file, with what to do about it.
func fileError(path string, err error) error {
	damaged := func() error {
		return fmt.Errorf("open ledger %s: %w: %w; the file is left as it is: keep a copy of it, then restore a backup, or move it away and let floatip rebuild it from the FloatingIP objects and the VMs", path, ErrDamaged, err)
	}
	switch {
	case errors.Is(err, ErrLocked):
		return fmt.Errorf("open ledger %s: %w; one floatip-webhook at a time may use it: stop the other one, or look at a copy of the file", path, ErrLocked)
	case errors.Is(err, ErrUncertain):
		return fmt.Errorf("ledger %s: %w; nothing is written any more: look at the volume, and start floatip-webhook again, which reads the file anew", path, err)
	case noRoom(err):
		return fmt.Errorf("ledger %s: %w: %w; nothing was changed: make room on its volume and try again", path, ErrDiskFull, err)
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("ledger %s: %w: %w; mount its volume writable for floatip's user (fsGroup)", path, ErrReadOnly, err)
	case errors.Is(err, ErrFormat):
		return fmt.Errorf("open ledger %s: %w; start the version of floatip that wrote it, or move the file away and let floatip rebuild it from the FloatingIP objects and the VMs", path, err)
	case errors.Is(err, ErrDamaged):
		return fmt.Errorf("open ledger %s: %w; the file is left as it is: keep a copy of it, then restore a backup, or move it away and let floatip rebuild it from the FloatingIP objects and the VMs", path, err)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch),
		errors.Is(err, errShort), errors.Is(err, errChecksum), errors.Is(err, errRest):
		return damaged()
	}
	return fmt.Errorf("ledger %s: %w", path, err)
}

// noRoom reports whether err means that the file cannot grow. bbolt wraps the error of growing as text (DB.grow).
func noRoom(err error) bool {
	for _, errno := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG} {
		if errors.Is(err, errno) || strings.Contains(err.Error(), errno.Error()) {
			return true
		}
	}
	return false
}
