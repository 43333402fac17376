package ipam

import (
	"math/big"
	"net/netip"
	"slices"
	"time"
)

// Count is how many addresses of one family a pool has.
type Count struct {
	// Capacity is how many it can hand out: without what is excluded, reserved, or an older pool's.
	Capacity *big.Int
	// Used are held, Pending ones included; Pending of them were not yet seen stored.
	Used, Pending int
	// Quarantined were released and rest.
	Quarantined int
}

// PoolStatus is a pool and what became of it.
type PoolStatus struct {
	Pool Pool
	// IPv4 and IPv6 count the addresses; Capacity is zero for a family that the pool does not have.
	IPv4, IPv6 Count
	// Overlaps are the ranges that older pools have too, by the older pool's name. This pool gives nothing of them.
	Overlaps map[string][]Range
	// Draining: the pool hands out nothing and something is still held.
	Draining bool
}

// SetPools replaces all pools. It refuses nothing: the objects are there already. What is held stays held, also outside
// of every pool; CanChange and CanDelete are for asking before.
func (l *Ledger) SetPools(pools []Pool) {
	shares := divide(pools)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.book.settle(shares, l.cursors, l.offers.addresses())
	l.offers.rehome(func(a netip.Addr) string {
		if h := l.book.homeOf(a); h != nil {
			return h.pool.Name
		}
		return ""
	})
}

// Pools returns the pools with their counts, by name.
func (l *Ledger) Pools() []PoolStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.tick()
	statuses := make([]PoolStatus, 0, len(l.book.homes))
	for _, h := range l.book.homes {
		status := PoolStatus{
			Pool: h.pool, Overlaps: h.overlap,
			IPv4: l.book.tell(h, IPv4, now),
			IPv6: l.book.tell(h, IPv6, now),
		}
		status.Draining = h.pool.Drain && status.IPv4.Used+status.IPv6.Used > 0
		statuses = append(statuses, status)
	}
	return statuses
}

// tell counts the addresses of h.
func (b *book) tell(h *home, family Family, now time.Time) Count {
	t := b.records.sum(h.pool.Name, family)
	resting, _ := b.resting(h, family, now)
	return Count{Capacity: capacity(h.ranges, family), Used: t.used, Pending: t.pending, Quarantined: resting}
}

// CanChange returns an *InUseError if after, which replaces the pool of its name, would leave out addresses that are held
// in that pool, and that no other pool has: a pool is split or moved by making the other one first.
func (l *Ledger) CanChange(after Pool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stranded(after.Name, func(line Allocation) bool { return !within(after.Addresses, line.Address) })
}

// CanDelete returns an *InUseError if addresses of the pool are held that no other pool has.
func (l *Ledger) CanDelete(name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stranded(name, func(Allocation) bool { return true })
}

// inAnother reports whether a pool other than the named one has a.
func (l *Ledger) inAnother(pool string, a netip.Addr) bool {
	return slices.ContainsFunc(l.book.homes, func(h *home) bool {
		return h.pool.Name != pool && within(h.pool.Addresses, a) && !within(h.pool.Never, a)
	})
}

func (l *Ledger) stranded(pool string, left func(Allocation) bool) error {
	var holders []Allocation
	parties := l.book.records.parties.all
	ofPool := func(r *record) bool { return r.state != Released && parties[r.party].pool == pool }
	for _, line := range l.book.filter(ofPool) {
		if left(line) && !l.inAnother(pool, line.Address) {
			holders = append(holders, line)
		}
	}
	if len(holders) == 0 {
		return nil
	}
	slices.SortFunc(holders, func(a, b Allocation) int { return a.Address.Compare(b.Address) })
	return &InUseError{Pool: pool, Count: len(holders), Holders: slices.Clip(holders[:min(10, len(holders))])}
}
