package ipam

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// writer is the one goroutine that changes the file. It takes every operation that is queued, applies them one by one
// to the index, writes all of their changes in one transaction and then answers all of them: many writers share one
// flush, and a lone one waits for nobody. If the transaction fails, the index is put back and all get the error.
type writer struct {
	ledger  *Ledger
	pauses  chan *pause
	wake    chan struct{} // something is queued
	quit    chan struct{}
	ended   chan struct{}
	company int // how many operations the last transaction had

	mu      sync.Mutex // guards what follows
	queue   *queue
	stopped bool
}

// queue is the operations that share the next transaction. They are answered together.
type queue struct {
	operations []*operation
	answered   chan struct{}
}

// operation is one verb. apply runs with the ledger locked and either returns an error or tells the batch what changes.
type operation struct {
	apply func(b *batch) error
	err   error
}

// pause is something to be done between two transactions.
type pause struct {
	do   func() error
	err  error
	done chan struct{}
}

func startWriter(l *Ledger) *writer {
	w := &writer{
		ledger: l, queue: newQueue(), pauses: make(chan *pause),
		wake: make(chan struct{}, 1), quit: make(chan struct{}), ended: make(chan struct{}),
	}
	go w.run()
	return w
}

func newQueue() *queue { return &queue{answered: make(chan struct{})} }

// stop answers what is queued and ends the goroutine.
func (w *writer) stop() {
	w.mu.Lock()
	w.stopped = true
	w.mu.Unlock()
	close(w.quit)
	<-w.ended
}

// do runs apply in the next transaction and returns when it is durable. If ctx ends first the outcome is unknown to the
// caller; every verb may be repeated.
func (w *writer) do(ctx context.Context, apply func(b *batch) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	op := &operation{apply: apply}
	answered, ok := w.join(op)
	if !ok {
		return ErrClosed
	}
	select {
	case <-answered:
		return op.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// join queues op; false if the writer was stopped.
func (w *writer) join(op *operation) (answered <-chan struct{}, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return nil, false
	}
	if w.queue.operations = append(w.queue.operations, op); len(w.queue.operations) == 1 {
		w.wake <- struct{}{} // has room: the writer emptied it before it took what was queued
	}
	return w.queue.answered, true
}

// between runs f when no transaction is under way: memory and file say the same. Once begun it is waited for, so that the
// caller can give back what f took.
func (w *writer) between(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p := &pause{do: f, done: make(chan struct{})}
	select {
	case w.pauses <- p:
		<-p.done
		return p.err
	case <-w.ended:
		return ErrClosed
	}
}

func (w *writer) run() {
	defer close(w.ended)
	for {
		select {
		case <-w.wake:
			w.gather()
			w.commit(w.take())
		case p := <-w.pauses:
			p.err = p.do()
			close(p.done)
		case <-w.quit:
			w.commit(w.take())
			return
		}
	}
}

// gather waits for the callers that the last transaction answered: they may queue their next operation together, instead
// of the first of them travelling alone and the others after it. It yields as long as it is not patience since the last
// one came; a lone caller has nobody to wait for.
func (w *writer) gather() {
	runtime.Gosched()
	company, latest := 0, time.Now()
	for {
		w.mu.Lock()
		now := len(w.queue.operations)
		w.mu.Unlock()
		if now >= w.company {
			return
		}
		if now > company {
			company, latest = now, time.Now()
		} else if time.Since(latest) > patience {
			return
		}
		runtime.Gosched()
	}
}

const patience = 50 * time.Microsecond

// take returns what is queued.
func (w *writer) take() *queue {
	w.mu.Lock()
	defer w.mu.Unlock()
	q := w.queue
	w.queue = newQueue()
	return q
}

func (w *writer) answer(q *queue) {
	w.mu.Lock()
	w.company = len(q.operations) + len(w.queue.operations)
	w.mu.Unlock()
	close(q.answered)
}

// commit makes the operations durable and answers them. An operation that only confirmed what others of the batch did
// fails with them.
func (w *writer) commit(q *queue) {
	defer w.answer(q)
	b := w.apply(q.operations)
	if b.empty() {
		return
	}
	err := w.ledger.store.write(b, w.ledger.opts)
	if err == nil {
		return
	}
	w.ledger.mu.Lock()
	b.rollback(mark{})
	w.ledger.mu.Unlock()
	for _, op := range q.operations {
		if op.err == nil {
			op.err = err
		}
	}
}

// apply lets every operation change the index; one that fails leaves no trace.
func (w *writer) apply(ops []*operation) *batch {
	l := w.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	b := &batch{ledger: l, now: l.tick(), steps: make([]step, 0, len(ops))}
	for _, op := range ops {
		m := b.mark()
		if op.err = op.apply(b); op.err != nil {
			b.rollback(m)
		}
	}
	if !b.empty() {
		b.forget()
		b.end()
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
