package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"floatip.io/floatip/ipam"
)

// File is the Book of a copied ledger. The file itself is read only: questions are answered from a copy of it.
type File struct {
	Book
	// Against is what Check compares with; the zero value compares with nothing.
	Against ipam.Against

	path, dir string
}

// OpenFile reads the ledger at path. One that a floatip-webhook has open is refused with what to do.
func OpenFile(path string) (*File, error) {
	dir, err := copyAside(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	ledger, err := ipam.Open(filepath.Join(dir, copyName), ipam.Options{})
	if err != nil {
		// The same complaint, about the file that the person named.
		_, named := ipam.CheckFile(path, ipam.Against{})
		if named == nil {
			named = err
		}
		return nil, errors.Join(named, os.RemoveAll(dir))
	}
	return &File{Book: Book{Ledger: ledger}, path: path, dir: dir}, nil
}

// Check proves the file itself.
func (f *File) Check(context.Context) (Report, error) {
	report, err := ipam.CheckFile(f.path, f.Against)
	return reportOf(report), err
}

// Close removes what OpenFile made.
func (f *File) Close() error { return errors.Join(f.Ledger.Close(), os.RemoveAll(f.dir)) }

const copyName = "ledger.db"

// copyAside copies the file into a folder of its own, with the lock that keeps bbolt's writers away (flock(2)).
func copyAside(path string) (dir string, err error) {
	source, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer source.Close()
	if err := syscall.Flock(int(source.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
		return "", fmt.Errorf("%w: ask that floatip-webhook, without --file, or have it write a copy with \"ledger backup\"",
			ipam.ErrLocked)
	}
	if dir, err = os.MkdirTemp("", "floatip-ledger-"); err != nil {
		return "", fmt.Errorf("%w; set TMPDIR to a folder that can be written", err)
	}
	target, err := os.OpenFile(filepath.Join(dir, copyName), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err == nil {
		_, err = io.Copy(target, source)
		err = errors.Join(err, target.Close())
	}
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, nil
}
