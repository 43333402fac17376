package ipam

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"

	"go.etcd.io/bbolt"

	"floatip.io/floatip"
)

// change is what became of an address between two states of the buckets; before is nil if there was nothing.
type change struct{ before, after *Allocation }

// fold lets the buckets follow the entries, which are the oldest that they do not follow yet.
func (s *store) fold(tx *bbolt.Tx, entries []entry) error {
	if len(entries) == 0 {
		return nil
	}
	if err := s.foldChanges(tx, entries); err != nil {
		return err
	}
	if err := foldRest(tx, entries); err != nil {
		return err
	}
	s.history.folded = entries[len(entries)-1].number + 1
	return putFolded(tx, s.history.folded)
}

// scratch is room that one transaction after the other uses.
type scratch struct {
	bytes   []byte // keys and values, which bbolt reads until the transaction ends
	steps   []*step
	net     []change
	owners  []ownerChange
	changes []item // of an index
	items   []item // of a block
}

// shrink gives back what only a very large transaction needed.
func (r *scratch) shrink() {
	if cap(r.bytes) > 1<<20 {
		*r = scratch{}
	}
}

// netChanges joins the steps of each address into one change, ordered by address: neighbours share pages.
func (r *scratch) netChanges(entries []entry) []change {
	r.steps, r.net = r.steps[:0], r.net[:0]
	for i := range entries {
		for j := range entries[i].steps {
			r.steps = append(r.steps, &entries[i].steps[j])
		}
	}
	slices.SortStableFunc(r.steps, func(a, b *step) int { return a.after.Address.Compare(b.after.Address) })
	for _, s := range r.steps {
		if n := len(r.net); n > 0 && r.net[n-1].after.Address == s.after.Address {
			r.net[n-1].after = &s.after
			continue
		}
		r.net = append(r.net, change{s.before, &s.after})
	}
	return r.net
}

// foldChanges writes both indexes.
func (s *store) foldChanges(tx *bbolt.Tx, entries []entry) error {
	r := &s.scratch
	r.owners, r.changes = r.owners[:0], r.changes[:0]
	for _, c := range r.netChanges(entries) {
		a, start := c.after.Address, len(r.bytes)
		r.bytes = appendAddress(r.bytes, a)
		one, value := item{key: r.bytes[start:]}, len(r.bytes)
		was, is := c.before != nil, c.after.State != 0
		if was && (!is || c.before.Claim != c.after.Claim) {
			r.owners = append(r.owners, ownerChange{c.before.Claim, a, nil})
		}
		if is && (!was || c.before.Claim != c.after.Claim || c.before.Owner != c.after.Owner) {
			r.owners = append(r.owners, ownerChange{c.after.Claim, a, &c.after.Owner})
		}
		if is {
			r.bytes = sealFrom(one.key, appendAllocation(r.bytes, c.after), value)
			one.value = r.bytes[value:]
		}
		r.changes = append(r.changes, one)
	}
	if err := r.merge(tx.Bucket(bucketAddresses), r.changes); err != nil {
		return err
	}
	return r.foldOwners(tx.Bucket(bucketOwners))
}

// ownerChange is what becomes of a key of the owner index; without owner it goes.
type ownerChange struct {
	claim   floatip.Claim
	address netip.Addr
	owner   *floatip.Owner
}

func (r *scratch) foldOwners(index *bbolt.Bucket) error {
	r.changes = r.changes[:0]
	slices.SortFunc(r.owners, func(a, b ownerChange) int {
		return cmp.Or(bytes.Compare(a.claim[:], b.claim[:]), a.address.Compare(b.address))
	})
	for _, c := range r.owners {
		start := len(r.bytes)
		r.bytes = ownerKey(r.bytes, c.claim, c.address)
		one, value := item{key: r.bytes[start:]}, len(r.bytes)
		if c.owner != nil {
			r.bytes = sealFrom(one.key, appendOwner(r.bytes, *c.owner), value)
			one.value = r.bytes[value:]
		}
		r.changes = append(r.changes, one)
	}
	return r.merge(index, r.changes)
}

// foldRest writes cursors and claimants.
func foldRest(tx *bbolt.Tx, entries []entry) error {
	pools := tx.Bucket(bucketPools)
	cursors := map[string]cursor{}
	for i := range entries {
		for _, c := range entries[i].cursors {
			cursors[c.pool] = c.at
		}
		for _, c := range entries[i].claims {
			if err := foldClaimants(tx.Bucket(bucketDisputes), c); err != nil {
				return err
			}
		}
	}
	for pool, at := range cursors {
		key := []byte(pool)
		if err := pools.Put(key, encodeCursor(key, at)); err != nil {
			return err
		}
	}
	return nil
}

func foldClaimants(bucket *bbolt.Bucket, c claims) error {
	prefix := appendAddress(nil, c.address)
	cursor := bucket.Cursor()
	for k, _ := cursor.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = cursor.Seek(prefix) {
		if err := cursor.Delete(); err != nil {
			return err
		}
	}
	for _, one := range c.claimants {
		key := claimantKey(one)
		if err := bucket.Put(key, encodeClaimant(key, one)); err != nil {
			return err
		}
	}
	return nil
}
