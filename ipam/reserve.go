package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"floatip.io/floatip"
)

// Reserve promises addresses to r.Claim for Options.Reservation, in memory: a restart forgets it, but see
// Request.WriteAhead. Nothing waits for the disk. Asking again with the same claim gives the same answer, also after
// Commit. A dry run decides in the same way and changes nothing.
//
// A virtual machine that was promised addresses under its name, and was not stored since, is promised the same again,
// under the claim that it had: Offer.Claim is not r.Claim then.
//
// An address that is asked for is given, or the error says who has it (TakenError). Otherwise the virtual machine of
// the same namespace and name gets back what it released within Options.Hold; or else each pool is tried by priority:
// first its addresses that nobody had, then the one that was released first, if it has rested.
//
// Errors: ErrInvalid, ErrUnknownPool, ErrNotInPool, ErrNeverGiven, ErrNotAllowed, ErrNoPool, ErrDraining, *TakenError,
// *LimitError, *FullError, ErrClaimInUse, ErrClosed.
func (l *Ledger) Reserve(ctx context.Context, r Request) (Offer, error) {
	if err := ctx.Err(); err != nil {
		return Offer{}, err
	}
	l.writer.giveWay()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return Offer{}, ErrClosed
	}
	now := l.tick()
	if answer, ok, err := l.repeated(r); ok || err != nil {
		return answer, err
	}
	if err := r.validate(); err != nil {
		return Offer{}, err
	}
	var room [8]*home
	pools, err := l.eligible(room[:0], r)
	if err != nil {
		return Offer{}, err
	}
	if answer, ok := l.again(r, pools); ok {
		return answer, nil
	}
	answer, err := l.choose(r, pools, now)
	if err != nil || r.DryRun {
		return answer, err
	}
	answer.Expires = now.Add(l.opts.Reservation)
	f := newOffer(r, answer)
	l.promise(f)
	if r.WriteAhead {
		l.writeAhead(f)
	}
	return answer, nil
}

func (l *Ledger) promise(f *offer) {
	l.offers.add(f)
	for _, a := range f.addresses {
		l.book.hide(a)
	}
}

// Withdraw ends the reservation of claim early, as when the webhook refuses the object for another reason. Unknown
// claims are fine, and one that was kept stays (see Expire).
func (l *Ledger) Withdraw(claim floatip.Claim) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.offers.byClaim[claim]; f != nil && !f.kept {
		l.withdraw(f)
	}
}

func (l *Ledger) withdraw(f *offer) {
	l.offers.remove(f)
	for _, a := range f.addresses {
		l.book.show(a)
	}
}

// restore puts back a promise that was taken up by a transaction that failed, unless what it promised was released before
// that and is promised anew by now. Commit takes its addresses all the same if they are free.
func (l *Ledger) restore(f *offer) {
	if l.offers.byClaim[f.claim] != nil {
		return
	}
	for _, a := range f.addresses {
		if l.offers.byAddress[a] != nil {
			return
		}
	}
	l.promise(f)
}

// repeated answers a claim that has its addresses already.
func (l *Ledger) repeated(r Request) (Offer, bool, error) {
	if r.Claim.IsZero() {
		if r.DryRun {
			return Offer{}, false, nil
		}
		return Offer{}, false, fmt.Errorf("reserve: %w: a claim is needed", ErrInvalid)
	}
	if f := l.offers.byClaim[r.Claim]; f != nil {
		if f.namespace != r.Namespace {
			return Offer{}, false, fmt.Errorf("reserve for namespace %s: %w", r.Namespace, &ClaimError{floatip.Owner{Namespace: f.namespace}})
		}
		return f.offer(), true, nil
	}
	answer := Offer{Claim: r.Claim, Committed: true}
	for _, line := range current(onlyHeld(l.book.ofClaim(r.Claim))) {
		if line.Owner.Namespace != r.Namespace || line.State == Bound && r.Name != "" && line.Owner.Name != r.Name {
			return Offer{}, false, fmt.Errorf("reserve for namespace %s: %w", r.Namespace, &ClaimError{line.Owner})
		}
		answer.Addresses = append(answer.Addresses, line.Address)
		answer.Pools = append(answer.Pools, line.Pool)
	}
	return answer, len(answer.Addresses) > 0, nil
}

// choose decides; it changes nothing.
func (l *Ledger) choose(r Request, pools []*home, now time.Time) (Offer, error) {
	answer := Offer{Claim: r.Claim}
	for _, family := range bothFamilies {
		if !r.wants(family, pools) {
			continue
		}
		a, pool, err := l.chooseOne(r, pools, family, answer.Pools, now)
		if err != nil {
			return Offer{}, err
		}
		answer.Addresses = append(answer.Addresses, a)
		answer.Pools = append(answer.Pools, pool.pool.Name)
	}
	if len(answer.Addresses) == 0 {
		return Offer{}, fmt.Errorf("reserve for namespace %s: %w", r.Namespace, ErrNoPool)
	}
	return answer, nil
}

