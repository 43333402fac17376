package webhook

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// Burst lets work that nobody waits for stand back while VMs are being created, which somebody waits for: on the API server
// both would take turns. What a controller writes for a new VM, its FloatingIP and an event, is two to four requests, as
// many as the create itself makes there.
//
// The zero Burst holds up nobody.
type Burst struct {
	mu          sync.Mutex
	began, last time.Time // the first and the latest request of the burst that is going on, or was
}

// A burst is over when nothing was asked for so long: a hundred creates at once ask every 3 ms in the median and every 20 ms
// at p99 on two cores. It holds up nobody for longer than burstPatience: creates that never end must not keep the controllers
// from keeping pace with them.
const (
	burstPause    = 50 * time.Millisecond
	burstPatience = time.Second
)

// during returns hook, whose requests are part of a burst.
func (b *Burst) during(hook http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.note()
		defer b.note()
		hook.ServeHTTP(w, r)
	})
}

func (b *Burst) note() {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if now.Sub(b.last) >= burstPause {
		b.began = now
	}
	b.last = now
}

// left is how long to stand back at least.
func (b *Burst) left() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	return max(0, min(burstPause-now.Sub(b.last), burstPatience-now.Sub(b.began)))
}

// Wait returns when no burst is going on, or when one has held the caller up for long enough.
//
// Errors: that of ctx.
func (b *Burst) Wait(ctx context.Context) error {
	for left := b.left(); left > 0; left = b.left() {
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
	return nil
}
