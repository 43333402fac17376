package sidecar

import (
	"reflect"
	"sync"
	"time"

	"floatip.io/floatip/nat"
	"floatip.io/floatip/nat/handover"
)

// board holds the state for those who ask on the socket.
type board struct {
	config  nat.Config
	changed func() // called without lock after each change

	mu    sync.Mutex // guards state
	state handover.State

	counting sync.Mutex // guards kernel, which is for one goroutine at a time
	kernel   *nat.Kernel
}

// put replaces the state. Since and Repairs are kept by the board.
func (b *board) put(s handover.State) {
	b.mu.Lock()
	s.Since, s.Repairs = b.state.Since, b.state.Repairs
	same := reflect.DeepEqual(s, b.state)
	if !same {
		s.Since = time.Now().UTC()
		b.state = s
	}
	b.mu.Unlock()
	if !same && b.changed != nil {
		b.changed()
	}
}

func (b *board) repaired() {
	b.mu.Lock()
	b.state.Repairs++
	b.mu.Unlock()
	if b.changed != nil {
		b.changed()
	}
}

// read returns the state with counters of now.
func (b *board) read() handover.State {
	b.mu.Lock()
	s := b.state
	b.mu.Unlock()
	for _, c := range b.counters() {
		for _, bound := range s.Bindings {
			if bound.Floating == c.Floating {
				s.Counters = append(s.Counters, handover.Counter{
					Floating: c.Floating, In: handover.Figure(c.In), Out: handover.Figure(c.Out),
					Refused: handover.Figure(c.Refused), Guarded: handover.Figure(c.Guarded),
				})
			}
		}
	}
	return s
}

// counters is empty when the kernel refuses: the state says why.
func (b *board) counters() []nat.Counter {
	b.counting.Lock()
	defer b.counting.Unlock()
	if b.kernel == nil {
		kernel, err := nat.Open(b.config)
		if err != nil {
			return nil
		}
		b.kernel = kernel
	}
	counters, err := b.kernel.Counters()
	if err != nil {
		b.kernel.Close()
		b.kernel = nil
		return nil
	}
	return counters
}