func (r Request) validate() error {
	if r.Namespace == "" {
		return fmt.Errorf("%w: the namespace is missing", ErrInvalid)
	}
	var seen [2]netip.Addr
	for _, a := range r.Addresses {
		if !canonical(a) {
			return fmt.Errorf("%w: address %s does not come from ParseAddress", ErrInvalid, a)
		}
		other := &seen[slot(FamilyOf(a))]
		if other.IsValid() {
			return fmt.Errorf("%w: %s and %s are both %s, at most one of each family can be held", ErrInvalid, *other, a, FamilyOf(a))
		}
		*other = a
	}
	if len(r.Pools) > 2 {
		return fmt.Errorf("%w: %d pools, at most one for each family can be named", ErrInvalid, len(r.Pools))
	}
	return nil
}

// wanted returns the address of the family that is asked for, or the zero Addr.
func (r Request) wanted(family Family) netip.Addr {
	for _, a := range r.Addresses {
		if FamilyOf(a) == family {
			return a
		}
	}
	return netip.Addr{}
}

var bothFamilies = [...]Family{IPv4, IPv6}

// wants reports whether r asks for an address of the family, be it because one of pools has some.
func (r Request) wants(family Family, pools []*home) bool {
	if len(r.Families) == 0 && len(r.Addresses) == 0 {
		return slices.ContainsFunc(pools, func(h *home) bool { return h.has(family) })
	}
	return slices.Contains(r.Families, family) || r.wanted(family).IsValid()
}

func (h *home) has(family Family) bool {
	return h.families[slot(family)]
}

func (h *home) admits(r Request) bool {
	return h.pool.Selects == nil || h.pool.Selects(r.NamespaceLabels)
}

// eligible returns the pools that r may use, in the order in which they are tried. to is room for them, of length 0.
func (l *Ledger) eligible(to []*home, r Request) ([]*home, error) {
	if len(r.Pools) > 0 {
		return l.named(to, r)
	}
	for _, h := range l.book.ranked {
		if h.admits(r) && (h.pool.AutoAssign || len(r.Addresses) > 0) {
			to = append(to, h)
		}
	}
	if len(to) == 0 && len(r.Addresses) == 0 {
		return nil, fmt.Errorf("reserve for namespace %s: %w: no pool with autoAssign admits it; name a pool or ask the administrator", r.Namespace, ErrNoPool)
	}
	return to, nil
}

func (l *Ledger) named(to []*home, r Request) ([]*home, error) {
	for _, name := range r.Pools {
		h := l.book.home(name)
		if h == nil {
			return nil, fmt.Errorf("pool %s: %w", name, ErrUnknownPool)
		}
		if !h.admits(r) {
			return nil, fmt.Errorf("pool %s: %w: its namespaceSelector does not match %s", name, ErrNotAllowed, r.Namespace)
		}
		to = append(to, h)
	}
	return to, nil
}

// chooseOne decides about one family; chosen are the pools that the other one's address comes from.
func (l *Ledger) chooseOne(
	r Request, pools []*home, family Family, chosen []string, now time.Time,
) (netip.Addr, *home, error) {
	if a := r.wanted(family); a.IsValid() {
		h, err := l.exact(r, pools, a, chosen, now)
		return a, h, err
	}
	var room [8]*home
	usable, err := l.usable(room[:0], r, pools, family, chosen)
	if err != nil {
		return netip.Addr{}, nil, err
	}
	if a, h, ok := l.earlier(r, usable, family, now); ok {
		return a, h, nil
	}
	for _, h := range usable {
		if a, ok := l.book.next(h, family, now); ok {
			return a, h, nil
		}
	}
	return netip.Addr{}, nil, l.full(usable, family, now)
}

// exact checks that r may have the address a.
func (l *Ledger) exact(r Request, pools []*home, a netip.Addr, chosen []string, now time.Time) (*home, error) {
	h := l.book.homeOf(a)
	if h == nil {
		return nil, l.outside(a)
	}
	if !slices.Contains(pools, h) {
		if len(r.Pools) > 0 {
			return nil, fmt.Errorf("%s: %w %v, it belongs to pool %s", a, ErrNotInPool, r.Pools, h.pool.Name)
		}
		return nil, fmt.Errorf("%s: pool %s: %w: its namespaceSelector does not match %s", a, h.pool.Name, ErrNotAllowed, r.Namespace)
	}
	if err := l.taken(a, r.Namespace, r.Name, now); err != nil {
		return nil, err
	}
	if err := l.open(h, r.Namespace, chosen); err != nil {
		return nil, about(a, err)
	}
	return h, nil
}

