package ipam

import (
	"bytes"
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
)

// itemOf returns the value of a key of an index, nil if there is none.
func itemOf(index *bbolt.Bucket, key []byte) (found []byte) {
	eachItem(index, func(k, v []byte) {
		if bytes.Equal(k, key) {
			found = v
		}
	}, func([]byte, error) {})
	return found
}

// setItem makes value that of key; nil removes the key.
func setItem(index *bbolt.Bucket, key, value []byte) error {
	var r scratch
	return r.merge(index, []item{{key, value}})
}

// Random changes of an index, in sorted slices as they are folded, against a map. Blocks stay within their size, none is
// empty, and what is only appended fills them.
func TestBlocks(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	db := testDB(t)
	want := map[string]string{}
	var r scratch
	for round := range 400 {
		changed := map[string]bool{}
		var changes []item
		from, length := random.IntN(3000), 1+random.IntN(3000)
		for range 1 + random.IntN(200) {
			key := binary.BigEndian.AppendUint32(nil, uint32(from+random.IntN(length)))
			if changed[string(key)] {
				continue
			}
			changed[string(key)] = true
			one := item{key: key}
			if random.IntN(7) > round%7 {
				one.value = bytes.Repeat([]byte{byte(round)}, random.IntN(200))
				if random.IntN(100) == 0 {
					one.value = make([]byte, 2*blockSize)
				}
			}
			changes = append(changes, one)
		}
		slices.SortFunc(changes, func(a, b item) int { return bytes.Compare(a.key, b.key) })
		for _, one := range changes {
			if one.value == nil {
				delete(want, string(one.key))
			} else {
				want[string(one.key)] = string(one.value)
			}
		}
		r.bytes = nil
		if err := db.Update(func(tx *bbolt.Tx) error { return r.merge(tx.Bucket([]byte("index")), changes) }); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if diff := cmp.Diff(want, readBlocks(t, db)); diff != "" {
			t.Fatalf("round %d (-want +got):\n%.2000s", round, diff)
		}
	}
}

// A transaction takes out all blocks of some pages of bbolt, and puts something else among them and behind them.
func TestBlocksOfEmptiedPages(t *testing.T) {
	const n = 5000
	key := func(i int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(10*i)) }
	for from := 100; from < 4500; from += 367 {
		db := testDB(t)
		want := map[string]string{}
		var all, changes []item
		for i := range n {
			all = append(all, item{key(i), bytes.Repeat([]byte("v"), 90)})
			if i >= from && i < from+211 {
				changes = append(changes, item{key: key(i)})
			} else {
				want[string(key(i))] = string(all[i].value)
			}
		}
		for i := 1; i < 211; i += 50 { // among what goes, and behind it
			fresh := item{append(key(from + i)[:3:3], key(from + i)[3]+1), []byte("fresh")}
			changes = append(changes, fresh)
			want[string(fresh.key)] = "fresh"
		}
		slices.SortFunc(changes, func(a, b item) int { return bytes.Compare(a.key, b.key) })
		for _, part := range [][]item{all, changes} {
			err := db.Update(func(tx *bbolt.Tx) error {
				var r scratch
				return r.merge(tx.Bucket([]byte("index")), part)
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(want, readBlocks(t, db)); diff != "" {
			t.Fatalf("from %d (-want +got):\n%.2000s", from, diff)
		}
	}
}

func testDB(t *testing.T) *bbolt.DB {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "index.db"), 0o600, &bbolt.Options{NoSync: true, NoFreelistSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	err = db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucket([]byte("index"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// readBlocks returns all items. Blocks are at most blockSize long, or have one item.
func readBlocks(t *testing.T, db *bbolt.DB) map[string]string {
	t.Helper()
	got := map[string]string{}
	var blocks items
	err := db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("index")).ForEach(func(key, block []byte) error {
			before := len(got)
			err := blocks.read(key, block, func(key, value []byte) error {
				got[string(key)] = string(value)
				return nil
			})
			if n := len(got) - before; n == 0 || n > 1 && len(block) > blockSize {
				t.Errorf("block %x has %d items in %d bytes", key, n, len(block))
			}
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// What is appended, as new addresses and claims are, leaves full blocks and full pages.
func TestAppendedBlocksAreFull(t *testing.T) {
	db := testDB(t)
	var r scratch
	const n = 20_000
	for from := 0; from < n; from += 100 {
		var changes []item
		for i := range 100 {
			changes = append(changes, item{binary.BigEndian.AppendUint32(nil, uint32(from+i)), make([]byte, 90)})
		}
		r.bytes = nil
		if err := db.Update(func(tx *bbolt.Tx) error { return r.merge(tx.Bucket([]byte("index")), changes) }); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(slices.Collect(maps.Keys(readBlocks(t, db)))); got != n {
		t.Fatalf("%d items, want %d", got, n)
	}
	db.View(func(tx *bbolt.Tx) error {
		stats := tx.Bucket([]byte("index")).Stats()
		if full := n * 96 / blockSize; stats.KeyN > full+full/10 || stats.LeafAlloc*8/10 > stats.LeafInuse {
			t.Errorf("%d blocks for %d full ones, %d of %d bytes of pages in use", stats.KeyN, full, stats.LeafInuse, stats.LeafAlloc)
		}
		return nil
	})
}

// A block that is not what it should be is noticed: by its key, the order of its items, and its end.
func TestDamagedBlocks(t *testing.T) {
	one, two := item{[]byte("a"), []byte("1")}, item{[]byte("b"), []byte("2")}
	for _, c := range []struct {
		name, key string
		block     []byte
	}{
		{"empty", "a", nil},
		{"under another key", "b", appendItem(nil, one)},
		{"out of order", "b", appendItem(appendItem(nil, two), one)},
		{"the same twice", "a", appendItem(appendItem(nil, one), one)},
		{"cut off", "a", appendItem(appendItem(nil, one), two)[:7]},
		{"a length beyond its end", "a", []byte{1, 'a', 9}},
	} {
		var blocks items
		if err := blocks.read([]byte(c.key), c.block, func(_, _ []byte) error { return nil }); err == nil {
			t.Errorf("%s: no error", c.name)
		}
	}
	var blocks items
	next := func(key []byte, block []byte) error {
		return blocks.read(key, block, func(_, _ []byte) error { return nil })
	}
	if err := next(two.key, appendItem(nil, two)); err != nil {
		t.Error(err)
	}
	if err := next(one.key, appendItem(nil, one)); err == nil {
		t.Error("a block that begins before the end of the one in front of it: no error")
	}
}
