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
	needed, err := metaNeeds(file)
	if err != nil {
		return err
	}
	if info.Size() < needed {
		return fmt.Errorf("%w: the file has %d bytes and must have at least %d: it was cut off", ErrDamaged, info.Size(), needed)
	}
	return nil
}

// metaNeeds returns the size of file that the youngest valid meta page asks for.
func metaNeeds(file io.ReaderAt) (int64, error) {
	var txid, pages, pageSize uint64
	for _, size := range []int64{0, 4096, 8192, 16384, 32768, 65536} { // the second meta page follows the first
		raw := make([]byte, metaSize)
		if n, err := file.ReadAt(raw, size+metaHeader); n < metaSize && errors.Is(err, io.EOF) {
			continue
		} else if n < metaSize {
			return 0, err
		}
		order := binary.NativeEndian
		sum := fnv.New64a()
		sum.Write(raw[:metaSum])
		if order.Uint32(raw) != metaMagic || order.Uint64(raw[metaSum:]) != sum.Sum64() {
			continue
		}
		if id := order.Uint64(raw[metaTxid:]); pages == 0 || id > txid {
			txid, pages, pageSize = id, order.Uint64(raw[metaPages:]), uint64(order.Uint32(raw[8:]))
		}
	}
	if pages == 0 {
		return 0, fmt.Errorf("%w: neither of its two meta pages is valid", ErrDamaged)
	}
	return int64(pages * pageSize), nil
}
