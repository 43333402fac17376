package ipam

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"floatip.io/floatip"
)

// book is the index in memory: every allocation of the file, and for each pool what is free. An address is in exactly one
// of three places: free in its pool, in a record, or hidden while it is promised. A released one that is promised is in
// its record, but in no list.
type book struct {
	records *records
	homes   []*home   // by name
	ranked  []*home   // by priority, the highest first, then by name
	plots   [2][]plot // by family
	pending list
	strays  list // released, and in no pool any more
}

// home is a pool with what is free in it, by family.
type home struct {
	share
	families [2]bool // which it has addresses of
	free     [2]runs
	released [2]list
	cursor   cursor
}

// cursor is where the search for an address that nobody had goes on, by family.
type cursor [2]num

// plot is a range with the pool it belongs to.
type plot struct {
	run
	home *home
}

func newBook() *book { return &book{records: newRecords()} }

// slot is the place of a family in an array of two.
func slot(family Family) int {
	if family == IPv4 {
		return 0
	}
	return 1
}

// home returns the pool with that name, or nil.
func (b *book) home(name string) *home {
	at, found := slices.BinarySearchFunc(b.homes, name, func(h *home, name string) int { return cmp.Compare(h.pool.Name, name) })
	if !found {
		return nil
	}
	return b.homes[at]
}

// homeOf returns the pool that may hand out a, or nil.
func (b *book) homeOf(a netip.Addr) *home { return b.homeAt(numOf(a), FamilyOf(a)) }

