package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

// Errors of what people ask for. Each comes wrapped in a sentence that says what to do.
var (
	// ErrInvalid: the question makes no sense.
	ErrInvalid = errors.New("invalid request")
	// ErrCarried: the VM still exists, or something in the cluster still sends from its address.
	ErrCarried = errors.New("address is in use")
	// ErrCopy: a copied file answers questions only.
	ErrCopy = errors.New("a copied ledger is not changed")
)

// Cluster is what the running webhook knows of the cluster.
type Cluster interface {
	// Pools returns the pools as the API server has them now.
	Pools(ctx context.Context) ([]ipam.Pool, error)
	// Seen returns every address that the API server shows with a VM now.
	Seen(ctx context.Context) ([]ipam.Sighting, error)
	// Carrier asks the API server what still carries the owner's addresses: "VM", "VMI", "pod", or nothing.
	Carrier(ctx context.Context, owner floatip.Owner) (string, error)
	// Announcer asks which node has answered for the owner's addresses and has not said that it stopped; "" for none.
	Announcer(ctx context.Context, owner floatip.Owner) (string, error)
	// Settle makes the objects of the cluster show what was decided about address; owners are those whom it concerned.
	Settle(ctx context.Context, address netip.Addr, owners []floatip.Owner) error
}

// Book answers from an open ledger.
type Book struct {
	Ledger *ipam.Ledger
	// Cluster is nil for a ledger that is a copy.
	Cluster Cluster
	// PendingAge is how old a promise must be before Release takes it: the API server may be about to store its VM. Defaults to
	// 90s.
	PendingAge time.Duration
	// Pause lies between two looks of Check. Defaults to 2s: what the cluster and the ledger tell each other takes less.
	Pause time.Duration
}

// Check proves that the ledger is right, and that it agrees with the cluster. A difference that is gone at a second
// look was a change under way and is left out.
func (b Book) Check(ctx context.Context) (Report, error) {
	first, err := b.check(ctx)
	if err != nil || len(first.Problems) == 0 || b.Cluster == nil {
		return reportOf(first), err
	}
	pause := b.Pause
	if pause == 0 {
		pause = 2 * time.Second
	}
	select {
	case <-time.After(pause):
	case <-ctx.Done():
		return Report{}, ctx.Err()
	}
	second, err := b.check(ctx)
	if err != nil {
		return Report{}, err
	}
	second.Problems = slices.DeleteFunc(second.Problems, func(p ipam.Problem) bool {
		return !slices.Contains(first.Problems, p)
	})
	return reportOf(second), nil
}

func (b Book) check(ctx context.Context) (ipam.Report, error) {
	var against ipam.Against
	if b.Cluster != nil {
		var err error
		if against.Pools, err = b.Cluster.Pools(ctx); err != nil {
			return ipam.Report{}, err
		}
		if against.Seen, err = b.Cluster.Seen(ctx); err != nil {
			return ipam.Report{}, err
		}
	}
	return b.Ledger.Check(ctx, against)
}

// History returns the events that q selects, oldest first, at most q.Limit of the youngest.
func (b Book) History(_ context.Context, q ipam.Query) (Events, error) {
	limit, err := bounded(q.Limit, maxEvents)
	if err != nil {
		return Events{}, err
	}
	q.Limit = limit + 1
	found, err := b.Ledger.History(q)
	if err != nil {
		return Events{}, err
	}
	more := len(found) > limit
	if more {
		found = found[1:]
	}
	answer := Events{Events: make([]Event, 0, len(found)), More: more}
	for _, e := range found {
		answer.Events = append(answer.Events, eventOf(e))
	}
	return answer, nil
}

// List returns up to limit lines whose address comes after after, by address; the zero Addr comes before all.
func (b Book) List(_ context.Context, after netip.Addr, limit int) (Lines, error) {
	limit, err := bounded(limit, maxLines)
	if err != nil {
		return Lines{}, err
	}
	answer := Lines{Lines: []Line{}}
	for line := range b.Ledger.All() {
		if after.IsValid() && line.Address.Compare(after) <= 0 {
			continue
		}
		if len(answer.Lines) == limit {
			answer.More = true
			break
		}
		answer.Lines = append(answer.Lines, lineOf(line))
	}
	return answer, nil
}

