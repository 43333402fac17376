package ipam

import (
	"bytes"
	"slices"

	"go.etcd.io/bbolt"

	"floatip.io/floatip"
)

// change is what became of an address between two states of the buckets.
type change struct{ before, after Allocation }

// fold lets the buckets follow the entries, which are the oldest that they do not follow yet.
func (s *store) fold(tx *bbolt.Tx, entries []entry) error {
	if len(entries) == 0 {
		return nil
	}
	if err := foldChanges(tx, netChanges(entries)); err != nil {
		return err
	}
	if err := foldRest(tx, entries); err != nil {
		return err
	}
	s.history.folded = entries[len(entries)-1].number + 1
	return putFolded(tx, s.history.folded)
}

// netChanges joins the steps of each address into one change, ordered by address: neighbours share pages.
func netChanges(entries []entry) []change {
	var steps []*step
	for i := range entries {
		for j := range entries[i].steps {
			steps = append(steps, &entries[i].steps[j])
		}
	}
	slices.SortStableFunc(steps, func(a, b *step) int { return a.after.Address.Compare(b.after.Address) })
	net := make([]change, 0, len(steps))
	for _, s := range steps {
		if n := len(net); n > 0 && net[n-1].after.Address == s.after.Address {
			net[n-1].after = s.after
			continue
		}
		net = append(net, change{s.before, s.after})
	}
	return net
}

// foldChanges writes both indexes.
func foldChanges(tx *bbolt.Tx, net []change) error {
	addresses := tx.Bucket(bucketAddresses)
	var owners []ownerChange
	for i := range net {
		before, after := &net[i].before, &net[i].after
		key := appendAddress(nil, after.Address)
		was, is := before.State != 0, after.State != 0
		if was && (!is || before.Claim != after.Claim) {
			owners = append(owners, ownerChange{key: ownerKey(nil, before.Claim, after.Address)})
		}
		if is && (!was || before.Claim != after.Claim || before.Owner != after.Owner) {
			owners = append(owners, ownerChange{ownerKey(nil, after.Claim, after.Address), &after.Owner})
		}
		var err error
		if is {
			err = addresses.Put(key, encodeAllocation(key, after))
		} else {
			err = addresses.Delete(key)
		}
		if err != nil {
			return err
		}
	}
	return foldOwners(tx.Bucket(bucketOwners), owners)
}

// ownerChange is what becomes of a key of the owner index; without owner it goes.
type ownerChange struct {
	key   []byte
	owner *floatip.Owner
}

func foldOwners(bucket *bbolt.Bucket, changes []ownerChange) error {
	bucket.FillPercent = appendFill
	slices.SortFunc(changes, func(a, b ownerChange) int { return bytes.Compare(a.key, b.key) })
	for _, c := range changes {
		var err error
		if c.owner != nil {
			err = bucket.Put(c.key, encodeOwner(c.key, *c.owner))
		} else {
			err = bucket.Delete(c.key)
		}
		if err != nil {
			return err
		}
	}
	return nil
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
