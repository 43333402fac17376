package ipam

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"floatip.io/floatip"
)

// Sighting is an address seen with a virtual machine in the API server.
type Sighting struct {
	Address netip.Addr
	// Pool that the object names; may be empty.
	Pool  string
	Owner floatip.Owner
	Claim floatip.Claim
	// Source names the object: "VirtualMachine", "FloatingIP". It goes into the history.
	Source string
}

// Claimant is a virtual machine that claims an address that another one holds.
type Claimant struct {
	Address netip.Addr
	Owner   floatip.Owner
	Claim   floatip.Claim
	Source  string
	Since   time.Time
}

// Dispute is an address with its holder and the others that claim it.
type Dispute struct {
	Holder    Allocation
	Claimants []Claimant
}

// Adoption says what Adopt found.
type Adoption struct {
	// Adopted were not in the file, or released there, and are Bound now.
	Adopted []Allocation
	// Confirmed counts the sightings that the file knew.
	Confirmed int
	// Disputed addresses are held by one and claimed by another virtual machine. Nothing was taken from anybody.
	Disputed []Dispute
	// Superseded are held by virtual machines that are shown with another address of that family, which they have now. They
	// stay held; see GiveUp.
	Superseded []Allocation
	// Missing are held by virtual machines that a complete view did not show. They stay held.
	Missing []Allocation
}

// Adopt compares the file with what the API server shows, and adds what the file lacks. It never moves an address and
// never frees one: where two virtual machines show the same address, the one in the file keeps it (or the one that comes
// first in seen, so give FloatingIP objects first), and the dispute is noted until Resolve, or until one of them is
// released. If complete, seen is everything that the cluster has, and holders that are not in it are marked Missing.
//
// Errors: ErrInvalid if a sighting lacks its address or UID, and those of the file. After an error nothing has changed.
func (l *Ledger) Adopt(ctx context.Context, seen []Sighting, complete bool) (Adoption, error) {
	for _, s := range seen {
		if !canonical(s.Address) || s.Owner.UID == "" {
			return Adoption{}, fmt.Errorf("adopt %s for VM %s: %w: a UID, and an address as ParseAddress returns it, are needed",
				s.Address, s.Owner, ErrInvalid)
		}
	}
	var found Adoption
	err := l.writer.do(ctx, func(b *batch) error {
		found = b.adopt(seen, complete)
		return nil
	})
	if err != nil {
		return Adoption{}, fmt.Errorf("adopt: %w", err)
	}
	return found, nil
}

func (b *batch) adopt(seen []Sighting, complete bool) Adoption {
	var found Adoption
	disputed := map[netip.Addr]bool{}
	shown := map[string]bool{}
	for _, s := range seen {
		shown[s.Owner.UID] = true
		if f := b.ledger.keptFor(s.Claim, s.Owner); f != nil && slices.Contains(f.addresses, s.Address) {
			b.commitKept(f, s.Owner) // or else the file knows better, and what it says is judged below
		}
		line, had := b.ledger.book.get(s.Address)
		switch {
		case had && b.replaced(line, s):
			// What replaced it stands in the ledger and is about to be shown.
		case !had || line.State == Released:
			adopted := b.adoptFree(s)
			found.Adopted = append(found.Adopted, adopted)
			found.Superseded = append(found.Superseded, b.supersede(adopted, s.Source+" shows the VM")...)
		case line.Owner.UID == s.Owner.UID:
			if !b.ledger.book.superseded(line) {
				b.confirm(line, s)
			}
			found.Confirmed++
		default:
			b.dispute(line, s)
			disputed[s.Address] = true
		}
	}
	for a := range disputed {
		line, _ := b.ledger.book.get(a)
		found.Disputed = append(found.Disputed, Dispute{line, slices.Clone(b.ledger.disputes[a])})
	}
	slices.SortFunc(found.Disputed, func(x, y Dispute) int { return x.Holder.Address.Compare(y.Holder.Address) })
	if complete {
		found.Missing = b.missing(shown)
	}
	return found
}

func (b *batch) adoptFree(s Sighting) Allocation {
	pool := s.Pool
	if h := b.ledger.book.homeOf(s.Address); h != nil {
		pool = h.pool.Name
	}
	if f := b.ledger.offers.byAddress[s.Address]; f != nil {
		b.endOffer(f) // promised in memory only; it gets another one
	}
	line := Allocation{Address: s.Address, Pool: pool, Owner: s.Owner, Claim: s.Claim, State: Bound, Since: b.now}
	b.put(line, Adopted, Cause{Reason: "seen in " + s.Source})
	return line
}

func (b *batch) confirm(line Allocation, s Sighting) {
	if line.State == Bound && !line.Missing && !line.Superseded {
		return
	}
	if line.State != Bound {
		line.State, line.Since = Bound, b.now
	}
	line.Missing, line.Superseded = false, false
	b.put(line, Bounded, Cause{Reason: "seen in " + s.Source})
}

