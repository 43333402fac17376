package ipam

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// settle replaces the pools. cursors says where the search goes on in pools that are new to b, and promised lists the
// addresses that are hidden. A pool whose addresses are the same keeps what was worked out for it.
func (b *book) settle(shares []share, cursors map[string]cursor, promised []netip.Addr) {
	homes := make([]*home, 0, len(shares))
	fresh := map[*home]bool{}
	for _, s := range shares {
		old := b.home(s.pool.Name)
		switch {
		case old == nil:
			old = &home{share: s, cursor: cursors[s.pool.Name]}
			fresh[old] = true
		case !slices.Equal(old.ranges, s.ranges):
			old = &home{share: s, cursor: old.cursor}
			fresh[old] = true
		default:
			old.share = s
		}
		homes = append(homes, old)
	}
	changed := len(fresh) > 0 || len(homes) != len(b.homes)
	b.homes, b.ranked = homes, slices.Clone(homes)
	slices.SortStableFunc(b.ranked, func(x, y *home) int { return cmp.Compare(y.pool.Priority, x.pool.Priority) })
	if changed {
		b.survey()
		b.populate(fresh, promised)
	}
}

// survey notes which range belongs to whom.
func (b *book) survey() {
	b.plots = [2][]plot{}
	for _, h := range b.homes {
		for _, r := range h.ranges {
			at := slot(FamilyOf(r.First))
			b.plots[at] = append(b.plots[at], plot{run{numOf(r.First), numOf(r.Last)}, h})
		}
	}
	for _, plots := range b.plots {
		slices.SortFunc(plots, func(a, b plot) int {
			return cmp.Or(cmp.Compare(a.first.hi, b.first.hi), cmp.Compare(a.first.lo, b.first.lo))
		})
	}
}

// populate works out what is free in the fresh pools, which allocation belongs to which pool, and the lists.
func (b *book) populate(fresh map[*home]bool, promised []netip.Addr) {
	for h := range fresh {
		for _, r := range h.ranges {
			at := slot(FamilyOf(r.First))
			h.families[at] = true
			h.free[at].push(run{numOf(r.First), numOf(r.Last)})
		}
	}
	b.records.live(func(id uint32) {
		rec := b.records.at(id)
		h := b.homeAt(rec.at, rec.family)
		if h == nil {
			return
		}
		if fresh[h] {
			h.free[slot(rec.family)].take(rec.at)
		}
		if party := &b.records.parties.all[rec.party]; party.pool != h.pool.Name {
			namespace, before := party.namespace, rec.party
			b.records.count(rec, -1)
			rec.party = b.records.use(namespace, h.pool.Name)
			b.records.count(rec, 1)
			b.records.parties.drop(before)
		}
	})
	b.relist()
	for _, a := range promised {
		b.hide(a)
	}
}

// relist builds the lists anew.
func (b *book) relist() {
	b.pending, b.strays = list{}, list{}
	for _, h := range b.homes {
		h.released = [2]list{}
	}
	var ids []uint32
	b.records.live(func(id uint32) {
		if rec := b.records.at(id); rec.state == Pending || rec.state == Released {
			rec.older, rec.younger, rec.listed = 0, 0, false
			ids = append(ids, id)
		}
	})
	slices.SortFunc(ids, func(x, y uint32) int {
		a, b := b.records.at(x), b.records.at(y)
		return cmp.Or(cmp.Compare(a.since, b.since), cmp.Compare(a.at.hi, b.at.hi), cmp.Compare(a.at.lo, b.at.lo))
	})
	for _, id := range ids {
		b.records.link(b.listOf(id), id)
	}
}

// compact builds the records anew, without the room of those that are gone.
func (b *book) compact() {
	old, offered := b.records, []netip.Addr{}
	b.records = newRecords()
	old.live(func(id uint32) {
		line := old.allocation(id)
		b.load(line)
		if line.State == Released && !old.at(id).listed {
			offered = append(offered, line.Address)
		}
	})
	b.arrange()
	for _, a := range offered {
		b.hide(a)
	}
}

// clamp gives records that entered their state after now, as it looks when the clock was set back, the present time:
// else they would rest until the clock is where it was. The order of the lists stays.
func (b *book) clamp(now time.Time) {
	b.records.live(func(id uint32) {
		if rec := b.records.at(id); rec.state != Bound {
			rec.since = min(rec.since, now.UnixNano())
		}
	})
}

func (b *book) lists() []*list {
	lists := []*list{&b.pending, &b.strays}
	for _, h := range b.homes {
		lists = append(lists, &h.released[0], &h.released[1])
	}
	return lists
}

// forgettable returns up to n released allocations that have rested and whose time to be remembered is over at now.
func (b *book) forgettable(now time.Time, remember time.Duration, n int) []netip.Addr {
	var over []netip.Addr
	for _, l := range b.lists()[1:] {
		for id := l.oldest; id != 0 && len(over) < n; id = b.records.at(id).younger {
			rec := b.records.at(id)
			rest := remember
			if h := b.homeAt(rec.at, rec.family); h != nil {
				rest = max(rest, h.pool.Quarantine)
			}
			if now.UnixNano() < rec.since+int64(rest) {
				break
			}
			over = append(over, rec.at.addr(rec.family))
		}
	}
	return over
}
