package ipam

// table finds records by the hash of one of their keys. Several records may have the same key. It keeps numbers of
// records and one byte of each hash, 5 bytes a slot, where a map of Go would keep the key again.
//
// Linear probing; a removal closes the gap (Knuth, The Art of Computer Programming 3, section 6.4, algorithm R).
type table struct {
	ids  []uint32
	tags []uint8 // 0: empty
	used int
	hash func(id uint32) uint64
}

func tagOf(hash uint64) uint8 { return uint8(hash>>56) | 1 }

func (t *table) mask() uint64 { return uint64(len(t.ids) - 1) }

// find calls match with each record whose key may have this hash, until match returns true; it reports whether one did.
func (t *table) find(hash uint64, match func(id uint32) bool) bool {
	if t.used == 0 {
		return false
	}
	tag := tagOf(hash)
	for i := hash & t.mask(); t.tags[i] != 0; i = (i + 1) & t.mask() {
		if t.tags[i] == tag && match(t.ids[i]) {
			return true
		}
	}
	return false
}

func (t *table) insert(id uint32) {
	if t.used >= len(t.ids)/4*3 {
		t.resize(max(16, 2*len(t.ids)))
	}
	hash := t.hash(id)
	i := hash & t.mask()
	for t.tags[i] != 0 {
		i = (i + 1) & t.mask()
	}
	t.ids[i], t.tags[i] = id, tagOf(hash)
	t.used++
}

func (t *table) resize(size int) {
	ids, tags := t.ids, t.tags
	t.ids, t.tags, t.used = make([]uint32, size), make([]uint8, size), 0
	for i, tag := range tags {
		if tag != 0 {
			t.insert(ids[i])
		}
	}
}

// remove takes out id, whose key must not have changed since insert.
func (t *table) remove(id uint32) {
	gap := t.hash(id) & t.mask()
	for t.ids[gap] != id || t.tags[gap] == 0 {
		gap = (gap + 1) & t.mask()
	}
	for i := (gap + 1) & t.mask(); t.tags[i] != 0; i = (i + 1) & t.mask() {
		// The entry may move into the gap unless its own place lies between the two.
		if own := t.hash(t.ids[i]) & t.mask(); (i-own)&t.mask() >= (i-gap)&t.mask() {
			t.ids[gap], t.tags[gap] = t.ids[i], t.tags[i]
			gap = i
		}
	}
	t.tags[gap] = 0
	t.used--
}
