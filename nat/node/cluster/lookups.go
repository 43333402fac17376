package cluster

import (
	"context"
	"reflect"
	"sync"
	"time"
)

const (
	// fresh is how long an answer counts before it is asked for again.
	fresh = 5 * time.Second
	// soon is the pause after an answer that is older than its question. It doubles each time.
	soon = 100 * time.Millisecond
	// retryAfter is the pause after a question that was not answered.
	retryAfter = 500 * time.Millisecond
)

// lookups asks for single objects that no watch of this node covers. They are few: a watch of all of them on every node
// would cost the API server more.
type lookups[Q comparable, A any] struct {
	// ask gets one object, or the zero A for one that does not exist.
	ask func(context.Context, Q) (A, error)
	// outdated reports whether an answer is older than what led to the question: it will be another one in a moment.
	outdated func(Q, A) bool
	wake     func()
	poke     chan struct{} // capacity 1

	mu      sync.Mutex // guards what follows
	wanted  map[Q]bool
	results map[Q]lookup[A]
}

type lookup[A any] struct {
	answer A // the latest one, if there was any
	known  bool
	asked  time.Time
	pause  time.Duration // until it is asked for again
}

func newLookups[Q comparable, A any](ask func(context.Context, Q) (A, error), outdated func(Q, A) bool, wake func()) *lookups[Q, A] {
	return &lookups[Q, A]{
		ask: ask, outdated: outdated, wake: wake, poke: make(chan struct{}, 1), results: map[Q]lookup[A]{},
	}
}

// answers returns what is known about the wanted objects: nil where nothing is known yet, the zero A where it does not
// exist. It does not wait; wake is called when an answer changed.
func (l *lookups[Q, A]) answers(wanted map[Q]bool) map[Q]*A {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wanted = wanted
	out := make(map[Q]*A, len(wanted))
	for q := range wanted {
		if r := l.results[q]; r.known {
			out[q] = &r.answer
		} else {
			out[q] = nil
		}
	}
	for q := range l.results {
		if !wanted[q] {
			delete(l.results, q)
		}
	}
	if len(wanted) > 0 {
		select {
		case l.poke <- struct{}{}:
		default:
		}
	}
	return out
}

// forget drops the answers to questions that match, so that they are asked anew.
func (l *lookups[Q, A]) forget(match func(Q) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for q := range l.results {
		if match(q) {
			delete(l.results, q)
		}
	}
}

func (l *lookups[Q, A]) run(ctx context.Context) {
	for {
		var again <-chan time.Time
		if pause, any := l.askDue(ctx); any {
			again = time.After(pause)
		}
		select {
		case <-ctx.Done():
			return
		case <-l.poke:
		case <-again:
		}
	}
}

// askDue asks for what is missing or old. It returns when the next one is due, and whether anything is wanted at all.
func (l *lookups[Q, A]) askDue(ctx context.Context) (pause time.Duration, any bool) {
	for _, q := range l.due() {
		l.askOne(ctx, q)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	pause = fresh
	for q := range l.wanted {
		r := l.results[q]
		pause = min(pause, r.pause-time.Since(r.asked))
	}
	return pause, len(l.wanted) > 0
}

func (l *lookups[Q, A]) due() (questions []Q) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for q := range l.wanted {
		if r := l.results[q]; time.Since(r.asked) >= r.pause {
			questions = append(questions, q)
		}
	}
	return questions
}

// askOne keeps the last answer when the API server is away.
func (l *lookups[Q, A]) askOne(ctx context.Context, q Q) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	found, err := l.ask(ctx, q)
	l.mu.Lock()
	old := l.results[q]
	now := lookup[A]{answer: found, known: true, asked: time.Now(), pause: fresh}
	switch {
	case err != nil:
		now.answer, now.known, now.pause = old.answer, old.known, retryAfter
	case l.outdated(q, found):
		now.pause = min(max(soon, 2*old.pause), fresh)
	}
	l.results[q] = now
	l.mu.Unlock()
	if now.known && (!old.known || !reflect.DeepEqual(old.answer, now.answer)) {
		l.wake()
	}
}
