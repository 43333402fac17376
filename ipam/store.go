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
	"syscall"

	"go.etcd.io/bbolt"
)

// formatVersion is the version of the drawing in the package comment.
const formatVersion = 3

var (
	bucketLedger    = []byte("ledger")
	bucketAddresses = []byte("addresses")
	bucketOwners    = []byte("owners")
	bucketPools     = []byte("pools")
	bucketDisputes  = []byte("disputes")
	bucketHistory   = []byte("history")

	buckets     = [][]byte{bucketLedger, bucketAddresses, bucketOwners, bucketPools, bucketDisputes, bucketHistory}
	keyFormat   = []byte("format")
	keyFolded   = []byte("folded")
	keyPromises = []byte("promises")
)

// store is the file. Only the writer's goroutine writes.
type store struct {
	db   *bbolt.DB
	path string
	file *os.File // bbolt's
	used int64    // bytes of the file that the last transaction knew of; what is behind them is free
	size int64    // bytes of the file, or less
	// history is what the file has of the history, unfolded what of it the other buckets do not follow yet.
	history  extent
	unfolded []entry
	scratch  scratch
	room     stepRoom
	doubt    error         // why nothing is written any more
	broken   chan struct{} // closed then
}

// openStore opens the file and calls each with every key and value in it. The file grows by growth bytes at a time, see
// makeRoom; with growth 0 it is only read. A missing file is made unless it is only read.
func openStore(path string, growth int, each func(bucket, key, value []byte) error) (*store, error) {
	readOnly := growth == 0
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && !readOnly {
		if err := createStore(path, growth); err != nil {
			return nil, fileError(path, err)
		}
	}
	s := &store{path: path, broken: make(chan struct{}), room: make(stepRoom, 4)}
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
		s.db.AllocSize, s.file = growth, file
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
		// Address space, not memory. bbolt waits for all who read before it maps a grown file anew, and copies every page
		// that the transaction has read.
		InitialMmapSize: 1 << 30,
	}
}

// createStore makes the file with its buckets, under another name first: a process that dies on the way leaves no file
// that is neither a ledger nor empty.
func createStore(path string, growth int) error {
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
	db.AllocSize = growth
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return errors.Join(tx.Bucket(bucketLedger).Put(keyFormat, []byte{formatVersion}), putFolded(tx, 1))
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
	return s.db.View(func(tx *bbolt.Tx) (err error) {
		if err = checkFormat(tx); err == nil {
			s.history, err = readExtent(tx)
		}
		return err
	})
}

// update runs f in a transaction. The transaction may be in effect although it failed: bbolt writes its meta page and cannot
// say whether that has reached the disk. The next transaction would then build on one whose callers were told that it
// failed, and whose traces in memory are gone. So there is no next one.
func (s *store) update(f func(tx *bbolt.Tx) error) error {
	if s.doubt != nil {
		return s.doubt
	}
	s.makeRoom(int64(s.db.AllocSize))
	id := 0
	err := guarded(func() error {
		return s.db.Update(func(tx *bbolt.Tx) error {
			id, s.used = tx.ID(), tx.Size()
			return f(tx)
		})
	})
	if err != nil && s.inEffect(id) {
		s.doubt = fmt.Errorf("%w: %w", ErrUncertain, err)
		close(s.broken)
		return s.doubt
	}
	return err
}

// zeros is what the file grows by, in writes of this size.
var zeros [64 << 10]byte

// makeRoom writes growth bytes of zeros behind the end of the file when less than that is left of it. bbolt would make the
// file longer without writing to it: each flush of pages that lie in such a hole also writes where they are (fdatasync(2)),
// which takes as long as a flush. If there is no room, bbolt finds out by itself, and complains.
func (s *store) makeRoom(growth int64) {
	if s.used+growth <= s.size {
		return
	}
	info, err := s.file.Stat()
	if err != nil {
		return
	}
	s.size = info.Size()
	if s.used+growth <= s.size { // bbolt has made it longer, for a large transaction
		return
	}
	for end := s.size + growth; s.size < end; {
		n, err := s.file.WriteAt(zeros[:min(end-s.size, int64(len(zeros)))], s.size)
		s.size += int64(n)
		if err != nil {
			return
		}
	}
}

// inEffect reports whether whoever reads now reads what the transaction with that number wrote.
func (s *store) inEffect(id int) bool {
	err := guarded(func() error {
		return s.db.View(func(tx *bbolt.Tx) error {
			if id > 0 && tx.ID() >= id {
				return ErrUncertain
			}
			return nil
		})
	})
	return errors.Is(err, ErrUncertain) || errors.Is(err, ErrDamaged)
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
