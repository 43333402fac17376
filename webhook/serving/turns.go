package serving

import (
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// turns lets new connections wait while requests are answered. A handshake costs some ten times the processor time of a
// request. The API server keeps 25 idle connections for each hook and opens one for each further request of a burst, but
// gives the request to whichever connection is free first, the new one or an old one (net/http transport.go, getConn and
// tryPutIdleConn): where handshakes do not take the processor from answers, the old ones have answered all before a new
// one is of use.
//
// So a connection is let in when no request has begun or ended for a moment, one after the other. A request that takes
// long, as one that waits for a disk, holds up nobody.
type turns struct {
	pause    time.Duration // the moment, and the time between two that are let in
	patience time.Duration // after which a connection is let in anyway

	start time.Time
	last  atomic.Int64 // when a request began or ended, or a connection was let in: nanoseconds since start

	mu      sync.Mutex
	waiting []chan struct{} // closed one by one, oldest first
	armed   bool            // next will be called
}

// Measured with bursts of a hundred creates on two cores: patience is longer than one of them takes.
const (
	handshakePause    = time.Millisecond
	handshakePatience = 100 * time.Millisecond
)

func newTurns(pause, patience time.Duration) *turns {
	t := &turns{pause: pause, patience: patience, start: time.Now()}
	t.last.Store(-int64(pause))
	return t
}

func (t *turns) note() { t.last.Store(int64(time.Since(t.start))) }

func (t *turns) quiet() bool { return time.Since(t.start)-time.Duration(t.last.Load()) >= t.pause }

// answering returns hook, whose requests go before connections.
func (t *turns) answering(hook http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.note()
		defer t.note()
		hook.ServeHTTP(w, r)
	})
}

// await returns when a connection may go on.
func (t *turns) await() {
	turn := t.queue()
	if turn == nil {
		return
	}
	patience := time.NewTimer(t.patience)
	defer patience.Stop()
	select {
	case <-turn:
	case <-patience.C:
		t.leave(turn)
	}
}

// queue returns what will be closed when it is the caller's turn, nil if it is now.
func (t *turns) queue() chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == 0 && t.quiet() {
		t.note()
		return nil
	}
	turn := make(chan struct{})
	t.waiting = append(t.waiting, turn)
	t.arm()
	return turn
}

func (t *turns) leave(turn chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(t.waiting, turn); i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
	}
}

// arm has next called after a pause, if somebody waits. t.mu is held.
func (t *turns) arm() {
	if len(t.waiting) > 0 && !t.armed {
		t.armed = true
		time.AfterFunc(t.pause, t.next)
	}
}

// next lets in who waits longest, if it is quiet.
func (t *turns) next() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.armed = false
	if len(t.waiting) > 0 && t.quiet() {
		close(t.waiting[0])
		t.waiting = slices.Delete(t.waiting, 0, 1)
		t.note()
	}
	t.arm()
}

// turnListener accepts connections that wait for their turn.
type turnListener struct {
	net.Listener
	turns *turns
}

func (l turnListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &turnConn{Conn: c, turns: l.turns}, nil
}

// turnConn waits when the first bytes from the client are there: who sends nothing takes nobody's turn.
type turnConn struct {
	net.Conn
	turns *turns
	in    bool // let in; only one goroutine reads at a time
}

func (c *turnConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if !c.in && n > 0 {
		c.in = true
		c.turns.await()
	}
	return n, err
}
