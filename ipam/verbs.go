package ipam

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"floatip.io/floatip"
)

// Commit makes the promise of claim durable for owner, whose name and UID are known now, and returns after the flush, of the
// promise itself if that is written ahead (Request.WriteAhead). The allocations are Pending.
//
// The API server may validate one object several times, each time with another name and UID (metadata.generateName):
// the last owner stands, and there is one allocation per family throughout. If the reservation has ended, or the process
// was restarted in between, the addresses that the object carries are taken if they are still free; addresses may be nil
// where they are not known.
//
// Errors: ErrUnknownClaim, ErrClaimInUse (the claim is Bound to another virtual machine), *TakenError, ErrNotInPool,
// ErrNeverGiven, *LimitError, ErrOwnerHolds, ErrInvalid, ErrDiskFull, ErrReadOnly, ErrClosed. After
// an error nothing has changed, except that ErrUncertain says that nobody knows.
func (l *Ledger) Commit(ctx context.Context, claim floatip.Claim, owner floatip.Owner, addresses []netip.Addr, cause Cause) ([]Allocation, error) {
	if claim.IsZero() || owner.UID == "" || owner.Namespace == "" || owner.Name == "" {
		return nil, fmt.Errorf("commit for VM %s: %w: claim, namespace, name and UID are needed", owner, ErrInvalid)
	}
	if err := (Request{Namespace: owner.Namespace, Addresses: addresses}).validate(); err != nil {
		return nil, fmt.Errorf("commit for VM %s: %w", owner, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("commit for VM %s: %w", owner, err)
	}
	var lines []Allocation
	awaited, err := l.writer.join(func(b *batch) (awaited *batch, err error) {
		promise := l.offers.byClaim[claim]
		if lines, err = b.commit(claim, owner, addresses, cause); err != nil {
			return nil, err
		}
		return b.acknowledge(promise), nil
	})
	if err == nil {
		err = awaited.wait(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("commit for VM %s: %w", owner, err)
	}
	return lines, nil
}

// acknowledge returns the batch that a Commit waits for, which took up promise: the one that wrote it ahead, or b.
func (b *batch) acknowledge(promise *offer) *batch {
	if promise == nil || promise.ahead == nil || promise.ahead == b {
		return b
	}
	b.acknowledged = append(b.acknowledged, promise)
	return promise.ahead
}

func (b *batch) commit(claim floatip.Claim, owner floatip.Owner, addresses []netip.Addr, cause Cause) ([]Allocation, error) {
	l := b.ledger
	if known := onlyHeld(l.book.ofClaim(claim)); len(known) > 0 {
		return b.recommit(known, owner, cause)
	}
	f := l.offers.byClaim[claim]
	if f != nil {
		if f.namespace != owner.Namespace || f.kept && l.keptFor(claim, owner) == nil {
			return nil, &ClaimError{floatip.Owner{Namespace: f.namespace, Name: f.name}}
		}
		addresses = f.addresses
	}
	if len(addresses) == 0 {
		return nil, fmt.Errorf("%w %s", ErrUnknownClaim, claim)
	}
	if f != nil {
		b.takeUp(f)
	}
	var lines []Allocation
	for _, a := range addresses {
		line, err := b.take(a, f, claim, owner, cause)
		if err != nil {
			return nil, err
		}
		lines = append(lines, line)
	}
	return lines, nil
}

// recommit gives what claim holds already to the owner that was validated last.
func (b *batch) recommit(known []Allocation, owner floatip.Owner, cause Cause) ([]Allocation, error) {
	for i, line := range known {
		if line.Owner == owner {
			continue
		}
		if line.State != Pending || line.Owner.Namespace != owner.Namespace {
			return nil, &ClaimError{line.Owner}
		}
		line.Owner, line.Since, line.Superseded = owner, b.now, false
		b.put(line, Committed, cause)
		known[i] = line
	}
	return known, nil
}

// take makes a the owner's, be it promised to claim by f or still free.
func (b *batch) take(a netip.Addr, f *offer, claim floatip.Claim, owner floatip.Owner, cause Cause) (Allocation, error) {
	l := b.ledger
	h := l.book.homeOf(a)
	if h == nil {
		return Allocation{}, l.outside(a)
	}
	if f == nil {
		if err := l.taken(a, owner.Namespace, owner.Name, b.now); err != nil {
			return Allocation{}, err
		}
		if err := l.open(h, owner.Namespace, nil); err != nil {
			return Allocation{}, about(a, err)
		}
	}
	if err := l.mayHave(a, claim, owner); err != nil {
		return Allocation{}, err
	}
	line := Allocation{Address: a, Pool: h.pool.Name, Owner: owner, Claim: claim, State: Pending, Since: b.now}
	b.put(line, Committed, cause)
	b.advance(h, a)
	return line, nil
}

// mayHave returns an error if a, which is promised or free, was adopted meanwhile, or owner holds another address of its family
// under another claim.
func (l *Ledger) mayHave(a netip.Addr, claim floatip.Claim, owner floatip.Owner) error {
	if line, had := l.book.get(a); had && line.held() {
		return &TakenError{Holder: line}
	}
	for _, line := range onlyHeld(l.book.ofUID(owner.UID)) {
		if FamilyOf(line.Address) == FamilyOf(a) && line.Claim != claim {
			return fmt.Errorf("%s: %w, %s", a, ErrOwnerHolds, line.Address)
		}
	}
	return nil
}

// Bind confirms that the virtual machine owner is stored in the API server: what it holds becomes Bound. If claim is not
// zero, what the claim holds is the owner's even if another UID was validated last. Binding again is fine.
//
// Errors: ErrNotHeld if the ledger knows neither the UID nor the claim, ErrClaimInUse if the claim is Bound to another
// UID, ErrOwnerHolds if the owner would have two addresses of one family, and those of the file.
func (l *Ledger) Bind(ctx context.Context, claim floatip.Claim, owner floatip.Owner, cause Cause) ([]Allocation, error) {
	if owner.UID == "" {
		return nil, fmt.Errorf("bind VM %s: %w: the UID is needed", owner, ErrInvalid)
	}
	var lines []Allocation
	err := l.writer.do(ctx, func(b *batch) (err error) {
		lines, err = b.bind(claim, owner, cause)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("bind VM %s: %w", owner, err)
	}
	return lines, nil
}

func (b *batch) bind(claim floatip.Claim, owner floatip.Owner, cause Cause) ([]Allocation, error) {
	if f := b.ledger.keptFor(claim, owner); f != nil {
		if err := b.commitKept(f, owner); err != nil {
			return nil, err
		}
	}
	lines := current(onlyHeld(b.ledger.book.ofUID(owner.UID)))
	if !claim.IsZero() {
		for _, line := range onlyHeld(b.ledger.book.ofClaim(claim)) {
			if line.Owner.UID != owner.UID {
				lines = append(lines, line)
			}
		}
	}
	if len(lines) == 0 {
		return nil, ErrNotHeld
	}
	for i, line := range lines {
		if line.Owner.UID != owner.UID && (line.State != Pending || line.Owner.Namespace != owner.Namespace) {
			return nil, about(line.Address, &ClaimError{line.Owner})
		}
		if other, twice := otherOf(lines[:i], line.Address); twice && line.Owner.UID != owner.UID {
			return nil, fmt.Errorf("%s: %w, %s", line.Address, ErrOwnerHolds, other)
		}
		if line.State == Bound && !line.Missing && !line.Superseded {
			continue
		}
		if line.State != Bound {
			line.State, line.Since = Bound, b.now
		}
		line.Owner, line.Missing, line.Superseded = owner, false, false
		b.put(line, Bounded, cause)
		lines[i] = line
	}
	return lines, nil
}

// otherOf returns the address of lines that has the family of a.
func otherOf(lines []Allocation, a netip.Addr) (netip.Addr, bool) {
	for _, line := range lines {
		if FamilyOf(line.Address) == FamilyOf(a) {
			return line.Address, true
		}
	}
	return netip.Addr{}, false
}

// Release gives back everything that the virtual machine with that UID holds. The caller has made sure that the machine,
// its instance and all of its pods are gone. The addresses rest for their pool's quarantine. Releasing what is not held is
// fine and returns nothing. A disputed address goes to the next virtual machine that claims it, and is not in the answer.
//
// Errors: those of the file.
func (l *Ledger) Release(ctx context.Context, uid string, cause Cause) ([]Allocation, error) {
	return l.release(ctx, uid, cause, func(Allocation) bool { return true })
}

// ReleasePending is Release as long as nothing of the virtual machine is Bound: the caller has seen Pending allocations and found no such
// machine, and one that was Bound meanwhile and deleted may have a node that still answers for its address. It returns nothing
// then.
//
// Errors: those of the file.
func (l *Ledger) ReleasePending(ctx context.Context, uid string, cause Cause) ([]Allocation, error) {
	return l.release(ctx, uid, cause, func(line Allocation) bool { return line.State == Pending })
}

// release gives back what the virtual machine holds, if each of it may be.
func (l *Ledger) release(ctx context.Context, uid string, cause Cause, may func(Allocation) bool) ([]Allocation, error) {
	if uid == "" {
		return nil, fmt.Errorf("release: %w: the UID is needed", ErrInvalid)
	}
	var released []Allocation
	err := l.writer.do(ctx, func(b *batch) error {
		released = nil
		lines := onlyHeld(b.ledger.book.ofUID(uid))
		for _, line := range lines {
			if !may(line) {
				return nil
			}
		}
		for _, line := range lines {
			if line.Disputed && len(b.ledger.disputes[line.Address]) > 0 {
				b.handOver(line, cause)
				continue
			}
			line.State, line.Since, line.Disputed = Released, b.now, false
			b.put(line, Freed, cause)
			released = append(released, line)
		}
		b.dropClaims(uid, cause)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("release VM %s: %w", uid, err)
	}
	return slices.Clip(released), nil
}
