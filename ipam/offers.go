package ipam

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"floatip.io/floatip"
)

// offer is a reservation: addresses that are promised in memory.
type offer struct {
	claim           floatip.Claim
	namespace, name string
	addresses       []netip.Addr
	pools           []string
	expires         time.Time

	cause Cause     // on whose behalf, of what is written ahead
	ahead *batch    // that writes it ahead of its Commit, or has; nil: only memory has it
	kept  bool      // it does not expire, see Expire
	since time.Time // when it was kept

	older, younger *offer // neighbours in offers
	room           struct {
		addresses [2]netip.Addr
		pools     [2]string
	}
}

// newOffer returns the reservation that promises answer.
func newOffer(r Request, answer Offer) *offer {
	f := &offer{claim: r.Claim, namespace: r.Namespace, name: r.Name, expires: answer.Expires, cause: r.Cause}
	f.addresses = append(f.room.addresses[:0], answer.Addresses...)
	f.pools = append(f.room.pools[:0], answer.Pools...)
	return f
}

// offers holds the reservations by claim and by address. They all live equally long, so the list in which they were made
// is the one in which they expire. Kept ones are not in it.
type offers struct {
	byClaim          map[floatip.Claim]*offer
	byAddress        map[netip.Addr]*offer
	byName           map[vmName]*offer // the youngest of a name; none for a name that is not known yet
	perPool          map[promisee]int  // addresses that are promised
	oldest, youngest *offer

	written map[floatip.Claim]*offer // that are in the file, or will be with their batch
	changed bool                     // the file has others than written
	value   []byte                   // of ledger/promises as it was made last, in room that the next one uses again
}

// vmName names a virtual machine.
type vmName struct{ namespace, name string }

// promisee is a namespace that is promised addresses of a pool.
type promisee struct{ pool, namespace string }

func newOffers() offers {
	return offers{
		byClaim:   map[floatip.Claim]*offer{},
		byAddress: map[netip.Addr]*offer{},
		byName:    map[vmName]*offer{},
		perPool:   map[promisee]int{},
		written:   map[floatip.Claim]*offer{},
	}
}

func (o *offers) add(f *offer) {
	o.byClaim[f.claim] = f
	if f.name != "" {
		o.byName[vmName{f.namespace, f.name}] = f
	}
	for i, a := range f.addresses {
		o.byAddress[a] = f
		o.perPool[promisee{f.pools[i], f.namespace}]++
	}
	if !f.kept {
		o.link(f)
	}
	if f.ahead != nil {
		o.write(f)
	}
}

// link puts f at its place in the list. It is the youngest, unless a commit that failed puts it back.
func (o *offers) link(f *offer) {
	f.older, f.younger = o.youngest, nil
	for f.older != nil && f.expires.Before(f.older.expires) {
		f.older, f.younger = f.older.older, f.older
	}
	if f.older != nil {
		f.older.younger = f
	} else {
		o.oldest = f
	}
	if f.younger != nil {
		f.younger.older = f
	} else {
		o.youngest = f
	}
}

// remove ends f, which is in o.
func (o *offers) remove(f *offer) {
	delete(o.byClaim, f.claim)
	if key := (vmName{f.namespace, f.name}); o.byName[key] == f {
		delete(o.byName, key)
	}
	for i, a := range f.addresses {
		delete(o.byAddress, a)
		key := promisee{f.pools[i], f.namespace}
		if o.perPool[key]--; o.perPool[key] == 0 {
			delete(o.perPool, key)
		}
	}
	if !f.kept {
		o.unlink(f)
	}
	if o.written[f.claim] == f {
		delete(o.written, f.claim)
		o.changed = true
	}
}

func (o *offers) unlink(f *offer) {
	if f.older != nil {
		f.older.younger = f.younger
	} else {
		o.oldest = f.younger
	}
	if f.younger != nil {
		f.younger.older = f.older
	} else {
		o.youngest = f.older
	}
}

// expired returns the oldest offer if it has ended, or nil.
func (o *offers) expired(now time.Time) *offer {
	if o.oldest == nil || now.Before(o.oldest.expires) {
		return nil
	}
	return o.oldest
}

// clamp lets no reservation end after latest.
func (o *offers) clamp(latest time.Time) {
	for _, f := range o.byClaim {
		if f.expires.After(latest) {
			f.expires = latest
		}
	}
}

// rehome counts what is promised for the pools that have the addresses now.
func (o *offers) rehome(poolOf func(netip.Addr) string) {
	clear(o.perPool)
	for _, f := range o.byClaim {
		for i, a := range f.addresses {
			if pool := poolOf(a); pool != "" {
				f.pools[i] = pool
			}
			o.perPool[promisee{f.pools[i], f.namespace}]++
		}
	}
}

// addresses returns what is promised.
func (o *offers) addresses() []netip.Addr { return slices.Collect(maps.Keys(o.byAddress)) }

// count returns how many addresses of pool are promised to namespace.
func (o *offers) count(pool, namespace string) int { return o.perPool[promisee{pool, namespace}] }

// allocation shows f's promise of its i-th address; it lasts for the time reservation. A kept one is Pending.
func (f *offer) allocation(i int, reservation time.Duration) Allocation {
	state, since := Reserved, f.expires.Add(-reservation)
	if f.kept {
		state, since = Pending, f.since
	}
	return Allocation{
		Address: f.addresses[i],
		Pool:    f.pools[i],
		Owner:   floatip.Owner{Namespace: f.namespace, Name: f.name},
		Claim:   f.claim,
		State:   state,
		Since:   since,
	}
}
