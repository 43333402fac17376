package serving

import (
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// The rules of turns, on the clock of a bubble (testing/synctest), which moves only when everybody in it waits: no time goes by in
// these tests. A moment is a millisecond of that clock, patience a second.
const (
	moment = time.Millisecond
	half   = moment / 2
)

// pass lets so much time of the bubble's clock go by. Nobody sleeps: the clock is set forward when there is nothing else to do.
func pass(d time.Duration) { time.Sleep(d) }

// arrivals notes who is let in, in order, and when.
type arrivals struct {
	turns *turns
	start time.Time
	mu    sync.Mutex
	names []string
	after []time.Duration
}

func newArrivals() *arrivals {
	return &arrivals{turns: newTurns(moment, time.Second), start: time.Now()}
}

// come has a connection come now.
func (a *arrivals) come(name string) {
	go func() {
		a.turns.await()
		a.mu.Lock()
		defer a.mu.Unlock()
		a.names = append(a.names, name)
		a.after = append(a.after, time.Since(a.start))
	}()
	synctest.Wait()
}

// expect says who has been let in so far.
func (a *arrivals) expect(t *testing.T, names ...string) {
	t.Helper()
	synctest.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.Equal(a.names, names) {
		t.Errorf("after %s: let in %q (after %s), want %q", time.Since(a.start), a.names, a.after, names)
	}
}

// request answers one that takes so long.
func (a *arrivals) request(takes time.Duration) {
	hook := a.turns.answering(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { pass(takes) }))
	hook.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/hook", nil))
}

func TestTurns(t *testing.T) {
	for name, rule := range map[string]func(*testing.T, *arrivals){
		"one that comes alone does not wait": func(t *testing.T, a *arrivals) {
			a.come("a")
			a.expect(t, "a")
		},
		"one a moment": func(t *testing.T, a *arrivals) {
			a.come("a")
			pass(half)
			a.come("b")
			a.expect(t, "a")
			pass(moment)
			a.expect(t, "a", "b")
			pass(half)
			a.come("c") // half a moment after b
			a.expect(t, "a", "b")
			pass(moment)
			a.expect(t, "a", "b", "c")
		},
		"who comes later goes later": func(t *testing.T, a *arrivals) {
			a.turns.note()
			pass(moment - 1)
			a.come("a") // a moment has to pass before it is looked at again
			pass(half)
			a.come("b") // nothing has happened for a moment
			a.expect(t)
			pass(moment)
			a.expect(t, "a")
			pass(moment)
			a.expect(t, "a", "b")
		},
		"a request begins": func(t *testing.T, a *arrivals) {
			go a.request(time.Hour)
			synctest.Wait()
			pass(half)
			a.come("a")
			a.expect(t)
			pass(moment)
			a.expect(t, "a") // one that takes long holds up nobody
		},
		"a request ends": func(t *testing.T, a *arrivals) {
			a.request(time.Hour)
			pass(half)
			a.come("a")
			a.expect(t)
			pass(moment)
			a.expect(t, "a")
		},
		"a burst of requests, with an end to patience": func(t *testing.T, a *arrivals) {
			a.request(0)
			a.come("a")
			for range 2*time.Second/half - 2 {
				pass(half)
				a.request(0)
			}
			synctest.Wait()
			a.mu.Lock()
			defer a.mu.Unlock()
			if len(a.after) != 1 || a.after[0] != time.Second {
				t.Errorf("let in %q after %s, want one after a second", a.names, a.after)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newArrivals()
				rule(t, a)
				pass(2 * time.Hour) // whatever still waits
			})
		})
	}
}

// Who hangs up, or has had its turn, waits for nothing.
func TestTurnsAreForFirstBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := newTurns(moment, time.Second)
		line.note()
		start := time.Now()
		far, near := net.Pipe()
		far.Close()
		if n, err := (&turnConn{Conn: near, turns: line}).Read(make([]byte, 1)); n != 0 || err == nil || time.Since(start) > 0 {
			t.Errorf("read %d bytes (%v) after %s from who hung up, want none at once", n, err, time.Since(start))
		}
		far, near = net.Pipe()
		defer far.Close()
		go far.Write([]byte("two"))
		conn := &turnConn{Conn: near, turns: line}
		for i := range 2 {
			line.note()
			start := time.Now()
			if _, err := conn.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if waited := time.Since(start); (waited > 0) != (i == 0) {
				t.Errorf("byte %d waited %s", i, waited)
			}
		}
		go far.Close()
		near.Close()
	})
}
