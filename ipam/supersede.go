package ipam

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
)

// A virtual machine never holds two addresses of one family. But an old copy of the file may have it with an address that
// it had earlier, while the cluster shows it with a later one. Both stay held: whether the earlier one is free is nobody's
// to guess. The earlier one is superseded: it counts as used, and is not among what the machine has for all who ask. It is
// given back with the machine, or by GiveUp.

// supersede marks what the virtual machine that has line now holds besides it of the same family.
func (b *batch) supersede(line Allocation, why string) (marked []Allocation) {
	for _, other := range onlyHeld(b.ledger.book.ofUID(line.Owner.UID)) {
		if other.Address == line.Address || FamilyOf(other.Address) != FamilyOf(line.Address) || other.Superseded {
			continue
		}
		other.Superseded = true
		b.put(other, Missed, Cause{Reason: fmt.Sprintf("%s with %s", why, line.Address)})
		marked = append(marked, other)
	}
	return marked
}

// current returns lines, all of one virtual machine or claim, without those that are superseded by another of them.
func current(lines []Allocation) []Allocation {
	if !slices.ContainsFunc(lines, func(line Allocation) bool { return line.Superseded }) {
		return lines
	}
	all := slices.Clone(lines)
	return slices.DeleteFunc(lines, func(line Allocation) bool { return supersededIn(all, line) })
}

// supersededIn reports whether one of lines is what the virtual machine has instead of line. When it has lost that one in a
// dispute, the youngest of the others counts again.
func supersededIn(lines []Allocation, line Allocation) bool {
	return line.Superseded && slices.ContainsFunc(lines, func(other Allocation) bool {
		if other.Owner.UID != line.Owner.UID || FamilyOf(other.Address) != FamilyOf(line.Address) {
			return false
		}
		return !other.Superseded || cmp.Or(other.Since.Compare(line.Since), other.Address.Compare(line.Address)) > 0
	})
}

func (b *book) superseded(line Allocation) bool {
	return line.Superseded && supersededIn(onlyHeld(b.ofUID(line.Owner.UID)), line)
}

// GiveUp gives back a superseded address of the virtual machine with that UID, which may go on with the other one. It rests
// for its pool's quarantine.
//
// Errors: ErrNotHeld if the machine does not hold the address or it is not superseded, ErrDisputed, and those of the file.
func (l *Ledger) GiveUp(ctx context.Context, address netip.Addr, uid string, cause Cause) (Allocation, error) {
	var line Allocation
	err := l.writer.do(ctx, func(b *batch) error {
		line, _ = b.ledger.book.get(address)
		switch {
		case !line.held() || line.Owner.UID != uid:
			return fmt.Errorf("VM with UID %s: %w", uid, ErrNotHeld)
		case line.Disputed:
			return ErrDisputed
		case !b.ledger.book.superseded(line):
			return fmt.Errorf("%w besides another address, it is the one that VM %s has", ErrNotHeld, line.Owner)
		}
		line.State, line.Since = Released, b.now
		b.put(line, Freed, cause)
		return nil
	})
	if err != nil {
		return Allocation{}, fmt.Errorf("give up %s: %w", address, err)
	}
	return line, nil
}
