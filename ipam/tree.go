package ipam

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// Layout of bbolt's pages (go.etcd.io/bbolt/internal/common: page.go, bucket.go), in the byte order of the machine. A page
// begins with its number (8 bytes), flags (2), the count of its elements (2) and the number of pages that follow it as part
// of it (4). An element of a branch has the position of its key, counted from the element (4), the key's size (4) and a
// page (8); one of a leaf has flags (4), position (4), key size (4) and value size (4), the value following the key. The
// value of a bucket is its root page (8) and a sequence (8); if the root is 0, its one page follows.
const (
	pageHeader  = 16
	elementSize = 16
	bucketSize  = 16

	flagBranch = 0x01
	flagLeaf   = 0x02
	flagBucket = 0x01 // of an element

	// maxDepth bounds the height of a tree: even with two keys a page, 48 levels are more than a disk holds.
	maxDepth = 48
)

// tree reads all keys and values of a bbolt file with plain reads, and proves on the way that its pages form a tree: none
// is used twice or lies outside, keys are in order. bbolt itself trusts what it maps: a damaged page would end the process
// by a fault, an endless loop, or a panic in a goroutine of its own.
type tree struct {
	file io.ReaderAt
	meta meta
	seen []bool
	each func(bucket, key, value []byte) error
}

// walkTree calls each with every key and value outside of buckets' names, in order. The slices are valid during the call.
//
// Errors: ErrDamaged if the file is no tree, what each returns, and those of reading.
func walkTree(file io.ReaderAt, m meta, each func(bucket, key, value []byte) error) error {
	t := &tree{file: file, meta: m, seen: make([]bool, m.pages), each: each}
	return t.walk(m.root, nil, bounds{}, 0)
}

// bounds are the keys that a page may have: from low on, below high; nil is no bound.
type bounds struct{ low, high []byte }

func (b bounds) admit(key []byte) bool {
	return (b.low == nil || bytes.Compare(b.low, key) <= 0) && (b.high == nil || bytes.Compare(key, b.high) < 0)
}

func damagedPage(id uint64, format string, args ...any) error {
	return fmt.Errorf("%w: page %d: %s", ErrDamaged, id, fmt.Sprintf(format, args...))
}

func (t *tree) walk(id uint64, bucket []byte, b bounds, depth int) error {
	page, err := t.read(id)
	if err != nil {
		return err
	}
	if depth > maxDepth {
		return damagedPage(id, "the tree is deeper than %d pages", maxDepth)
	}
	return t.page(id, page, bucket, b, depth)
}

// read returns the page with what follows it, and marks all of it as used.
func (t *tree) read(id uint64) ([]byte, error) {
	if id < 2 || id >= t.meta.pages { // 0 and 1 are the meta pages
		return nil, damagedPage(id, "it is referred to, but the tree's pages are 2 to %d", t.meta.pages-1)
	}
	page := make([]byte, t.meta.pageSize)
	if _, err := t.file.ReadAt(page, int64(id*t.meta.pageSize)); err != nil {
		return nil, fmt.Errorf("read page %d: %w", id, err)
	}
	overflow := uint64(binary.NativeEndian.Uint32(page[12:]))
	if stored := binary.NativeEndian.Uint64(page); stored != id {
		return nil, damagedPage(id, "it says that it is page %d", stored)
	}
	if overflow >= t.meta.pages-id {
		return nil, damagedPage(id, "it has %d more pages and reaches out of the file", overflow)
	}
	for i := id; i <= id+overflow; i++ {
		if t.seen[i] {
			return nil, damagedPage(i, "it is used twice")
		}
		t.seen[i] = true
	}
	if overflow == 0 {
		return page, nil
	}
	page = make([]byte, (1+overflow)*t.meta.pageSize)
	if _, err := t.file.ReadAt(page, int64(id*t.meta.pageSize)); err != nil {
		return nil, fmt.Errorf("read page %d: %w", id, err)
	}
	return page, nil
}

// page goes through the elements of a branch or a leaf.
func (t *tree) page(id uint64, page, bucket []byte, b bounds, depth int) error {
	flags, count := binary.NativeEndian.Uint16(page[8:]), int(binary.NativeEndian.Uint16(page[10:]))
	if pageHeader+count*elementSize > len(page) {
		return damagedPage(id, "it has no room for its %d elements", count)
	}
	switch flags {
	case flagBranch:
		return t.branch(id, page, count, bucket, b, depth)
	case flagLeaf:
		return t.leaf(id, page, count, bucket, b, depth)
	}
	return damagedPage(id, "it is neither branch nor leaf, flags %#x", flags)
}

// element is what an element of either kind says.
type element struct{ key, value []byte }

// cut returns the key and the value of the element at offset.
func cut(id uint64, page []byte, offset int, position, keySize, valueSize uint32) (element, error) {
	start := uint64(offset) + uint64(position)
	end := start + uint64(keySize) + uint64(valueSize)
	if end > uint64(len(page)) {
		return element{}, damagedPage(id, "an element reaches out of it")
	}
	return element{page[start : start+uint64(keySize)], page[start+uint64(keySize) : end]}, nil
}

func (t *tree) branch(id uint64, page []byte, count int, bucket []byte, b bounds, depth int) error {
	if count == 0 {
		return damagedPage(id, "a branch without elements")
	}
	order := binary.NativeEndian
	var keys [][]byte
	for i := range count {
		offset := pageHeader + i*elementSize
		e, err := cut(id, page, offset, order.Uint32(page[offset:]), order.Uint32(page[offset+4:]), 0)
		if err != nil {
			return err
		}
		if !b.admit(e.key) || i > 0 && bytes.Compare(keys[i-1], e.key) >= 0 {
			return damagedPage(id, "its keys are out of order")
		}
		keys = append(keys, e.key)
	}
	for i, key := range keys {
		below := bounds{key, b.high}
		if i+1 < count {
			below.high = keys[i+1]
		}
		child := order.Uint64(page[pageHeader+i*elementSize+8:])
		if err := t.walk(child, bucket, below, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) leaf(id uint64, page []byte, count int, bucket []byte, b bounds, depth int) error {
	order := binary.NativeEndian
	var before []byte
	for i := range count {
		offset := pageHeader + i*elementSize
		flags := order.Uint32(page[offset:])
		e, err := cut(id, page, offset, order.Uint32(page[offset+4:]), order.Uint32(page[offset+8:]), order.Uint32(page[offset+12:]))
		if err != nil {
			return err
		}
		if !b.admit(e.key) || i > 0 && bytes.Compare(before, e.key) >= 0 {
			return damagedPage(id, "its keys are out of order")
		}
		before = e.key
		switch {
		case flags == flagBucket && bucket == nil:
			err = t.bucket(id, e, depth)
		case flags != 0 || bucket == nil:
			return damagedPage(id, "an element has the flags %#x", flags)
		default:
			err = t.each(bucket, e.key, e.value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bucket goes through the bucket that the element names, be it a tree of its own or inline.
func (t *tree) bucket(id uint64, e element, depth int) error {
	if len(e.value) < bucketSize {
		return damagedPage(id, "bucket %q has no root", e.key)
	}
	if root := binary.NativeEndian.Uint64(e.value); root != 0 {
		return t.walk(root, e.key, bounds{}, depth+1)
	}
	inline := e.value[bucketSize:]
	if len(inline) < pageHeader {
		return damagedPage(id, "bucket %q has no page", e.key)
	}
	return t.page(id, inline, e.key, bounds{}, depth+1)
}
