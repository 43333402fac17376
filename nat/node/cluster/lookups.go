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
	// lookupEvery is how often the list of questions is gone through while there are any.
	lookupEvery = 500 * time.Millisecond
)

// lookups asks for single objects that no watch of this node covers. They are few: a watch of all of them on every node
// would cost the API server more.
type lookups[Q comparable, A any] struct {
	// ask gets one object, or the zero A for one that does not exist.
	ask  func(context.Context, Q) (A, error)
	wake func()
	poke chan struct{} // capacity 1

	mu      sync.Mutex // guards what follows
	wanted  map[Q]bool
	results map[Q]lookup[A]
}

type lookup[A any] struct {
	answer A
	at     time.Time
}

func newLookups[Q comparable, A any](ask func(context.Context, Q) (A, error), wake func()) *lookups[Q, A] {
	return &lookups[Q, A]{ask: ask, wake: wake, poke: make(chan struct{}, 1), results: map[Q]lookup[A]{}}
}

// answers returns what is known about the wanted objects: nil where nothing is known yet, the zero A where it does not
// exist. It does not wait; wake is called when an answer changed.
func (l *lookups[Q, A]) answers(wanted map[Q]bool) map[Q]*A {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wanted = wanted
	out := make(map[Q]*A, len(wanted))
	for q := range wanted {
		if r, ok := l.results[q]; ok {
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
		select {
		case <-ctx.Done():
			return
		case <-l.poke:
		}
		for l.due(ctx) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(lookupEvery):
			}
		}
	}
}

// due asks for what is missing or old, and reports whether anything is wanted at all.
func (l *lookups[Q, A]) due(ctx context.Context) bool {
	l.mu.Lock()
	var questions []Q
	for q := range l.wanted {
		if r, ok := l.results[q]; !ok || time.Since(r.at) > fresh {
			questions = append(questions, q)
		}
	}
	any := len(l.wanted) > 0
	l.mu.Unlock()
	for _, q := range questions {
		l.askOne(ctx, q)
	}
	return any
}

// askOne keeps the last answer when the API server is away.
func (l *lookups[Q, A]) askOne(ctx context.Context, q Q) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	found, err := l.ask(ctx, q)
	if err != nil {
		return
	}
	l.mu.Lock()
	old, known := l.results[q]
	l.results[q] = lookup[A]{found, time.Now()}
	l.mu.Unlock()
	if !known || !reflect.DeepEqual(old.answer, found) {
		l.wake()
	}
}
