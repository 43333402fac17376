package cluster

import (
	"context"
	"reflect"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"floatip.io/floatip/nat/node"
)

const (
	// fresh is how long an answer counts before it is asked for again.
	fresh = 5 * time.Second
	// lookupEvery is how often the list of questions is gone through while there are any.
	lookupEvery = 500 * time.Millisecond
)

type wantedMachine struct{ namespace, name string }

// lookups asks for single VirtualMachineInstances that no watch of this node covers. They are few: a watch of all of
// them on every node would cost the API server more.
type lookups struct {
	client rest.Interface
	wake   func()
	poke   chan struct{} // capacity 1

	mu      sync.Mutex // guards what follows
	wanted  map[string]wantedMachine
	results map[string]lookup
}

type lookup struct {
	machine node.Machine // the zero Machine: it does not exist
	at      time.Time
}

func newLookups(client rest.Interface, wake func()) *lookups {
	return &lookups{client: client, wake: wake, poke: make(chan struct{}, 1), results: map[string]lookup{}}
}

// answers returns what is known about the wanted machines by UID: nil where nothing is known yet, the zero Machine
// where it does not exist. It does not wait; wake is called when an answer changed.
func (l *lookups) answers(wanted map[string]wantedMachine) map[string]*node.Machine {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wanted = wanted
	out := make(map[string]*node.Machine, len(wanted))
	for uid := range wanted {
		if r, ok := l.results[uid]; ok {
			m := r.machine
			out[uid] = &m
		} else {
			out[uid] = nil
		}
	}
	for uid := range l.results {
		if _, ok := wanted[uid]; !ok {
			delete(l.results, uid)
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

func (l *lookups) forget(uid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.results, uid)
}

func (l *lookups) run(ctx context.Context) {
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
func (l *lookups) due(ctx context.Context) bool {
	l.mu.Lock()
	questions := map[string]wantedMachine{}
	for uid, w := range l.wanted {
		if r, ok := l.results[uid]; !ok || time.Since(r.at) > fresh {
			questions[uid] = w
		}
	}
	any := len(l.wanted) > 0
	l.mu.Unlock()
	for uid, w := range questions {
		l.ask(ctx, uid, w)
	}
	return any
}

func (l *lookups) ask(ctx context.Context, uid string, w wantedMachine) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var m machine
	err := l.client.Get().Namespace(w.namespace).Resource("virtualmachineinstances").Name(w.name).Do(ctx).Into(&m)
	found := node.Machine{}
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return // the API server is away; the last answer stays
	case string(m.UID) == uid:
		found = machineOf(&m)
	}
	l.mu.Lock()
	old, known := l.results[uid]
	l.results[uid] = lookup{found, time.Now()}
	l.mu.Unlock()
	if !known || !reflect.DeepEqual(old.machine, found) {
		l.wake()
	}
}
