package node

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"floatip.io/floatip/nat/node/peer"
)

// asked notes when a round would have begun.
type asked chan time.Time

func (s asked) View() (View, bool) {
	s <- time.Now()
	return View{}, false
}

// All sleeps of these tests are of a bubble's clock (testing/synctest), which costs no time and is exact.

// TestStandBack: no round begins while the first packets of a guest that has come or gone are on their way, and none waits for
// longer.
func TestStandBack(t *testing.T) {
	const half = peer.StandBack / 2
	for _, tt := range []struct {
		name string
		turn func(came, gone *journey)
		want time.Duration // from the wake to the round
	}{
		{"nothing has moved", func(came, gone *journey) {}, 0},
		{"a guest has come", func(came, gone *journey) { came.arrive(time.Now()) }, peer.StandBack},
		{"its first frame was read late", func(came, gone *journey) { came.arrive(time.Now().Add(-half)) }, half},
		{"it came long ago", func(came, gone *journey) { came.arrive(time.Now().Add(-peer.StandBack)) }, 0},
		{"a guest has gone", func(came, gone *journey) { gone.leave() }, peer.StandBack},
		{"which two have told", func(came, gone *journey) {
			gone.leave()
			time.Sleep(half)
			gone.leave()
		}, half},
		{"a guest comes after one has gone", func(came, gone *journey) {
			gone.leave()
			time.Sleep(half)
			came.arrive(time.Now())
		}, peer.StandBack},
		{"one goes, and the other node was wrong", func(_, gone *journey) {
			gone.leave()
			time.Sleep(half)
			gone.arrive(time.Now())
		}, peer.StandBack},
		{"one that came goes on", func(came, gone *journey) {
			gone.arrive(time.Now().Add(-time.Hour))
			gone.leave()
		}, peer.StandBack},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rounds, came, gone := make(asked, 10), new(session), new(session)
				a := &Agent{source: rounds, wake: make(chan struct{}, 1), sessions: map[string]*session{"came": came, "gone": gone}}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- a.loop(ctx) }()
				<-rounds
				time.Sleep(time.Second)
				tt.turn(&came.journey, &gone.journey)
				woken := time.Now()
				a.Wake()
				if tt.want > 0 {
					time.Sleep(tt.want / 2)
					a.Wake() // changes nothing
				}
				if have := (<-rounds).Sub(woken); have != tt.want {
					t.Errorf("the round begins %s after the wake, want %s", have, tt.want)
				}
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestStandBackEnds: an agent that is ended while it stands back begins no round.
func TestStandBackEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rounds, gone := make(asked, 10), new(session)
		a := &Agent{source: rounds, wake: make(chan struct{}, 1), sessions: map[string]*session{"gone": gone}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.loop(ctx) }()
		<-rounds
		time.Sleep(time.Second)
		gone.journey.leave()
		a.Wake()
		synctest.Wait()
		cancel()
		if err := <-ended; err != nil || len(rounds) > 0 {
			t.Errorf("it ends with %v after %d more rounds", err, len(rounds))
		}
	})
}
