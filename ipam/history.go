package ipam

import (
	"context"
	"net/netip"
	"strconv"
	"time"

	"floatip.io/floatip"
)

// Action is what an Event tells.
type Action uint8

const (
	// Committed: the address was given to the owner, durably.
	Committed Action = iota + 1
	// Bounded: the owner was seen stored.
	Bounded
	// Freed: the owner gave the address back.
	Freed
	// Adopted: the address was found with the owner, as when the file was lost.
	Adopted
	// Questioned: another virtual machine claims the address too.
	Questioned
	// Resolved: a dispute ended; the owner has the address.
	Resolved
	// Missed: a complete view of the cluster did not show the owner.
	Missed
)

var actionNames = [...]string{"", "Committed", "Bound", "Released", "Adopted", "Disputed", "Resolved", "Missing"}

// String returns the action's name.
func (a Action) String() string {
	if a == 0 || int(a) >= len(actionNames) {
		return "Action(" + strconv.Itoa(int(a)) + ")"
	}
	return actionNames[a]
}

// Event is one line of the history.
type Event struct {
	Time    time.Time
	Action  Action
	Address netip.Addr
	Pool    string
	Owner   floatip.Owner
	Claim   floatip.Claim
	Cause   Cause
}

// Query selects events. The zero value of each field selects all.
type Query struct {
	Address netip.Addr
	// Namespace and Name of the virtual machine, or its UID.
	Namespace, Name, UID string
	// From and Until bound the time, From included, Until not.
	From, Until time.Time
	// Limit keeps only that many of the youngest events.
	Limit int
}

func (q Query) selects(e Event) bool {
	return (!q.Address.IsValid() || q.Address == e.Address) &&
		(q.Namespace == "" || q.Namespace == e.Owner.Namespace) &&
		(q.Name == "" || q.Name == e.Owner.Name) &&
		(q.UID == "" || q.UID == e.Owner.UID) &&
		(q.From.IsZero() || !e.Time.Before(q.From)) &&
		(q.Until.IsZero() || e.Time.Before(q.Until))
}

// History returns the events that q selects, oldest first, from the file.
func (l *Ledger) History(q Query) ([]Event, error) {
	l.settle()
	return l.store.events(q)
}

// settle returns when all that was acknowledged is in the file as it is in memory, or cannot be written: what a Commit says
// of a promise that was written ahead follows later.
func (l *Ledger) settle() {
	_ = l.writer.do(context.Background(), func(*batch) error { return nil })
}
