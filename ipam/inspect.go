package ipam

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// Layout of a bbolt meta page (go.etcd.io/bbolt/internal/common: page.go, meta.go): a header of 16 bytes, then magic,
// version, page size and flags of 4 bytes each, root page and its sequence, the page of the free list, the number of
// pages, the transaction and a FNV-1a sum over what precedes it, of 8 bytes each, in the byte order of the machine.
const (
	metaHeader   = 16
	metaSize     = 64
	metaMagic    = 0xED0CDAED
	metaPageSize = 8
	metaRoot     = 16
	metaPages    = 40 // the number of pages, from the start of the meta
	metaTxid     = 48
	metaSum      = 56
)

// inspect reads all of a file that bbolt is about to map and calls each with every key and value. It finds what would end
// the process later: a file that is shorter than its meta page says (a bus error in the middle of the work), or pages that
// form no tree.
func inspect(file *os.File, each func(bucket, key, value []byte) error) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", file.Name())
	}
	m, err := readMeta(file)
	if err != nil {
		return err
	}
	if info.Size() < m.size() {
		return fmt.Errorf("%w: the file has %d bytes and must have at least %d: it was cut off", ErrDamaged, info.Size(), m.size())
	}
	return walkTree(file, m, each)
}

// maxFile is more than any ledger has, 2^46 bytes, so that sizes do not overflow.
const maxFile = 1 << 46

// meta is what a meta page says.
type meta struct{ txid, pages, pageSize, root uint64 }

// size is how long the file is at least.
func (m meta) size() int64 { return int64(m.pages * m.pageSize) }

// readMeta returns the younger of the two meta pages.
//
// bbolt is content with one valid page. Here both must be valid: the page is written by one write within one sector, so a
// power failure leaves the old or the new one, and a page that is neither was damaged later. The other page is the
// transaction before, and what was acknowledged last would be missing.
func readMeta(file io.ReaderAt) (meta, error) {
	first, ok := metaAt(file, 0)
	for _, pageSize := range []uint64{1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16} {
		second, also := metaAt(file, int64(pageSize))
		switch {
		case !also || second.pageSize != pageSize:
			continue
		case !ok || first.pageSize != pageSize:
			return meta{}, fmt.Errorf("%w: its first meta page is not valid, the last change may be missing", ErrDamaged)
		case first.txid > second.txid:
			return first, nil
		}
		return second, nil
	}
	if ok {
		return meta{}, fmt.Errorf("%w: its second meta page is not valid, the last change may be missing", ErrDamaged)
	}
	return meta{}, fmt.Errorf("%w: neither of its two meta pages is valid", ErrDamaged)
}

// metaAt returns the meta page at offset if there is a valid one.
func metaAt(file io.ReaderAt, offset int64) (meta, bool) {
	raw := make([]byte, metaSize)
	if _, err := file.ReadAt(raw, offset+metaHeader); err != nil {
		return meta{}, false
	}
	order := binary.NativeEndian
	sum := fnv.New64a()
	sum.Write(raw[:metaSum])
	if order.Uint32(raw) != metaMagic || order.Uint64(raw[metaSum:]) != sum.Sum64() {
		return meta{}, false
	}
	m := meta{
		txid: order.Uint64(raw[metaTxid:]), pages: order.Uint64(raw[metaPages:]),
		pageSize: uint64(order.Uint32(raw[metaPageSize:])), root: order.Uint64(raw[metaRoot:]),
	}
	return m, m.pages >= 4 && m.pageSize >= 1<<10 && m.pages <= maxFile/m.pageSize
}
