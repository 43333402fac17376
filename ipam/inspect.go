package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
)

// Layout of a bbolt meta page (go.etcd.io/bbolt/internal/common: page.go, meta.go): a header of 16 bytes, then magic,
// version, page size and flags of 4 bytes each, root page and its sequence, the page of the free list, the number of
// pages, the transaction and a FNV-1a sum over what precedes it, of 8 bytes each, in the byte order of the machine.
const (
	metaHeader = 16
	metaSize   = 64
	metaMagic  = 0xED0CDAED
	metaPages  = 40 // the number of pages, from the start of the meta
	metaTxid   = 48
	metaSum    = 56
)

// inspect finds a file that is shorter than its meta page says. bbolt maps the file and would end with a bus error in
// the middle of the work. A file that is missing or empty is fine: bbolt makes it.
func inspect(path string) error {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	m, err := readMeta(file)
	if err != nil {
		return err
	}
	if info.Size() < m.size() {
		return fmt.Errorf("%w: the file has %d bytes and must have at least %d: it was cut off", ErrDamaged, info.Size(), m.size())
	}
	return nil
}

// meta is what a meta page says.
type meta struct{ txid, pages, pageSize uint64 }

// size is how long the file is at least.
func (m meta) size() int64 { return int64(m.pages * m.pageSize) }

// readMeta returns the youngest valid meta page.
func readMeta(file io.ReaderAt) (meta, error) {
	var youngest meta
	for _, offset := range []int64{0, 4096, 8192, 16384, 32768, 65536} { // the second follows the first, at the page size
		raw := make([]byte, metaSize)
		if n, err := file.ReadAt(raw, offset+metaHeader); n < metaSize && errors.Is(err, io.EOF) {
			continue
		} else if n < metaSize {
			return meta{}, err
		}
		order := binary.NativeEndian
		sum := fnv.New64a()
		sum.Write(raw[:metaSum])
		if order.Uint32(raw) != metaMagic || order.Uint64(raw[metaSum:]) != sum.Sum64() {
			continue
		}
		m := meta{order.Uint64(raw[metaTxid:]), order.Uint64(raw[metaPages:]), uint64(order.Uint32(raw[8:]))}
		if youngest.pages == 0 || m.txid > youngest.txid {
			youngest = m
		}
	}
	if youngest.pages == 0 {
		return meta{}, fmt.Errorf("%w: neither of its two meta pages is valid", ErrDamaged)
	}
	return youngest, nil
}
