package ipam

import (
	"bytes"
	"encoding/binary"
	"errors"

	"go.etcd.io/bbolt"
)

// A block is a value of the two indexes: neighbouring items, in the order of their keys. Its own key is that of its first
// item. bbolt searches, inserts and allocates for each key that it is given, which was most of what folding cost; a block
// makes it once for some twenty addresses.

// blockSize is how many bytes a block has at most, unless one item is larger: two blocks and their keys fill a page of
// 4 KiB, so that what is appended leaves full pages behind (bbolt has at least two keys a page).
const blockSize = 1950

var errBlock = errors.New("the items of a block are out of order")

// item is a key and its value, or what becomes of them: without a value the key goes.
type item struct{ key, value []byte }

// size is how many bytes the item takes in a block, or a little more.
func (i item) size() int { return len(i.key) + len(i.value) + 4 }

// items reads the blocks of an index, in the order of their keys.
type items struct{ last []byte }

// read calls each with the items of a block. What it is given are parts of block.
func (r *items) read(key, block []byte, each func(key, value []byte) error) error {
	rest, last := reader{rest: block}, r.last
	for first := true; first || len(rest.rest) > 0; first = false {
		one := rest.item()
		if rest.err != nil {
			return rest.err
		}
		if first && !bytes.Equal(one.key, key) || last != nil && bytes.Compare(last, one.key) >= 0 {
			return errBlock
		}
		last = one.key
		if err := each(one.key, one.value); err != nil {
			return err
		}
	}
	r.last = append(r.last[:0], last...) // block may be gone by the next one
	return nil
}

func (r *reader) item() item { return item{r.bytes(r.uvarint()), r.bytes(r.uvarint())} }

func appendItem(to []byte, one item) []byte {
	to = append(binary.AppendUvarint(to, uint64(len(one.key))), one.key...)
	return append(binary.AppendUvarint(to, uint64(len(one.value))), one.value...)
}

// eachItem calls each with all items of an index. What cannot be read of a block is what complain is given.
func eachItem(index *bbolt.Bucket, each func(key, value []byte), complain func(key []byte, err error)) {
	var blocks items
	index.ForEach(func(key, block []byte) error {
		err := blocks.read(key, block, func(key, value []byte) error {
			each(key, value)
			return nil
		})
		if err != nil {
			complain(key, err)
		}
		return nil
	})
}

// merge makes changes in an index, once in a transaction. They are in the order of their keys, each key once: so bbolt's
// cursor meets no page that lost all of its blocks a moment ago, and over which it would not find the way.
func (r *scratch) merge(index *bbolt.Bucket, changes []item) error {
	index.FillPercent = appendFill
	cursor := index.Cursor()
	for len(changes) > 0 {
		spot := spotOf(cursor, changes[0].key)
		n := 1
		for n < len(changes) && spot.admits(changes[n].key) {
			n++
		}
		if err := r.mergeBlock(index, spot, changes[:n]); err != nil {
			return err
		}
		changes = changes[n:]
	}
	return nil
}

// spot is the block that has or gets a key: the last one that begins before it, or else the first of all. limit is the
// key of the block behind it.
type spot struct{ key, block, limit []byte }

func spotOf(cursor *bbolt.Cursor, key []byte) spot {
	at, block := cursor.Seek(key)
	if !bytes.Equal(at, key) {
		if before, its := cursor.Prev(); before != nil {
			return spot{before, its, at}
		}
		if at, block = cursor.First(); at == nil {
			return spot{}
		}
	}
	limit, _ := cursor.Next()
	return spot{at, block, limit}
}

func (p spot) admits(key []byte) bool { return p.limit == nil || bytes.Compare(key, p.limit) < 0 }

// mergeBlock makes changes in one block, which all belong there.
func (r *scratch) mergeBlock(index *bbolt.Bucket, p spot, changes []item) error {
	if err := r.mergeItems(p, changes); err != nil {
		return damaged(err)
	}
	if p.key != nil && (len(r.items) == 0 || !bytes.Equal(p.key, r.items[0].key)) {
		if err := index.Delete(p.key); err != nil {
			return err
		}
	}
	most := blockSize
	if p.limit != nil { // Nothing is appended here: the parts of a block that was too large have room for more.
		total := 0
		for _, one := range r.items {
			total += one.size()
		}
		most = total/(1+total/blockSize) + 1
	}
	for rest := r.items; len(rest) > 0; {
		start, n := len(r.bytes), 0
		for size := 0; n < len(rest) && (n == 0 || size+rest[n].size() <= most); n++ {
			size += rest[n].size()
			r.bytes = appendItem(r.bytes, rest[n])
		}
		if err := index.Put(rest[0].key, r.bytes[start:]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// mergeItems makes r.items those of the block with the changes.
func (r *scratch) mergeItems(p spot, changes []item) error {
	r.items = r.items[:0]
	take := func(below []byte) { // the changes before that key, or all
		for len(changes) > 0 && (below == nil || bytes.Compare(changes[0].key, below) < 0) {
			if changes[0].value != nil {
				r.items = append(r.items, changes[0])
			}
			changes = changes[1:]
		}
	}
	if p.block != nil {
		var blocks items
		err := blocks.read(p.key, p.block, func(key, value []byte) error {
			take(key)
			if len(changes) == 0 || !bytes.Equal(changes[0].key, key) {
				r.items = append(r.items, item{key, value})
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	take(nil)
	return nil
}
