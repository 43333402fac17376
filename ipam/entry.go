package ipam

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"floatip.io/floatip"
)

// entry is a value of the history: what one transaction did, or a part of it. It says both what happened (events) and
// what is since then, so that the other buckets may follow later.
type entry struct {
	number  uint64 // its key
	first   uint64 // the number of its first event
	time    time.Time
	steps   []step // without before
	room    []step // what can be used anew when this entry is folded, nil but in the last entry of a batch
	cursors []poolCursor
	claims  []claims
}

// poolCursor is where the search in a pool goes on.
type poolCursor struct {
	pool string
	at   cursor
}

// claims are the claimants that an address has now.
type claims struct {
	address   netip.Addr
	claimants []Claimant
}

// entrySteps is how many steps one entry has at most: their values stay within some pages.
const entrySteps = 64

// events counts the steps that are events.
func (e *entry) events() uint64 { return countEvents(e.steps) }

func countEvents(steps []step) uint64 {
	n := uint64(0)
	for i := range steps {
		if steps[i].action != 0 {
			n++
		}
	}
	return n
}

// event is what the step tells.
func (s *step) event(at time.Time) Event {
	return Event{
		Time: at, Action: s.action, Address: s.after.Address, Pool: s.after.Pool,
		Owner: s.after.Owner, Claim: s.after.Claim, Cause: s.cause,
	}
}

// header is what the history's bounds are about: the front of an entry.
type header struct {
	first  uint64 // the number of the first event
	events uint64 // how many there are
	time   time.Time
}

// appendEntry appends the value: number of the first event, number of events, time, then steps, cursors and claimants,
// each list with its length in front.
func appendEntry(to, key []byte, e *entry) []byte {
	start := len(to)
	to = binary.BigEndian.AppendUint64(to, e.first)
	to = appendTime(binary.BigEndian.AppendUint32(to, uint32(e.events())), e.time)
	to = binary.AppendUvarint(to, uint64(len(e.steps)))
	for i := range e.steps {
		s := &e.steps[i]
		to = appendAddress(append(to, byte(s.action)), s.after.Address)
		if s.action != 0 {
			to = appendAllocation(to, &s.after)
			to = appendText(to, s.cause.User, s.cause.RequestUID, s.cause.Reason)
		}
	}
	to = binary.AppendUvarint(to, uint64(len(e.cursors)))
	for _, c := range e.cursors {
		to = appendCursor(appendText(to, c.pool), c.at)
	}
	to = binary.AppendUvarint(to, uint64(len(e.claims)))
	for _, c := range e.claims {
		to = binary.AppendUvarint(appendAddress(to, c.address), uint64(len(c.claimants)))
		for _, one := range c.claimants {
			to = appendClaimant(to, one)
		}
	}
	return sealFrom(key, to, start)
}

func decodeEntry(key, sealed []byte) (entry, error) {
	value, err := unseal(key, sealed)
	if err == nil && len(key) != 8 {
		err = errShort
	}
	if err != nil {
		return entry{}, fmt.Errorf("entry %x: %w", key, err)
	}
	r := reader{rest: value}
	head := r.header()
	e := entry{number: number(key), first: head.first, time: head.time}
	for range r.length() {
		e.steps = append(e.steps, r.step())
	}
	for range r.length() {
		e.cursors = append(e.cursors, poolCursor{r.text(), r.cursor()})
	}
	for range r.length() {
		c := claims{address: r.address()}
		for range r.length() {
			c.claimants = append(c.claimants, r.claimant(c.address))
		}
		e.claims = append(e.claims, c)
	}
	err = r.end()
	if err == nil && head.events != e.events() {
		err = fmt.Errorf("it says %d events and has %d", head.events, e.events())
	}
	if err != nil {
		return entry{}, fmt.Errorf("entry %d: %w", e.number, err)
	}
	return e, nil
}

func (r *reader) header() header {
	return header{first: r.uint64(), events: uint64(r.uint32()), time: r.time()}
}

func (r *reader) step() step {
	s := step{action: Action(r.byte())}
	a := r.address()
	if s.action == 0 {
		s.after.Address = a
		return s
	}
	s.after = r.allocation(a)
	s.cause = Cause{User: r.text(), RequestUID: r.text(), Reason: r.text()}
	return s
}

// length reads how long a list is. Each element has at least one byte, so a damaged length ends soon.
func (r *reader) length() uint64 {
	n := r.uvarint()
	if r.err == nil && n > uint64(len(r.rest)) {
		r.err = errShort
	}
	if r.err != nil {
		return 0
	}
	return n
}

func (r *reader) claimant(a netip.Addr) Claimant {
	return Claimant{Address: a, Since: r.time(), Claim: r.claim(), Owner: r.owner(), Source: r.text()}
}

func (r *reader) cursor() cursor { return cursor{numOf(r.address()), numOf(r.address())} }

func (r *reader) owner() floatip.Owner {
	return floatip.Owner{Namespace: r.text(), Name: r.text(), UID: r.text()}
}
