package ipam

import (
	"context"
	"net/netip"
	"runtime"
	"slices"
	"time"
)

// maxBatch is how many operations share one transaction at most: enough for every admission the API server sends at
// once (--max-mutating-requests-inflight, 200), few enough that the transaction's pages stay within some megabytes.
const maxBatch = 1024

// writer is the one goroutine that changes the file. It takes every operation that is queued, applies them one by one
// to the index, writes all of their changes in one transaction and then answers all of them: many writers share one
// flush, and a lone one waits for nobody. If the transaction fails, the index is put back and all get the error.
type writer struct {
	ledger *Ledger
	queue  chan *operation
	pauses chan *operation
	quit   chan struct{}
	ended  chan struct{}
}

// operation is one verb. apply runs with the ledger locked and either returns an error or tells the batch what changes.
type operation struct {
	apply func(b *batch) error
	err   error
	ready chan struct{}
}

// change is what happens to one address.
type change struct {
	address netip.Addr
	before  Allocation // State 0: there was none
	after   Allocation // State 0: there is none any more
}

// batch collects what one transaction changes.
type batch struct {
	ledger   *Ledger
	now      time.Time
	changes  []change
	undo     []func()
	events   []Event
	cursors  map[string]cursor
	disputed map[netip.Addr][]Claimant // what the claimants of an address are now
}

func startWriter(l *Ledger) *writer {
	w := &writer{ledger: l, queue: make(chan *operation, maxBatch), pauses: make(chan *operation), quit: make(chan struct{}), ended: make(chan struct{})}
	go w.run()
	return w
}

// stop answers what is queued and ends the goroutine.
func (w *writer) stop() {
	close(w.quit)
	<-w.ended
}

// do runs apply in the next transaction and returns when it is durable. If ctx ends first the outcome is unknown to the
// caller; every verb may be repeated.
func (w *writer) do(ctx context.Context, apply func(b *batch) error) error {
	return w.submit(ctx, w.queue, apply)
}

// between runs f when no transaction is under way: memory and file say the same. Once begun it is waited for, so that the
// caller can give back what f took.
func (w *writer) between(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return w.submit(context.WithoutCancel(ctx), w.pauses, func(*batch) error { return f() })
}

func (w *writer) submit(ctx context.Context, queue chan<- *operation, apply func(b *batch) error) error {
	op := &operation{apply: apply, ready: make(chan struct{})}
	select {
	case queue <- op:
	case <-ctx.Done():
		return ctx.Err()
	case <-w.quit:
		return ErrClosed
	}
	select {
	case <-op.ready:
		return op.err
	case <-ctx.Done():
		return ctx.Err()
	case <-w.ended:
		return w.late(op)
	}
}

// late returns the answer to an operation that the writer took, or not, just before it ended.
func (w *writer) late(op *operation) error {
	select {
	case <-op.ready:
		return op.err
	default:
		return ErrClosed
	}
}

func (w *writer) run() {
	defer close(w.ended)
	for {
		select {
		case op := <-w.queue:
			w.commit(w.gather(op))
		case op := <-w.pauses:
			op.err = op.apply(nil)
			close(op.ready)
		case <-w.quit:
			w.refuse()
			return
		}
	}
}

// refuse answers operations that were queued after stop.
func (w *writer) refuse() {
	for {
		select {
		case op := <-w.queue:
			op.err = ErrClosed
			close(op.ready)
		default:
			return
		}
	}
}

// gather takes what is queued. Yielding once lets the callers that the last transaction answered queue their next
// operation; without it the first of them would travel alone and half of the flushes would be spent on one operation.
func (w *writer) gather(first *operation) []*operation {
	ops := []*operation{first}
	runtime.Gosched()
	for len(ops) < maxBatch {
		select {
		case op := <-w.queue:
			ops = append(ops, op)
		default:
			return ops
		}
	}
	return ops
}

func (w *writer) commit(ops []*operation) {
	b := w.apply(ops)
	if b.empty() {
		answer(ops, nil)
		return
	}
	err := w.ledger.store.write(b, w.ledger.opts)
	if err != nil {
		w.ledger.mu.Lock()
		b.rollback(0)
		w.ledger.mu.Unlock()
	}
	answer(ops, err)
}

// apply lets every operation change the index; one that fails leaves no trace.
func (w *writer) apply(ops []*operation) *batch {
	l := w.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	b := &batch{ledger: l, now: l.tick()}
	for _, op := range ops {
		changes, events, undo := len(b.changes), len(b.events), len(b.undo)
		if op.err = op.apply(b); op.err != nil {
			b.rollback(undo)
			b.changes, b.events = b.changes[:changes], b.events[:events]
		}
	}
	if !b.empty() {
		b.forget()
	}
	return b
}

// forgetStep is how many released allocations one transaction forgets, along with what it is for.
const forgetStep = 16

// forget drops released allocations that need not be remembered any longer.
func (b *batch) forget() {
	for _, a := range b.ledger.book.forgettable(b.now, b.ledger.opts.Remember, forgetStep) {
		b.drop(a)
	}
}

// answer ends the operations. An operation that only confirmed what others of the batch did fails with them.
func answer(ops []*operation, err error) {
	for _, op := range ops {
		if op.err == nil {
			op.err = err
		}
		close(op.ready)
	}
}

func (b *batch) empty() bool {
	return len(b.changes) == 0 && len(b.events) == 0 && len(b.disputed) == 0
}

// rollback undoes everything after the first n steps, last step first.
func (b *batch) rollback(n int) {
	for _, undo := range slices.Backward(b.undo[n:]) {
		undo()
	}
	b.undo = b.undo[:n]
}

// put makes after the allocation of its address and notes why.
func (b *batch) put(after Allocation, action Action, cause Cause) {
	book := b.ledger.book
	before, had := book.get(after.Address)
	book.put(after)
	b.undo = append(b.undo, func() {
		if had {
			book.put(before)
		} else {
			book.remove(after.Address)
		}
	})
	b.changes = append(b.changes, change{after.Address, before, after})
	b.events = append(b.events, Event{
		Time: b.now, Action: action, Address: after.Address, Pool: after.Pool,
		Owner: after.Owner, Claim: after.Claim, Cause: cause,
	})
}

// drop forgets the released allocation of a.
func (b *batch) drop(a netip.Addr) {
	book := b.ledger.book
	before, _ := book.get(a)
	book.remove(a)
	b.undo = append(b.undo, func() { book.put(before) })
	b.changes = append(b.changes, change{address: a, before: before})
}

// advance moves the pool's cursor behind a.
func (b *batch) advance(h *home, a netip.Addr) {
	before, at := h.cursor, slot(FamilyOf(a))
	h.cursor[at] = numOf(a).next()
	b.undo = append(b.undo, func() { h.cursor = before; b.cursors[h.pool.Name] = before })
	if b.cursors == nil {
		b.cursors = map[string]cursor{}
	}
	b.cursors[h.pool.Name] = h.cursor
}