// outside says why no pool may give a.
func (l *Ledger) outside(a netip.Addr) error {
	for _, h := range l.book.homes {
		if within(h.pool.Never, a) || within(h.pool.Gateways, a) || slices.Contains(h.pool.Reserved, a) {
			return fmt.Errorf("%s: %w: in pool %s it is excluded, a gateway, a node's, or the first or last address of its network",
				a, ErrNeverGiven, h.pool.Name)
		}
	}
	return fmt.Errorf("%s: %w: no pool has it", a, ErrNotInPool)
}

// taken returns a TakenError unless a VM of that name may have a now.
func (l *Ledger) taken(a netip.Addr, namespace, name string, now time.Time) error {
	if f := l.offers.byAddress[a]; f != nil {
		return &TakenError{Holder: f.allocation(slices.Index(f.addresses, a), l.opts.Reservation), Until: f.expires}
	}
	line, had := l.book.get(a)
	if !had {
		return nil
	}
	if line.State != Released {
		return &TakenError{Holder: line}
	}
	until := line.Since.Add(l.quarantine(a))
	if now.Before(until) && !l.returns(line, namespace, name, now) {
		return &TakenError{Holder: line, Until: until}
	}
	return nil
}

func (l *Ledger) quarantine(a netip.Addr) time.Duration {
	if h := l.book.homeOf(a); h != nil {
		return h.pool.Quarantine
	}
	return DefaultQuarantine
}

// returns reports whether the released line goes back to the VM of that name before its rest is over.
func (l *Ledger) returns(line Allocation, namespace, name string, now time.Time) bool {
	return name != "" && line.Owner.Namespace == namespace && line.Owner.Name == name &&
		now.Before(line.Since.Add(l.opts.Hold))
}

// open returns an error unless h gives another address to namespace, which is about to get one of each of the pools chosen.
func (l *Ledger) open(h *home, namespace string, chosen []string) error {
	if h.pool.Drain {
		return fmt.Errorf("pool %s: %w", h.pool.Name, ErrDraining)
	}
	if h.pool.PerNamespaceLimit > 0 {
		held := l.book.countOf(h.pool.Name, namespace) + l.offers.count(h.pool.Name, namespace)
		if slices.Contains(chosen, h.pool.Name) {
			held++
		}
		if held >= h.pool.PerNamespaceLimit {
			return &LimitError{h.pool.Name, namespace, h.pool.PerNamespaceLimit, held}
		}
	}
	return nil
}

// usable returns the pools of the family that give to the namespace, or why there are none. to is room for them, of
// length 0.
func (l *Ledger) usable(to []*home, r Request, pools []*home, family Family, chosen []string) ([]*home, error) {
	var errs []error
	for _, h := range pools {
		if !h.has(family) {
			continue
		}
		if err := l.open(h, r.Namespace, chosen); err != nil {
			errs = append(errs, err)
			continue
		}
		to = append(to, h)
	}
	switch {
	case len(to) > 0:
		return to, nil
	case len(errs) > 0:
		return nil, errors.Join(errs...)
	case len(r.Pools) > 0:
		return nil, fmt.Errorf("pools %v: %w of the family %s", r.Pools, ErrFull, family)
	}
	return nil, fmt.Errorf("reserve for namespace %s: %w with %s addresses", r.Namespace, ErrNoPool, family)
}

// earlier returns what the VM of the same name released last, if it may have it back.
func (l *Ledger) earlier(r Request, pools []*home, family Family, now time.Time) (netip.Addr, *home, bool) {
	if r.Name == "" {
		return netip.Addr{}, nil, false
	}
	var best Allocation
	var from *home
	for _, line := range l.book.ofName(r.Namespace, r.Name) {
		if line.State != Released || FamilyOf(line.Address) != family || l.offers.byAddress[line.Address] != nil {
			continue
		}
		h := l.book.homeOf(line.Address)
		if slices.Contains(pools, h) && l.returns(line, r.Namespace, r.Name, now) && (from == nil || best.Since.Before(line.Since)) {
			best, from = line, h
		}
	}
	return best.Address, from, from != nil
}

func (l *Ledger) full(pools []*home, family Family, now time.Time) error {
	e := &FullError{Family: family}
	for _, h := range pools {
		e.Pools = append(e.Pools, h.pool.Name)
		n, first := l.book.resting(h, family, now)
		e.Quarantined += n
		if n > 0 && (e.Next.IsZero() || first.Before(e.Next)) {
			e.Next = first
		}
	}
	return e
}