func (b *book) homeAt(n num, family Family) *home {
	plots := b.plots[slot(family)]
	low, high := 0, len(plots)
	for low < high {
		if mid := int(uint(low+high) >> 1); plots[mid].last.less(n) {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low == len(plots) || n.less(plots[low].first) {
		return nil
	}
	return plots[low].home
}

func (b *book) get(a netip.Addr) (Allocation, bool) {
	id := b.records.find(numOf(a), FamilyOf(a))
	if id == 0 {
		return Allocation{}, false
	}
	return b.records.allocation(id), true
}

// load enters what the file says, into no table and no list: arrange makes them when all is there.
func (b *book) load(line Allocation) {
	b.records.count(b.records.at(b.records.load(&line)), 1)
}

// arrange ends loading.
func (b *book) arrange() {
	b.records.reindex()
	b.relist()
}

// put makes line the allocation of its address and returns what was before, nil if there was nothing. The line's texts are
// kept.
func (b *book) put(line *Allocation) (before *Allocation) {
	n, family := numOf(line.Address), FamilyOf(line.Address)
	id := b.records.find(n, family)
	if id == 0 {
		if h := b.homeAt(n, family); h != nil {
			h.free[slot(family)].take(n)
		}
		b.enter(b.records.add(line))
		return nil
	}
	was := b.records.allocation(id)
	b.leave(id)
	b.records.change(id, line)
	b.enter(id)
	return &was
}

// remove makes a an address that nobody had.
func (b *book) remove(a netip.Addr) {
	n, family := numOf(a), FamilyOf(a)
	id := b.records.find(n, family)
	if id == 0 {
		return
	}
	b.leave(id)
	b.records.remove(id)
	if h := b.homeAt(n, family); h != nil {
		h.free[slot(family)].give(n)
	}
	if b.records.sparse() {
		b.compact()
	}
}

// enter and leave count a record and keep it in the list of its state.
func (b *book) enter(id uint32) {
	b.records.count(b.records.at(id), 1)
	if l := b.listOf(id); l != nil {
		b.records.link(l, id)
	}
}

func (b *book) leave(id uint32) {
	b.records.count(b.records.at(id), -1)
	if b.records.at(id).listed {
		b.records.unlink(b.listOf(id), id)
	}
}

func (b *book) listOf(id uint32) *list {
	rec := b.records.at(id)
	switch rec.state {
	case Pending:
		return &b.pending
	case Released:
		if h := b.homeAt(rec.at, rec.family); h != nil {
			return &h.released[slot(rec.family)]
		}
		return &b.strays
	}
	return nil
}

// hide takes a out of what next may give, while it is promised; show puts it back.
func (b *book) hide(a netip.Addr) {
	n, family := numOf(a), FamilyOf(a)
	if id := b.records.find(n, family); id == 0 {
		if h := b.homeAt(n, family); h != nil {
			h.free[slot(family)].take(n)
		}
	} else if rec := b.records.at(id); rec.state == Released && rec.listed {
		b.records.unlink(b.listOf(id), id)
	}
}

func (b *book) show(a netip.Addr) {
	n, family := numOf(a), FamilyOf(a)
	if id := b.records.find(n, family); id == 0 {
		if h := b.homeAt(n, family); h != nil {
			h.free[slot(family)].give(n)
		}
	} else if rec := b.records.at(id); rec.state == Released && !rec.listed {
		b.records.link(b.listOf(id), id)
	}
}

// next returns the address that h gives next: the first one from the cursor on that nobody had, else the one that was
// released first, if it has rested.
func (b *book) next(h *home, family Family, now time.Time) (netip.Addr, bool) {
	free := &h.free[slot(family)]
	n, ok := free.ceil(h.cursor[slot(family)])
	if !ok {
		n, ok = free.ceil(num{})
	}
	if ok {
		return n.addr(family), true
	}
	oldest := h.released[slot(family)].oldest
	if oldest == 0 {
		return netip.Addr{}, false
	}
	rec := b.records.at(oldest)
	if now.UnixNano() < rec.since+int64(h.pool.Quarantine) {
		return netip.Addr{}, false
	}
	return rec.at.addr(family), true
}

// resting counts the released addresses of h that have not rested, and says when the first of them has.
func (b *book) resting(h *home, family Family, now time.Time) (n int, first time.Time) {
	for id := h.released[slot(family)].youngest; id != 0; id = b.records.at(id).older {
		until := time.Unix(0, b.records.at(id).since).Add(h.pool.Quarantine)
		if !now.Before(until) {
			break
		}
		n, first = n+1, until
	}
	return n, first
}

// countOf returns how many addresses of the pool the namespace holds.
func (b *book) countOf(pool, namespace string) int {
	number := b.records.parties.find(namespace, pool)
	counts := b.records.parties.all[number].counts
	return counts[0].used + counts[1].used
}

// ofUID, ofName and ofClaim return allocations by address.
func (b *book) ofUID(uid string) []Allocation {
	var room [4]uint32
	return b.allocations(b.records.ofUID(room[:0], uid))
}

func (b *book) ofName(namespace, name string) []Allocation {
	var room [4]uint32
	return b.allocations(b.records.ofName(room[:0], namespace, name))
}

func (b *book) ofClaim(claim floatip.Claim) []Allocation {
	var room [4]uint32
	return b.allocations(b.records.ofClaim(room[:0], claim))
}

func (b *book) allocations(ids []uint32) []Allocation {
	if len(ids) == 0 {
		return nil
	}
	lines := make([]Allocation, 0, len(ids))
	for _, id := range ids {
		lines = append(lines, b.records.allocation(id))
	}
	slices.SortFunc(lines, func(x, y Allocation) int { return x.Address.Compare(y.Address) })
	return lines
}

// filter returns the allocations whose record is wanted, in no order.
func (b *book) filter(wanted func(*record) bool) []Allocation {
	var lines []Allocation
	b.records.live(func(id uint32) {
		if wanted(b.records.at(id)) {
			lines = append(lines, b.records.allocation(id))
		}
	})
	return lines
}

// stale returns what is Pending since latest or before, oldest first.
func (b *book) stale(latest time.Time) []Allocation {
	var lines []Allocation
	for id := b.pending.oldest; id != 0; id = b.records.at(id).younger {
		if b.records.at(id).since > latest.UnixNano() {
			break
		}
		lines = append(lines, b.records.allocation(id))
	}
	return lines
}