// Disputes returns the addresses that more than one VM claims, by address.
func (b Book) Disputes(context.Context) (Disputes, error) {
	found := b.Ledger.Disputes()
	answer := Disputes{Disputes: []Dispute{}, More: len(found) > maxLines}
	for _, d := range found[:min(len(found), maxLines)] {
		answer.Disputes = append(answer.Disputes, disputeOf(d))
	}
	return answer, nil
}

// Resolve ends the dispute about an address: the VM with the UID keep has it, the others have not. Asked again for the
// same VM, it makes what the cluster shows right once more.
func (b Book) Resolve(ctx context.Context, address netip.Addr, keep, reason string) (Line, error) {
	if b.Cluster == nil {
		return Line{}, fmt.Errorf("resolve %s: %w: ask the running floatip-webhook, without --file", address, ErrCopy)
	}
	parties := b.parties(address)
	line, err := b.Ledger.Resolve(ctx, address, keep, causeOf(reason, "resolved"))
	switch holder, held := b.Ledger.Lookup(address); {
	case errors.Is(err, ipam.ErrNotHeld) && held && holder.State == ipam.Bound && holder.Owner.UID == keep:
		line = holder
	case errors.Is(err, ipam.ErrInvalid):
		return Line{}, fmt.Errorf("%w; the parties are %s", err, listOf(parties))
	case err != nil:
		return Line{}, err
	}
	if err := b.Cluster.Settle(ctx, address, parties); err != nil {
		return Line{}, fmt.Errorf("the ledger gives %s to VM %s now, but not all objects show it yet, ask again: %w",
			address, line.Owner, err)
	}
	return lineOf(line), nil
}

func (b Book) parties(address netip.Addr) []floatip.Owner {
	for _, d := range b.Ledger.Disputes() {
		if d.Holder.Address != address {
			continue
		}
		parties := []floatip.Owner{d.Holder.Owner}
		for _, c := range d.Claimants {
			parties = append(parties, c.Owner)
		}
		return parties
	}
	return nil
}

// Release gives back all addresses of the VM that holds address, if neither it nor anything of it is left in the
// cluster; or address alone, if the VM has another one instead. A node that has not said that it stopped to answer for
// them must be the one that the person has looked at, stoppedOn.
func (b Book) Release(ctx context.Context, address netip.Addr, stoppedOn, reason string) (Lines, error) {
	if b.Cluster == nil {
		return Lines{}, fmt.Errorf("release %s: %w: ask the running floatip-webhook, without --file", address, ErrCopy)
	}
	line, ok := b.Ledger.Lookup(address)
	if !ok || line.State != ipam.Bound && line.State != ipam.Pending {
		return Lines{}, fmt.Errorf("release %s: %w", address, ipam.ErrNotHeld)
	}
	if err := b.young(line); err != nil {
		return Lines{}, fmt.Errorf("release %s: %w", address, err)
	}
	if b.superseded(line) {
		return b.giveUp(ctx, line, reason)
	}
	by, err := b.Cluster.Carrier(ctx, line.Owner)
	switch {
	case err != nil:
		return Lines{}, fmt.Errorf("release %s: whether VM %s is gone is not known: %w", address, line.Owner, err)
	case by != "":
		return Lines{}, fmt.Errorf("release %s: %w: the %s of VM %s (UID %s) exists; delete the VM, and floatip releases "+
			"the address", address, ErrCarried, by, line.Owner, line.Owner.UID)
	}
	if err := b.announced(ctx, line, stoppedOn); err != nil {
		return Lines{}, fmt.Errorf("release %s: %w", address, err)
	}
	parties := b.parties(address)
	released, err := b.Ledger.Release(ctx, line.Owner.UID, causeOf(reason, "released"))
	if err != nil {
		return Lines{}, err
	}
	answer := Lines{Lines: []Line{}}
	for _, l := range released {
		answer.Lines = append(answer.Lines, lineOf(l))
	}
	if err := b.Cluster.Settle(ctx, address, append(parties, line.Owner)); err != nil {
		return Lines{}, fmt.Errorf("the ledger has released %s, but not all objects show it yet: %w", address, err)
	}
	return answer, nil
}

