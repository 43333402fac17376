package ipam

import (
	"math/big"
	"net/netip"
)

// audit proves that the parts of the index agree; promised lists the addresses that are hidden.
func (b *book) audit(promised []netip.Addr) []Problem {
	a := auditor{book: b, promised: map[netip.Addr]bool{}}
	for _, address := range promised {
		a.promised[address] = true
	}
	a.records()
	a.lists()
	for _, h := range b.homes {
		a.free(h, IPv4)
		a.free(h, IPv6)
	}
	return a.problems
}

type auditor struct {
	book     *book
	promised map[netip.Addr]bool
	problems []Problem
	listed   int
}

func (a *auditor) complain(address netip.Addr, text string) {
	a.problems = append(a.problems, Problem{address, "memory: " + text, true})
}

// records proves that each record is found by each of its keys, and that the counts are theirs.
func (a *auditor) records() {
	r := a.book.records
	counted, n, listed := newParties(), 0, 0
	counted.all = make([]party, len(r.parties.all))
	r.live(func(id uint32) {
		rec, line := r.at(id), r.allocation(id)
		n++
		if r.find(rec.at, rec.family) != id {
			a.complain(line.Address, "not found by its address")
		}
		found := 0
		var all []uint32
		all = r.ofName(all, line.Owner.Namespace, line.Owner.Name)
		all = append(all, r.ofUID(nil, line.Owner.UID)...)
		all = append(all, r.ofClaim(nil, line.Claim)...)
		for _, other := range all {
			if other == id {
				found++
			}
		}
		want := 1
		if line.Owner.UID != "" {
			want++
		}
		if !line.Claim.IsZero() {
			want++
		}
		if found != want {
			a.complain(line.Address, "not found by its name, UID or claim")
		}
		if h := a.book.homeAt(rec.at, rec.family); h != nil && line.Pool != h.pool.Name {
			a.complain(line.Address, "it is counted in pool "+line.Pool+", which does not have it")
		}
		wantListed := rec.state == Pending || rec.state == Released && !a.promised[line.Address]
		if rec.listed != wantListed {
			a.complain(line.Address, "it is in a list, or is not, against its state "+rec.state.String())
		}
		if rec.listed {
			listed++
		}
		counted.count(rec, 1)
	})
	if n != r.byAddress.used || n+len(r.free) != int(r.last) {
		a.complain(netip.Addr{}, "the number of records does not match")
	}
	for i, one := range r.parties.all {
		if one.counts != counted.all[i].counts || one.namespace != "" && one.empty() && !one.idle {
			a.complain(netip.Addr{}, "the counts of namespace "+one.namespace+" in pool "+one.pool+" do not match")
		}
	}
	a.listed = listed
}

// lists proves that the lists hold what is listed, in the order of time.
func (a *auditor) lists() {
	n := 0
	for _, l := range a.book.lists() {
		length, before := 0, uint32(0)
		for id := l.oldest; id != 0; id = a.book.records.at(id).younger {
			rec := a.book.records.at(id)
			if rec.older != before || a.book.listOf(id) != l {
				a.complain(rec.at.addr(rec.family), "it is in the wrong list")
			}
			if before != 0 && a.book.records.at(before).since > rec.since {
				a.complain(rec.at.addr(rec.family), "it stands behind a younger one")
			}
			before = id
			length++
		}
		if before != l.youngest || length != l.n {
			a.complain(netip.Addr{}, "a list does not end where it says")
		}
		n += length
	}
	if n != a.listed {
		a.complain(netip.Addr{}, "the lists have another number of records than are listed")
	}
}

// free proves that every address of the pool is either free, or in a record, or promised.
func (a *auditor) free(h *home, family Family) {
	free := &h.free[slot(family)]
	sum, before, first := new(big.Int), num{}, true
	for c, ordered := range free.chunks {
		if ordered.n == 0 || ordered.last != ordered.at(ordered.n-1).last {
			a.complain(netip.Addr{}, "pool "+h.pool.Name+": a chunk does not end where it says")
		}
		for i := range ordered.n {
			r := *free.at(place{c, i})
			if r.last.less(r.first) || !first && !before.next().less(r.first) {
				a.complain(r.first.addr(family), "free runs overlap or touch")
			}
			before, first = r.last, false
			sum.Add(sum, Range{r.first.addr(family), r.last.addr(family)}.size())
		}
	}
	taken := int64(0)
	a.book.records.live(func(id uint32) {
		rec := a.book.records.at(id)
		if rec.family != family || a.book.homeAt(rec.at, family) != h {
			return
		}
		taken++
		if free.has(rec.at) {
			a.complain(rec.at.addr(family), "it is free and in the ledger at once")
		}
	})
	for address := range a.promised {
		if FamilyOf(address) != family || a.book.homeOf(address) != h {
			continue
		}
		if a.book.records.find(numOf(address), family) == 0 {
			taken++
		}
		if free.has(numOf(address)) {
			a.complain(address, "it is free and promised at once")
		}
	}
	if sum.Add(sum, big.NewInt(taken)).Cmp(capacity(h.ranges, family)) != 0 {
		a.complain(netip.Addr{}, "pool "+h.pool.Name+": what is free and what is taken do not add up to its capacity")
	}
}
