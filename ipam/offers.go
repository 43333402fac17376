package ipam

import (
	"net/netip"
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
}

// offers holds the reservations by claim and by address. They all live equally long, so they expire in the order in
// which they were made.
type offers struct {
	byClaim   map[floatip.Claim]*offer
	byAddress map[netip.Addr]*offer
	queue     []*offer
}

func newOffers() offers {
	return offers{byClaim: map[floatip.Claim]*offer{}, byAddress: map[netip.Addr]*offer{}}
}

func (o *offers) add(f *offer) {
	o.byClaim[f.claim] = f
	for _, a := range f.addresses {
		o.byAddress[a] = f
	}
	o.queue = append(o.queue, f)
}

func (o *offers) remove(f *offer) {
	if o.byClaim[f.claim] != f {
		return
	}
	delete(o.byClaim, f.claim)
	for _, a := range f.addresses {
		delete(o.byAddress, a)
	}
}

// expired returns the oldest offer if it has ended, or nil.
func (o *offers) expired(now time.Time) *offer {
	for len(o.queue) > 0 {
		oldest := o.queue[0]
		if o.byClaim[oldest.claim] == oldest {
			if now.Before(oldest.expires) {
				return nil
			}
			return oldest
		}
		o.queue = o.queue[1:] // committed or withdrawn meanwhile
	}
	return nil
}

// count returns how many addresses of pool are promised to namespace.
func (o *offers) count(pool, namespace string) int {
	n := 0
	for _, f := range o.byClaim {
		if f.namespace != namespace {
			continue
		}
		for _, p := range f.pools {
			if p == pool {
				n++
			}
		}
	}
	return n
}

// allocation shows f's promise of address.
func (f *offer) allocation(i int, hold time.Duration) Allocation {
	return Allocation{
		Address: f.addresses[i],
		Pool:    f.pools[i],
		Owner:   floatip.Owner{Namespace: f.namespace, Name: f.name},
		Claim:   f.claim,
		State:   Reserved,
		Since:   f.expires.Add(-hold),
	}
}
