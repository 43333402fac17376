package ipam

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
)

// CheckFile checks the ledger at path as Ledger.Check does, without changing it. A file that a running floatip-webhook has
// open is copied first: bbolt does not overwrite pages of the last transaction before the one after the next, so a copy
// during which no transaction ended is whole.
//
// Errors: ErrDamaged if the file cannot be read at all, ErrFormat, ErrLocked if the file changed during every attempt to
// copy it. What does not fit is in the Report.
func CheckFile(path string, against Against) (Report, error) {
	if _, err := os.Stat(path); err != nil {
		return Report{}, fmt.Errorf("check ledger: %w", err)
	}
	report, err := checkFile(path, against)
	if !errors.Is(err, ErrLocked) {
		return report, err
	}
	dir, err := os.MkdirTemp("", "floatip-check-")
	if err != nil {
		return Report{}, fmt.Errorf("check ledger: %w", err)
	}
	defer os.RemoveAll(dir)
	copied := filepath.Join(dir, "ledger.db")
	if err := copyLive(path, copied); err != nil {
		return Report{}, fmt.Errorf("check ledger %s: %w", path, err)
	}
	return checkFile(copied, against)
}

func checkFile(path string, against Against) (Report, error) {
	s, err := openStore(path, 0, func(_, _, _ []byte) error { return nil })
	if err != nil {
		return Report{}, err
	}
	defer s.close()
	tx, err := s.db.Begin(false)
	if err != nil {
		return Report{}, fileError(path, err)
	}
	defer tx.Rollback()
	var c checker
	if err := guarded(func() error { c.file(tx); return nil }); err != nil {
		c.complain(netip.Addr{}, "%v", err)
	}
	c.against(against)
	return c.report, nil
}

// copyAttempts bounds how often copyLive starts again. A copy takes as long as some tens of transactions.
const copyAttempts = 50

// copyLive copies the file from, which another process writes, to the file to.
func copyLive(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	for range copyAttempts {
		before, err := readMeta(source)
		if err != nil {
			continue // caught in the middle of a write
		}
		if err := copyOnce(source, to, before.size()); err != nil {
			return err
		}
		if after, err := readMeta(source); err == nil && after.txid == before.txid {
			return nil
		}
	}
	return fmt.Errorf("%w, which changed it during each of %d attempts to copy it; ask floatip-webhook for a backup instead",
		ErrLocked, copyAttempts)
}

func copyOnce(source io.ReaderAt, to string, size int64) error {
	target, err := os.Create(to)
	if err != nil {
		return err
	}
	defer target.Close()
	if _, err := io.Copy(target, io.NewSectionReader(source, 0, size)); err != nil {
		return err
	}
	return target.Close()
}

// Backup writes a copy of the file as it is at one moment. The ledger goes on working meanwhile.
func (l *Ledger) Backup(w io.Writer) error {
	l.settle()
	tx, err := l.store.db.Begin(false)
	if err != nil {
		return fmt.Errorf("back up ledger: %w", ErrClosed)
	}
	defer tx.Rollback()
	if _, err := tx.WriteTo(w); err != nil {
		return fmt.Errorf("back up ledger: %w", err)
	}
	return nil
}
