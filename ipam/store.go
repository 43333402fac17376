package ipam

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// formatVersion is the version of the drawing in the package comment.
const formatVersion = 1

var (
	bucketLedger    = []byte("ledger")
	bucketAddresses = []byte("addresses")
	bucketOwners    = []byte("owners")
	bucketPools     = []byte("pools")
	bucketDisputes  = []byte("disputes")
	bucketHistory   = []byte("history")

	buckets   = [][]byte{bucketLedger, bucketAddresses, bucketOwners, bucketPools, bucketDisputes, bucketHistory}
	keyFormat = []byte("format")
)

// store is the file. Only the writer's goroutine writes.
type store struct {
	db   *bbolt.DB
	path string
	// first and next number the events of the history: first is the oldest, next the one to come.
	first, next uint64
}

// openStore opens the file and calls each with every key and value in it. A missing file is made unless readOnly.
func openStore(path string, readOnly bool, each func(bucket, key, value []byte) error) (*store, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && !readOnly {
		if err := createStore(path); err != nil {
			return nil, fileError(path, err)
		}
	}
	s := &store{path: path}
	var file *os.File
	err := guarded(func() (err error) {
		s.db, err = bbolt.Open(path, 0o600, boltOptions(readOnly, func(name string, flag int, mode os.FileMode) (*os.File, error) {
			file, err = openLocked(name, flag, mode)
			if err == nil {
				err = inspect(file, each)
			}
			return file, err
		}))
		if err != nil {
			return err
		}
		return s.begin()
	})
	if err == nil {
		return s, nil
	}
	if s.db != nil {
		s.db.Close()
	}
	if file != nil { // the lock ends with the file, also when bbolt gave up without closing it
		file.Close()
	}
	return nil, fileError(path, err)
}

func boltOptions(readOnly bool, open func(string, int, os.FileMode) (*os.File, error)) *bbolt.Options {
	return &bbolt.Options{
		ReadOnly:     readOnly,
		OpenFile:     open,
		FreelistType: bbolt.FreelistMapType,
		// The list of free pages is found by walking the tree at the start instead of being written, without a checksum,
		// in every transaction.
		NoFreelistSync: true,
		NoStatistics:   true,
	}
}

// createStore makes the file with its buckets, under another name first: a process that dies on the way leaves no file
// that is neither a ledger nor empty.
func createStore(path string) error {
	dir := filepath.Dir(path)
	file, err := os.CreateTemp(dir, filepath.Base(path)+".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	file.Close()
	db, err := bbolt.Open(file.Name(), 0o600, boltOptions(false, nil))
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketLedger).Put(keyFormat, []byte{formatVersion})
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Link(file.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) { // somebody else was faster
		return err
	}
	return syncDirectory(dir)
}

// openLocked opens the file and takes the lock that bbolt would take (flock(2)), at once or not at all: bbolt would wait,
// and it reads before anything could be inspected.
func openLocked(name string, flag int, mode os.FileMode) (*os.File, error) {
	file, err := os.OpenFile(name, flag, mode)
	if err != nil {
		return nil, err
	}
	how := syscall.LOCK_EX | syscall.LOCK_NB
	if flag&(os.O_RDWR|os.O_WRONLY) == 0 {
		how = syscall.LOCK_SH | syscall.LOCK_NB
	}
	if err := syscall.Flock(int(file.Fd()), how); err != nil {
		file.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	return file, nil
}

// syncDirectory makes the name of a new file durable, which a flush of the file does not (fsync(2)).
func syncDirectory(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// begin checks the format and finds the ends of the history.
func (s *store) begin() error {
	return s.db.View(func(tx *bbolt.Tx) error {
		if err := checkFormat(tx); err != nil {
			return err
		}
		cursor := tx.Bucket(bucketHistory).Cursor()
		if k, _ := cursor.First(); k != nil {
			s.first = number(k)
			k, _ = cursor.Last()
			s.next = number(k) + 1
		}
		return nil
	})
}

func (s *store) close() error { return s.db.Close() }

// guarded runs f and turns what bbolt and the kernel do about a damaged file, a panic or a fault in the mapped pages,
// into ErrDamaged.
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, r)
		}
	}()
	return f()
}

