package webhook

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

// How long a controller stands back, on a clock that moves only when everybody waits.
func TestBurst(t *testing.T) {
	every := func(b *Burst, gap time.Duration, count int) {
		for i := range count {
			if i > 0 {
				time.Sleep(gap)
			}
			b.note()
		}
	}
	for name, tc := range map[string]struct {
		before func(*Burst) // what was asked before the controller comes
		after  func(*Burst) // and while it waits
		want   time.Duration
	}{
		"nobody asks": {want: 0},
		"one request": {before: func(b *Burst) { b.note() }, want: burstPause},
		"some time after one request": {
			before: func(b *Burst) { b.note(); time.Sleep(burstPause - 1) }, want: 1,
		},
		"long after one request": {before: func(b *Burst) { b.note(); time.Sleep(burstPause) }, want: 0},
		"more are asked meanwhile": {
			before: func(b *Burst) { b.note() },
			after:  func(b *Burst) { every(b, burstPause-1, 5) },
			want:   4*(burstPause-1) + burstPause,
		},
		"they never end": {
			before: func(b *Burst) { b.note() },
			after:  func(b *Burst) { every(b, burstPause/2, 100) },
			want:   burstPatience,
		},
		"it came late to those that never end": {
			before: func(b *Burst) { every(b, burstPause/2, 1+int(2*burstPatience/burstPause)) },
			after:  func(b *Burst) { every(b, burstPause/2, 100) },
			want:   0,
		},
		"the next burst": {
			before: func(b *Burst) { every(b, burstPause/2, 100); time.Sleep(burstPause); b.note() },
			after:  func(b *Burst) { every(b, burstPause/2, 100) },
			want:   burstPatience,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &Burst{}
				if tc.before != nil {
					tc.before(b)
				}
				start := time.Now()
				if tc.after != nil {
					go tc.after(b)
				}
				if err := b.Wait(t.Context()); err != nil || time.Since(start) != tc.want {
					t.Errorf("stood back for %s (%v), want %s", time.Since(start), err, tc.want)
				}
				time.Sleep(time.Hour) // what is still asked
			})
		})
	}
}

// A request counts from its begin to its end, and no other kind of request counts.
func TestBurstIsOfCreates(t *testing.T) {
	w := newWorld(t, testPool(t, "192.0.2.0/24"))
	w.hooks.Burst = &Burst{}
	mux := paths{http.NewServeMux()}
	w.hooks.Register(mux, w.gate)
	ask := func(path string) {
		mux.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, path, nil))
	}
	for path := range w.hooks.Handlers() {
		*w.hooks.Burst = Burst{}
		ask(path)
		if counts := !w.hooks.Burst.last.IsZero(); counts != (path == PathVMCreate || path == PathVMCommit) {
			t.Errorf("%s counts as a create: %t", path, counts)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		b := &Burst{}
		hook := b.during(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Minute) }))
		go hook.ServeHTTP(nil, nil)
		synctest.Wait()
		if b.left() != burstPause {
			t.Error("its begin does not count")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if b.left() != burstPause {
			t.Error("its end does not count")
		}
	})
}

func TestBurstEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Burst{}
		b.note()
		ctx, cancel := context.WithTimeout(t.Context(), burstPause/2)
		defer cancel()
		if err := b.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) || b.left() != burstPause/2 {
			t.Errorf("%v with %s left, want the context's end half-way", err, b.left())
		}
	})
}

type paths struct{ *http.ServeMux }

func (p paths) Register(path string, hook http.Handler) { p.Handle(path, hook) }