func (b *batch) dispute(line Allocation, s Sighting) {
	l := b.ledger
	before := l.disputes[s.Address]
	if slices.ContainsFunc(before, func(c Claimant) bool { return c.Owner.UID == s.Owner.UID }) {
		return
	}
	after := append(slices.Clone(before), Claimant{s.Address, s.Owner, s.Claim, s.Source, b.now})
	slices.SortFunc(after, firstClaimant)
	b.setClaimants(s.Address, after)
	line.Disputed = true
	b.put(line, Questioned, Cause{Reason: fmt.Sprintf("%s shows it with VM %s", s.Source, s.Owner)})
}

// firstClaimant orders claimants by who claimed first.
func firstClaimant(a, b Claimant) int {
	return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Owner.UID, b.Owner.UID))
}

// setClaimants replaces the claimants of a.
func (b *batch) setClaimants(a netip.Addr, after []Claimant) {
	l := b.ledger
	before := l.disputes[a]
	l.setDispute(a, after)
	b.undo = append(b.undo, func() { l.setDispute(a, before); b.disputed[a] = before })
	if b.disputed == nil {
		b.disputed = map[netip.Addr][]Claimant{}
	}
	b.disputed[a] = after
}

// handOver gives a disputed address, whose holder is gone, to the one that claimed it first.
func (b *batch) handOver(line Allocation, cause Cause) {
	claimants := b.ledger.disputes[line.Address]
	first := claimants[0]
	line.Owner, line.Claim, line.State, line.Since = first.Owner, first.Claim, Bound, b.now
	line.Missing, line.Superseded, line.Disputed = false, false, len(claimants) > 1
	b.setClaimants(line.Address, claimants[1:])
	b.put(line, Resolved, cause)
	b.supersede(line, "the dispute ended")
}

// dropClaims forgets what the virtual machine with that UID, which is gone, claims without holding it.
func (b *batch) dropClaims(uid string, cause Cause) {
	l := b.ledger
	for _, a := range slices.SortedFunc(maps.Keys(l.disputes), netip.Addr.Compare) {
		before := l.disputes[a]
		after := slices.DeleteFunc(slices.Clone(before), func(c Claimant) bool { return c.Owner.UID == uid })
		if len(after) == len(before) {
			continue
		}
		b.setClaimants(a, after)
		if len(after) == 0 {
			line, _ := l.book.get(a)
			line.Disputed = false
			b.put(line, Resolved, cause)
		}
	}
}

func (b *batch) missing(shown map[string]bool) []Allocation {
	var missing []Allocation
	for _, line := range b.ledger.book.filter(func(r *record) bool { return r.state == Bound }) {
		if shown[line.Owner.UID] {
			continue
		}
		if !line.Missing {
			line.Missing = true
			b.put(line, Missed, Cause{Reason: "a complete list of the cluster does not show the VM"})
		}
		missing = append(missing, line)
	}
	slices.SortFunc(missing, func(x, y Allocation) int { return x.Address.Compare(y.Address) })
	return missing
}

// Disputes returns the addresses that more than one virtual machine claims, by address.
func (l *Ledger) Disputes() []Dispute {
	l.mu.Lock()
	defer l.mu.Unlock()
	disputes := make([]Dispute, 0, len(l.disputes))
	for a, claimants := range l.disputes {
		line, _ := l.book.get(a)
		disputes = append(disputes, Dispute{line, slices.Clone(claimants)})
	}
	slices.SortFunc(disputes, func(x, y Dispute) int { return x.Holder.Address.Compare(y.Holder.Address) })
	return disputes
}

// Resolve ends the dispute about address: the virtual machine with that UID, one of those that claim it, has it.
//
// Errors: ErrNotHeld if there is no dispute, ErrInvalid if the UID is not one of the parties, and those of the file.
func (l *Ledger) Resolve(ctx context.Context, address netip.Addr, uid string, cause Cause) (Allocation, error) {
	var winner Allocation
	err := l.writer.do(ctx, func(b *batch) error {
		line, _ := l.book.get(address)
		claimants := l.disputes[address]
		if len(claimants) == 0 {
			return fmt.Errorf("%w by more than one VM, nothing to resolve", ErrNotHeld)
		}
		if line.Owner.UID != uid {
			at := slices.IndexFunc(claimants, func(c Claimant) bool { return c.Owner.UID == uid })
			if at < 0 {
				return fmt.Errorf("%w: no VM with UID %s claims it", ErrInvalid, uid)
			}
			line.Owner, line.Claim = claimants[at].Owner, claimants[at].Claim
			line.State, line.Since = Bound, b.now
		}
		line.Disputed, line.Missing, line.Superseded = false, false, false
		b.setClaimants(address, nil)
		b.put(line, Resolved, cause)
		b.supersede(line, "the dispute ended")
		winner = line
		return nil
	})
	if err != nil {
		return Allocation{}, fmt.Errorf("resolve %s: %w", address, err)
	}
	return winner, nil
}