// fileError wraps err into one of the errors of the file, with what to do about it.
func fileError(path string, err error) error {
	damaged := func() error {
		return fmt.Errorf("open ledger %s: %w: %w; the file is left as it is: keep a copy of it, then restore a backup, or move it away and let floatip rebuild it from the FloatingIP objects and the VMs", path, ErrDamaged, err)
	}
	switch {
	case errors.Is(err, ErrLocked):
		return fmt.Errorf("open ledger %s: %w; one floatip-webhook at a time may use it: stop the other one, or look at a copy of the file", path, ErrLocked)
	case noRoom(err):
		return fmt.Errorf("ledger %s: %w: %w; nothing was changed: make room on its volume and try again", path, ErrDiskFull, err)
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("ledger %s: %w: %w; mount its volume writable for floatip's user (fsGroup)", path, ErrReadOnly, err)
	case errors.Is(err, ErrFormat):
		return fmt.Errorf("open ledger %s: %w; start the version of floatip that wrote it", path, err)
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

func checkFormat(tx *bbolt.Tx) error {
	for _, name := range buckets {
		if tx.Bucket(name) == nil {
			return fmt.Errorf("%w: it is no ledger of floatip, bucket %q is missing", ErrFormat, name)
		}
	}
	if v := tx.Bucket(bucketLedger).Get(keyFormat); !bytes.Equal(v, []byte{formatVersion}) {
		return fmt.Errorf("%w: version %x, this floatip knows %d", ErrFormat, v, formatVersion)
	}
	return nil
}

func number(key []byte) uint64 {
	if len(key) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(key)
}

func numberKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// write makes the batch durable.
func (s *store) write(b *batch, opts Options) error {
	next, first := s.next, s.first
	err := guarded(func() error { return s.db.Update(func(tx *bbolt.Tx) error { return s.writeAll(tx, b, opts) }) })
	if err != nil {
		s.next, s.first = next, first
		return fileError(s.path, err)
	}
	return nil
}

func (s *store) writeAll(tx *bbolt.Tx, b *batch, opts Options) error {
	if err := writeChanges(tx, b.changes); err != nil {
		return err
	}
	if err := writeCursors(tx, b.cursors); err != nil {
		return err
	}
	if err := writeClaimants(tx, b); err != nil {
		return err
	}
	return s.writeHistory(tx, b, opts)
}

// writeChanges writes what became of each address. Keys are written in their order: neighbours share pages, and bbolt
// inserts at the end of a page instead of in the middle.
func writeChanges(tx *bbolt.Tx, changes []change) error {
	net := netChanges(changes)
	addresses := tx.Bucket(bucketAddresses)
	var gone, come [][]byte
	for _, c := range net {
		key := appendAddress(nil, c.address)
		if c.before.State != 0 && (c.after.State == 0 || c.before.Owner != c.after.Owner) {
			gone = append(gone, ownerKey(nil, c.before.Owner, c.address))
		}
		if c.after.State == 0 {
			if err := addresses.Delete(key); err != nil {
				return err
			}
			continue
		}
		if err := addresses.Put(key, encodeAllocation(key, c.after)); err != nil {
			return err
		}
		if c.before.State == 0 || c.before.Owner != c.after.Owner {
			come = append(come, ownerKey(nil, c.after.Owner, c.address))
		}
	}
	return writeOwners(tx, gone, come)
}

// netChanges joins the changes of one address into one, and sorts them by address.
func netChanges(changes []change) []change {
	net := slices.Clone(changes)
	slices.SortStableFunc(net, func(a, b change) int { return a.address.Compare(b.address) })
	joined := net[:0]
	for _, c := range net {
		if n := len(joined); n > 0 && joined[n-1].address == c.address {
			joined[n-1].after = c.after
			continue
		}
		joined = append(joined, c)
	}
	return joined
}

func writeOwners(tx *bbolt.Tx, gone, come [][]byte) error {
	owners := tx.Bucket(bucketOwners)
	slices.SortFunc(gone, bytes.Compare)
	for _, key := range gone {
		if err := owners.Delete(key); err != nil {
			return err
		}
	}
	slices.SortFunc(come, bytes.Compare)
	for _, key := range come {
		if err := owners.Put(key, nil); err != nil {
			return err
		}
	}
	return nil
}

func writeCursors(tx *bbolt.Tx, cursors map[string]cursor) error {
	for name, cursor := range cursors {
		key := []byte(name)
		if err := tx.Bucket(bucketPools).Put(key, encodeCursor(key, cursor)); err != nil {
			return err
		}
	}
	return nil
}

func writeClaimants(tx *bbolt.Tx, b *batch) error {
	bucket := tx.Bucket(bucketDisputes)
	for a, after := range b.disputed {
		prefix := appendAddress(nil, a)
		cursor := bucket.Cursor()
		for k, _ := cursor.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = cursor.Seek(prefix) {
			if err := cursor.Delete(); err != nil {
				return err
			}
		}
		for _, c := range after {
			key := claimantKey(c)
			if err := bucket.Put(key, encodeClaimant(key, c)); err != nil {
				return err
			}
		}
	}
	return nil
}

// trimStep is how many old events one transaction removes for each new one at most, so that a lowered bound does not
// make one admission wait for all of them.
const trimStep = 4

func (s *store) writeHistory(tx *bbolt.Tx, b *batch, opts Options) error {
	bucket := tx.Bucket(bucketHistory)
	bucket.FillPercent = 0.9 // keys only grow: leave no half-empty pages behind
	for _, e := range b.events {
		key := numberKey(s.next)
		if err := bucket.Put(key, encodeEvent(key, e)); err != nil {
			return err
		}
		s.next++
	}
	return s.trimHistory(bucket, b, opts)
}

// trimHistory removes what is too old or too much, a stride of events at a time: the oldest events are on pages of their
// own, and each transaction that changes them writes two pages more, of thirteen. The bound of the size is never passed.
func (s *store) trimHistory(bucket *bbolt.Bucket, b *batch, opts Options) error {
	stride, size, added := uint64(min(max(opts.HistorySize/1000, 1), 64)), uint64(opts.HistorySize), uint64(len(b.events))
	if s.next-s.first <= size && s.next/stride == (s.next-added)/stride {
		return nil
	}
	cursor := bucket.Cursor()
	k, v := cursor.First()
	for range trimStep * max(stride, added) {
		if k == nil {
			break
		}
		s.first = number(k)
		e, err := decodeEvent(k, v)
		young := err != nil || e.Time.After(b.now.Add(-opts.HistoryAge))
		if young && s.next-s.first <= size-(stride-1) {
			break
		}
		if err := bucket.Delete(k); err != nil {
			return err
		}
		s.first++
		k, v = cursor.First()
	}
	return nil
}

func (s *store) history(q Query) ([]Event, error) {
	var events []Event
	err := guarded(func() error {
		return s.db.View(func(tx *bbolt.Tx) error {
			cursor := tx.Bucket(bucketHistory).Cursor()
			for k, v := cursor.Last(); k != nil && (q.Limit <= 0 || len(events) < q.Limit); k, v = cursor.Prev() {
				e, err := decodeEvent(k, v)
				if err != nil {
					return err
				}
				if q.selects(e) {
					events = append(events, e)
				}
			}
			return nil
		})
	})
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return nil, ErrClosed
	}
	if err != nil {
		return nil, fileError(s.path, err)
	}
	return reversed(events), nil
}