// young returns an error if the VM that holds line was admitted so lately that it may be stored yet: that the API server does
// not have it says nothing.
func (b Book) young(line ipam.Allocation) error {
	age := cmp.Or(b.PendingAge, 90*time.Second)
	if line.Kept() {
		return fmt.Errorf("%w: a VM of namespace %s may have been admitted with it before floatip was started, or its disk failed, "+
			"and is looked for within %s; if there is none, floatip releases the address by itself", ErrCarried, line.Owner.Namespace, age)
	}
	old := b.Ledger.StalePending(age)
	for _, has := range b.Ledger.ByOwner(line.Owner.UID) {
		if has.State == ipam.Pending && !slices.ContainsFunc(old, func(o ipam.Allocation) bool { return o.Address == has.Address }) {
			return fmt.Errorf("%w: VM %s was admitted less than %s ago and may be about to be stored; if it is not, floatip releases "+
				"the address by itself", ErrCarried, line.Owner, age)
		}
	}
	return nil
}

// superseded reports whether the VM that holds line has another address instead.
func (b Book) superseded(line ipam.Allocation) bool {
	return line.Superseded && !slices.ContainsFunc(b.Ledger.ByOwner(line.Owner.UID), func(has ipam.Allocation) bool {
		return has.Address == line.Address
	})
}

// giveUp gives back what the VM, which may live on, has no more, unless something in the cluster says that it has.
func (b Book) giveUp(ctx context.Context, line ipam.Allocation, reason string) (Lines, error) {
	seen, err := b.Cluster.Seen(ctx)
	if err != nil {
		return Lines{}, fmt.Errorf("release %s: whether the cluster shows it is not known: %w", line.Address, err)
	}
	for _, s := range seen {
		if s.Address == line.Address {
			return Lines{}, fmt.Errorf("release %s: %w: %s shows it with VM %s", line.Address, ErrCarried, s.Source, s.Owner)
		}
	}
	given, err := b.Ledger.GiveUp(ctx, line.Address, line.Owner.UID, causeOf(reason, "released"))
	if err != nil {
		return Lines{}, err
	}
	return Lines{Lines: []Line{lineOf(given)}}, nil
}

// announced returns an error if a node may still answer for what line's VM held, other than the one that was looked at.
func (b Book) announced(ctx context.Context, line ipam.Allocation, stoppedOn string) error {
	node, err := b.Cluster.Announcer(ctx, line.Owner)
	switch {
	case err != nil:
		return fmt.Errorf("whether a node still answers for it is not known: %w", err)
	case node == "" || node == stoppedOn:
		return nil
	}
	return fmt.Errorf("%w: VM %s is gone, but node %s has answered for it and has not said that it stopped, so the guest may "+
		"run on there; bring back the node and its agent, or make sure that the node is off and repeat this with --stopped-on %s",
		ErrCarried, line.Owner, node, node)
}

// Backup writes a copy of the file as it is at one moment.
func (b Book) Backup(_ context.Context, w io.Writer) error { return b.Ledger.Backup(w) }

func causeOf(reason, done string) ipam.Cause {
	text := done + " by command"
	if reason != "" {
		text += ": " + reason
	}
	return ipam.Cause{User: commandUser, Reason: text}
}

// commandUser stands in the history where an admission request has the name of its user: the socket knows no names.
const commandUser = "floatip-webhook ledger"

func bounded(n, most int) (int, error) {
	switch {
	case n < 0 || n > most:
		return 0, fmt.Errorf("limit %d: %w: at most %d at once", n, ErrInvalid, most)
	case n == 0:
		return most, nil
	}
	return n, nil
}
