package ipam

import "math/bits"

// table finds records by the hash of one of their keys. Several records may have the same key. It keeps numbers of
// records and one byte of each hash, 5 bytes a slot, where a map of Go would keep the key again.
//
// Linear probing with marks for what was removed (Knuth, The Art of Computer Programming 3, section 6.4). Closing the gap
// instead would need the hash, and so the record, of everything behind it.
type table struct {
	ids  []uint32
	tags []uint8
	used int // records
	gone int // marks
	hash func(id uint32) uint64
}

// Tags below firstTag are no records.
const (
	tagEmpty uint8 = iota
	tagGone        // searches go on behind it
	firstTag
)

func tagOf(hash uint64) uint8 { return uint8(hash>>56) | firstTag }

func (t *table) mask() uint64 { return uint64(len(t.ids) - 1) }

// find appends the records whose key may have this hash.
func (t *table) find(to []uint32, hash uint64) []uint32 {
	if t.used == 0 {
		return to
	}
	tag, mask := tagOf(hash), t.mask()
	for i := hash & mask; t.tags[i] != tagEmpty; i = (i + 1) & mask {
		if t.tags[i] == tag {
			to = append(to, t.ids[i])
		}
	}
	return to
}

func (t *table) insert(id uint32) {
	if t.used+t.gone >= slotsOf(len(t.ids)) {
		t.resize()
	}
	t.place(id)
}

// slotsOf is how many slots of a table may be in use: a quarter stays empty, so that searches end soon.
func slotsOf(size int) int { return size / 4 * 3 }

func (t *table) place(id uint32) {
	hash, mask := t.hash(id), t.mask()
	i := hash & mask
	for t.tags[i] >= firstTag {
		i = (i + 1) & mask
	}
	if t.tags[i] == tagGone {
		t.gone--
	}
	t.ids[i], t.tags[i] = id, tagOf(hash)
	t.used++
}

// resize makes room for more, or only drops the marks if they are what fills the table. The hashes need the records, which
// are read in the order of their numbers, as they lie in memory: in the order of the slots it took up to twice as long.
func (t *table) resize() {
	size := max(16, len(t.ids))
	if t.used >= len(t.ids)/2 {
		size = max(16, 2*len(t.ids))
	}
	var have []uint64 // a bit for each number
	for i, tag := range t.tags {
		if tag < firstTag {
			continue
		}
		word := int(t.ids[i] / 64)
		if word >= len(have) {
			have = append(have, make([]uint64, word+1-len(have))...)
		}
		have[word] |= 1 << (t.ids[i] % 64)
	}
	t.clear(size)
	for word, set := range have {
		for ; set != 0; set &= set - 1 {
			t.place(uint32(word*64 + bits.TrailingZeros64(set)))
		}
	}
}

func (t *table) clear(size int) {
	t.ids, t.tags, t.used, t.gone = make([]uint32, size), make([]uint8, size), 0, 0
}

// build fills the table with n records, at once at the size that they need.
func (t *table) build(n int, each func(yield func(id uint32))) {
	size := 16
	for n >= slotsOf(size) {
		size *= 2
	}
	t.clear(size)
	each(t.place)
}

// remove takes out id, whose key must not have changed since insert.
func (t *table) remove(id uint32) {
	mask := t.mask()
	i := t.hash(id) & mask
	for t.ids[i] != id || t.tags[i] < firstTag {
		i = (i + 1) & mask
	}
	t.used--
	if t.tags[(i+1)&mask] != tagEmpty {
		t.tags[i] = tagGone
		t.gone++
		return
	}
	// Nothing is behind it, so neither it nor the marks in front of it need to be passed any more.
	for t.tags[i] = tagEmpty; t.tags[(i-1)&mask] == tagGone; t.gone-- {
		i = (i - 1) & mask
		t.tags[i] = tagEmpty
	}
}
