package ipam

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// batch collects what one transaction changes, and how to take it back.
type batch struct {
	ledger *Ledger
	now    time.Time // of the operation at hand, and in the end of the transaction

	operations int           // how many it has
	due        time.Time     // when it will be written, if nobody waits for it; zero: not by itself
	answered   chan struct{} // closed when it is durable or has failed
	err        error         // why it failed

	steps    []step
	ended    []*offer
	advances []advance
	disputed map[netip.Addr][]Claimant // what the claimants of an address are now
	undo     []func()                  // for what is rare
	cursors  []poolCursor              // of the pools in advances, when all operations were applied

	ahead        []*offer // promises that it writes ahead of their Commit
	acknowledged []*offer // taken up by a Commit that did not wait for this batch
	promises     []byte   // the value of ledger/promises, nil if it stays as it is
}

// newBatch returns a batch with room for as many operations as are expected.
func newBatch(l *Ledger, room int) *batch {
	return &batch{
		ledger: l, answered: make(chan struct{}), steps: l.store.room.get(room), ended: make([]*offer, 0, room),
		advances: make([]advance, 0, room),
	}
}

// stepRoom keeps the room of steps that are folded for the batches to come: it is most of what a commit would leave to
// the garbage collector. The callers take from it, the writer gives back.
type stepRoom chan []step

// maxRoom is how many steps a room has at most that is kept, some 1 MiB.
const maxRoom = 4096

func (r stepRoom) get(room int) []step {
	select {
	case steps := <-r:
		return steps
	default:
		return make([]step, 0, room+room/4)
	}
}

func (r stepRoom) put(steps []step) {
	if cap(steps) > maxRoom {
		return
	}
	clear(steps) // the texts in them
	select {
	case r <- steps[:0]:
	default:
	}
}

// close ends the collecting.
func (b *batch) close() {
	if b == nil {
		return
	}
	if !b.empty() {
		b.forget()
		b.end()
	}
	if o := &b.ledger.offers; o.changed {
		o.value, o.changed = seal(keyPromises, appendPromises(o.value[:0], o.written)), false
		b.promises = o.value
	}
}

// fail takes back all of it. No batch that was begun later may be left.
func (b *batch) fail(err error) {
	if b == nil {
		return
	}
	b.keep()
	b.rollback(mark{})
	b.unwritten()
	b.err = err
}

// forgetStep is how many released allocations one transaction forgets, along with what it is for.
const forgetStep = 16

// forget drops released allocations that need not be remembered any longer.
func (b *batch) forget() {
	for _, a := range b.ledger.book.forgettable(b.now, b.ledger.opts.Remember, forgetStep) {
		b.drop(a)
	}
}

// step is what becomes of one address, and why.
type step struct {
	before *Allocation // nil: there was none
	after  Allocation  // State 0: there is none any more, only the address
	action Action      // 0: a released allocation is forgotten, which is no event
	cause  Cause
}

// advance is a pool whose cursor moved.
type advance struct {
	home   *home
	before cursor
}

// mark is how much a batch had collected at one moment.
type mark struct{ steps, ended, advances, undo int }

func (b *batch) mark() mark {
	return mark{len(b.steps), len(b.ended), len(b.advances), len(b.undo)}
}

// empty reports whether nothing has changed but promises.
func (b *batch) empty() bool { return len(b.steps) == 0 && len(b.disputed) == 0 }

// rollback undoes everything after m, allocations before the promises that they came from.
func (b *batch) rollback(m mark) {
	book := b.ledger.book
	for i := len(b.steps) - 1; i >= m.steps; i-- {
		if s := &b.steps[i]; s.before == nil {
			book.remove(s.after.Address)
		} else {
			if h := book.homeOf(s.before.Address); h != nil {
				s.before.Pool = h.pool.Name // pools may have changed since
			}
			book.put(s.before)
		}
	}
	for _, a := range slices.Backward(b.advances[m.advances:]) {
		a.home.cursor = a.before
	}
	for _, f := range slices.Backward(b.ended[m.ended:]) {
		b.ledger.restore(f)
	}
	for _, undo := range slices.Backward(b.undo[m.undo:]) {
		undo()
	}
	for i := range b.steps[m.steps:] {
		b.hidePromised(b.steps[m.steps+i].after.Address)
	}
	b.steps, b.ended, b.advances, b.undo = b.steps[:m.steps], b.ended[:m.ended], b.advances[:m.advances], b.undo[:m.undo]
}

// put makes after the allocation of its address and notes why.
func (b *batch) put(after Allocation, action Action, cause Cause) {
	if after.State == Released {
		after.Missing, after.Superseded = false, false
	}
	b.steps = append(b.steps, step{after: after, action: action, cause: cause})
	last := &b.steps[len(b.steps)-1]
	last.before = b.ledger.book.put(&last.after)
	if after.State == Released {
		b.hidePromised(after.Address)
	}
}

// hidePromised keeps a from being given to another one than whom it is promised to. It was promised while it was released
// or forgotten in a transaction that failed.
func (b *batch) hidePromised(a netip.Addr) {
	if b.ledger.offers.byAddress[a] != nil {
		b.ledger.book.hide(a)
	}
}

// drop forgets the released allocation of a.
func (b *batch) drop(a netip.Addr) {
	before, _ := b.ledger.book.get(a)
	b.ledger.book.remove(a)
	b.steps = append(b.steps, step{before: &before, after: Allocation{Address: a}})
}

// endOffer ends a reservation for somebody else's sake.
func (b *batch) endOffer(f *offer) {
	b.ledger.withdraw(f)
	b.ended = append(b.ended, f)
}

// takeUp ends a reservation whose addresses all go into the book next: until then they stay hidden.
func (b *batch) takeUp(f *offer) {
	b.ledger.offers.remove(f)
	b.ended = append(b.ended, f)
}

// advance moves the pool's cursor behind a.
func (b *batch) advance(h *home, a netip.Addr) {
	b.advances = append(b.advances, advance{h, h.cursor})
	h.cursor[slot(FamilyOf(a))] = numOf(a).next()
}

// end notes where the cursors are now.
func (b *batch) end() {
	for _, a := range b.advances {
		name := a.home.pool.Name
		if !slices.ContainsFunc(b.cursors, func(c poolCursor) bool { return c.pool == name }) {
			b.cursors = append(b.cursors, poolCursor{name, a.home.cursor})
		}
	}
}

// claims returns the claimants of the addresses where they changed, by address.
func (b *batch) claims() []claims {
	var all []claims
	for _, a := range slices.SortedFunc(maps.Keys(b.disputed), netip.Addr.Compare) {
		all = append(all, claims{a, b.disputed[a]})
	}
	return all
}
