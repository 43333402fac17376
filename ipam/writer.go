package ipam

import (
	"context"
	"runtime"
	"sync/atomic"
	"time"
)

// writer makes batches durable in one goroutine. A caller applies its operation to the index itself, as part of the open
// batch; the goroutine takes that batch, writes all of its changes in one transaction and then answers all who are in it.
// Meanwhile the next batch is applied: many writers share one flush, none waits for another's while it has work to do, and
// a lone one waits for nobody. If a transaction fails, the index is put back and all in it get the error, and before them
// those in the open batch, which may have built on it.
type writer struct {
	ledger  *Ledger
	pauses  chan *pause
	wake    chan struct{} // the open batch has an operation
	quit    chan struct{}
	ended   chan struct{}
	company int          // how many operations may come at once: those that were answered last, and what waits since
	coming  atomic.Bool  // the goroutine is about to lock the ledger, see giveWay
	started time.Time    // when the goroutine was
	busy    atomic.Int64 // when a transaction began or ended last, in nanoseconds since started; negative if none did
	waiting atomic.Int32 // operations in the open batch

	// Guarded by ledger.mu.
	open    *batch // nil or without operations: nobody waits
	size    int    // how many operations the last batch had
	stopped bool
}

// pause is something to be done between two transactions.
type pause struct {
	do   func() error
	err  error
	done chan struct{}
}

func startWriter(l *Ledger) *writer {
	w := &writer{
		ledger: l, pauses: make(chan *pause),
		wake: make(chan struct{}, 1), quit: make(chan struct{}), ended: make(chan struct{}), started: time.Now(),
	}
	w.busy.Store(int64(-l.opts.rest))
	go w.run()
	return w
}

// stop answers who waits and ends the goroutine.
func (w *writer) stop() {
	w.ledger.mu.Lock()
	w.stopped = true
	w.ledger.mu.Unlock()
	close(w.quit)
	<-w.ended
}

// do runs apply, with the ledger locked, and returns when what it did is durable. An apply that fails leaves no trace. If
// ctx ends first the outcome is unknown to the caller; every verb may be repeated.
func (w *writer) do(ctx context.Context, apply func(b *batch) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b, err := w.join(func(b *batch) (*batch, error) { return b, apply(b) })
	if err != nil {
		return err
	}
	return b.wait(ctx)
}

// wait returns when b is durable or has failed, or ctx has ended.
func (b *batch) wait(ctx context.Context) error {
	select {
	case <-b.answered:
		return b.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// join applies an operation to the open batch, also one that only confirms what is there: that may not be durable yet. apply
// returns the batch that its caller waits for, which is an earlier one if the open batch has nothing that would be missed.
func (w *writer) join(apply func(b *batch) (*batch, error)) (*batch, error) {
	l := w.ledger
	w.giveWay()
	l.mu.Lock()
	defer l.mu.Unlock()
	if w.stopped {
		return nil, ErrClosed
	}
	b := w.openBatch()
	b.now = l.tick()
	m := b.mark()
	awaited, err := apply(b)
	if err != nil {
		b.rollback(m)
		return nil, err
	}
	if awaited == b {
		w.enter(b, 0)
	} else {
		w.enter(b, l.opts.delay)
	}
	return awaited, nil
}

func (w *writer) openBatch() *batch {
	if w.open == nil {
		w.open = newBatch(w.ledger, w.size)
	}
	return w.open
}

// enter counts one more operation in b, the open batch, and sees to it that it is written within that time.
func (w *writer) enter(b *batch, within time.Duration) {
	b.operations++
	w.waiting.Store(int32(b.operations))
	if within <= 0 {
		w.ring()
		return
	}
	if due := time.Now().Add(within); b.due.IsZero() || due.Before(b.due) {
		b.due = due
		time.AfterFunc(within, w.ring)
	}
}

// rest is how long the writer still rests before a transaction that nobody waits for.
func (w *writer) rest() time.Duration {
	return w.ledger.opts.rest - (time.Since(w.started) - time.Duration(w.busy.Load()))
}

// ring wakes the goroutine.
func (w *writer) ring() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// giveWay is for callers that are about to lock the ledger: the writer, for whom all of them wait, goes first. The mutex
// alone lets those pass who run already (sync.Mutex, normal mode); with 256 callers the writer stood there for a tenth of
// its time.
func (w *writer) giveWay() {
	if w.coming.Load() {
		runtime.Gosched()
	}
}

// between runs f with the ledger locked and no transaction under way: memory and file say the same. Once begun it is
// waited for, so that the caller can give back what f took.
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
			w.next()
		case p := <-w.pauses:
			p.err = w.settled(p.do)
			close(p.done)
		case <-w.quit:
			w.next()
			return
		}
	}
}

const (
	// patience is how long gather waits for one more operation.
	patience = 50 * time.Microsecond
	// enough operations have next to nothing to gain from more of them. Their callers prepare the next batch while this
	// one is written, instead of all waiting for the disk at the same time.
	enough = 128
)

// gather waits for the callers that the last transaction answered: they may come again together, instead of the first of
// them travelling alone and the others after it. It yields as long as it is not patience since the last one came; a lone
// caller has nobody to wait for.
func (w *writer) gather() {
	runtime.Gosched()
	company, latest := 0, time.Now()
	for {
		now := int(w.waiting.Load())
		if now >= min(w.company, enough) {
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

// take returns the open batch, nil if nobody waits, with the ledger locked.
func (w *writer) take() *batch {
	b := w.open
	w.open = nil
	w.waiting.Store(0)
	select {
	case <-w.wake:
	default:
	}
	if b == nil || b.operations == 0 {
		return nil
	}
	w.size = b.operations
	return b
}

// next makes the open batch durable.
func (w *writer) next() {
	l := w.ledger
	w.coming.Store(true)
	l.mu.Lock()
	w.coming.Store(false)
	b := w.take()
	b.close()
	l.mu.Unlock()
	if err := w.write(b); err != nil {
		l.mu.Lock()
		later := w.take() // it was applied after b, perhaps because of b
		later.fail(err)
		b.fail(err)
		l.mu.Unlock()
		w.answer(later)
	}
	w.answer(b)
}

// settled makes the open batch durable while nobody can begin another one, then runs f.
func (w *writer) settled(f func() error) error {
	l := w.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	b := w.take()
	b.close()
	if err := w.write(b); err != nil {
		b.fail(err)
	}
	defer w.answer(b)
	return f()
}

func (w *writer) write(b *batch) error {
	if b == nil || b.empty() && b.promises == nil {
		return nil
	}
	w.busy.Store(int64(time.Since(w.started)))
	defer func() { w.busy.Store(int64(time.Since(w.started))) }()
	return w.ledger.store.write(b, w.ledger.opts)
}

func (w *writer) answer(b *batch) {
	if b == nil {
		return
	}
	w.company = b.operations + int(w.waiting.Load())
	close(b.answered)
}
