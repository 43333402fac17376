package ipam

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
)

// Replace takes address from the virtual machine with that UID and gives it another one of the same family, in one
// transaction: it never holds both or neither. The old one rests as a released one does. It is for an address that cannot
// be used, because a host outside of the cluster has it.
//
// The new one is Bound like the old one, under the same claim. It comes from the pools that the request may use, the old
// one's first, and it is none that the machine held a while ago: that one may have been given up for the same reason.
//
// Errors: ErrNotHeld if the machine does not hold the address, ErrDisputed, those of Reserve about pools, *FullError, and
// those of the file. After an error nothing has changed.
func (l *Ledger) Replace(ctx context.Context, address netip.Addr, uid string, r Request, cause Cause) (Allocation, error) {
	if uid == "" || !address.IsValid() {
		return Allocation{}, fmt.Errorf("replace %s: %w: address and UID are needed", address, ErrInvalid)
	}
	var line Allocation
	err := l.writer.do(ctx, func(b *batch) (err error) {
		line, err = b.replace(address, uid, r, cause)
		return err
	})
	if err != nil {
		return Allocation{}, fmt.Errorf("replace %s: %w", address, err)
	}
	return line, nil
}

func (b *batch) replace(address netip.Addr, uid string, r Request, cause Cause) (Allocation, error) {
	l := b.ledger
	old, had := l.book.get(address)
	if !had || old.State != Bound || old.Owner.UID != uid {
		return Allocation{}, fmt.Errorf("VM with UID %s: %w", uid, ErrNotHeld)
	}
	if old.Disputed {
		return Allocation{}, ErrDisputed
	}
	family := FamilyOf(address)
	pools, err := l.eligible(nil, r)
	if err != nil {
		return Allocation{}, err
	}
	// Given back first, so that it does not count against the limit of its pool.
	gone := old
	gone.State, gone.Since = Released, b.now
	b.put(gone, Freed, cause)
	usable, err := l.usable(nil, r, pools, family, nil)
	if err != nil {
		return Allocation{}, err
	}
	slices.SortStableFunc(usable, func(x, y *home) int { return cmp.Compare(own(y, old), own(x, old)) })
	for _, h := range usable {
		if a, ok := l.book.next(h, family, b.now); ok && a != address {
			line := Allocation{
				Address: a, Pool: h.pool.Name, Owner: old.Owner, Claim: old.Claim, State: Bound, Since: b.now,
			}
			b.put(line, Bounded, Cause{User: cause.User, Reason: fmt.Sprintf("instead of %s: %s", address, cause.Reason)})
			b.advance(h, a)
			return line, nil
		}
	}
	return Allocation{}, l.full(usable, family, b.now)
}

// own is 1 for the pool that line came from, else 0.
func own(h *home, line Allocation) int {
	if h.pool.Name == line.Pool {
		return 1
	}
	return 0
}

// replaced reports whether the cluster shows with s what Replace has taken from its owner already, as after a crash before
// anybody was told: the owner holds another address of the family. A virtual machine never holds two.
func (b *batch) replaced(line Allocation, s Sighting) bool {
	return line.State == Released && line.Owner.UID == s.Owner.UID &&
		slices.ContainsFunc(onlyHeld(b.ledger.book.ofUID(s.Owner.UID)), func(other Allocation) bool {
			return FamilyOf(other.Address) == FamilyOf(s.Address)
		})
}
