package ipam

import (
	"hash/maphash"
	"strings"
)

// party is a namespace and a pool that it has addresses of: what many records share, and what limits are counted by.
type party struct {
	namespace, pool string
	hash            uint64   // of the namespace
	counts          [2]tally // by family
	idle            bool     // without records, and not yet forgotten
}

// tally counts records; pending ones are used, too.
type tally struct{ used, pending, released int }

func (t tally) plus(u tally) tally {
	return tally{t.used + u.used, t.pending + u.pending, t.released + u.released}
}

// empty reports whether no record is counted.
func (p *party) empty() bool { return p.counts == [2]tally{} }

// parties numbers the parties from 1. Of those without records the last few are kept: a namespace whose only machine is
// replaced, again and again, costs nothing.
type parties struct {
	all  []party
	of   map[string][]uint32 // by namespace; a namespace uses few pools
	free []uint32
	idle [maxIdle]uint32 // a ring; 0 is no party
	turn int
	seed maphash.Seed
}

// maxIdle bounds what is kept without use to some 30 KiB.
const maxIdle = 128

func newParties() parties {
	return parties{all: make([]party, 1), of: map[string][]uint32{}, seed: maphash.MakeSeed()}
}

// find returns the number of a party, 0 if there is none.
func (p *parties) find(namespace, pool string) uint32 {
	for _, number := range p.of[namespace] {
		if p.all[number].pool == pool {
			return number
		}
	}
	return 0
}

// use returns the number of a party, which it makes if necessary. The caller counts a record in it.
func (p *parties) use(namespace, pool string) uint32 {
	if number := p.find(namespace, pool); number != 0 {
		return number
	}
	var number uint32
	if last := len(p.free) - 1; last >= 0 {
		number, p.free = p.free[last], p.free[:last]
	} else {
		number = uint32(len(p.all))
		p.all = append(p.all, party{})
	}
	// The texts may be parts of a request, which is much larger.
	one := party{namespace: strings.Clone(namespace), pool: strings.Clone(pool), hash: maphash.String(p.seed, namespace)}
	p.all[number] = one
	p.of[one.namespace] = append(p.of[one.namespace], number)
	return number
}

// count adds the record to what its party has, or takes it away.
func (p *parties) count(rec *record, by int) {
	one := &p.all[rec.party]
	t := &one.counts[slot(rec.family)]
	if rec.state == Released {
		t.released += by
	} else {
		t.used += by
	}
	if rec.state == Pending {
		t.pending += by
	}
}

// drop notes that a party may have no records any more. In the ring it takes the place of the one that has been there
// longest, which is forgotten unless it is in use again.
func (p *parties) drop(number uint32) {
	one := &p.all[number]
	if number == 0 || one.idle || !one.empty() {
		return
	}
	one.idle = true
	oldest := p.idle[p.turn]
	p.idle[p.turn] = number
	p.turn = (p.turn + 1) % maxIdle
	if oldest == 0 {
		return
	}
	if p.all[oldest].idle = false; p.all[oldest].empty() {
		p.forget(oldest)
	}
}

func (p *parties) forget(number uint32) {
	one := &p.all[number]
	var rest []uint32
	for _, other := range p.of[one.namespace] {
		if other != number {
			rest = append(rest, other)
		}
	}
	if p.of[one.namespace] = rest; rest == nil {
		delete(p.of, one.namespace)
	}
	p.all[number] = party{}
	p.free = append(p.free, number)
}

// sum counts what all namespaces have of the pool.
func (p *parties) sum(pool string, family Family) tally {
	var sum tally
	for i := range p.all {
		if p.all[i].pool == pool {
			sum = sum.plus(p.all[i].counts[slot(family)])
		}
	}
	return sum
}
