package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"floatip.io/floatip/nat/node/flows"
)

// patience bounds every wait of these tests. A machine that is busy elsewhere may stand still for seconds, and TCP backs off.
const patience = time.Minute

// node is the agent of the source's node, with one guest that is about to leave.
type node struct {
	t       *testing.T
	address string
	*Source

	mu        sync.Mutex // guards what follows
	departure Departure
	entries   []flows.Entry
	arrived   int
	unread    [][]byte      // each is told once
	unheard   bool          // it has not heard of the departure
	asked     chan struct{} // has an element when it was asked meanwhile
	heard     chan struct{}
}

// hears lets it hear of the departure.
func (n *node) hears() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.unheard = false
	close(n.heard)
}

func newNode(t *testing.T, key string) *node {
	t.Helper()
	n := &node{t: t, asked: make(chan struct{}, 1), heard: make(chan struct{})}
	n.departure = Departure{
		Key: key,
		Flows: func() ([]flows.Entry, error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.entries, nil
		},
		Heard: func() (time.Time, bool) { return time.Now().Add(-time.Hour), true },
		Unread: func() (told [][]byte) {
			n.mu.Lock()
			defer n.mu.Unlock()
			told, n.unread = n.unread, nil
			return told
		},
		Arrived: func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.arrived++
		},
	}
	n.Source = &Source{
		Identity: identity(t), Log: slog.New(slog.DiscardHandler),
		Departure: func(machine, pod string) (Departure, Standing, <-chan struct{}) {
			n.mu.Lock()
			defer n.mu.Unlock()
			switch {
			case machine != "m" || pod != "p":
				return Departure{}, Refused, nil
			case n.unheard:
				select {
				case n.asked <- struct{}{}:
				default:
				}
				return Departure{}, Unheard, n.heard
			}
			return n.departure, Leaving, nil
		},
		Expected: func(key string) bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return key == n.departure.Key
		},
	}
	l, err := Listen(nil, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return n
}

func identity(t *testing.T) *Identity {
	t.Helper()
	i, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func (n *node) set(entries []flows.Entry) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.entries = entries
}

// entries makes so many different ones.
func entries(count int) (list []flows.Entry) {
	for i := range count {
		list = append(list, flows.Entry{Protocol: 17, Timeout: 100, Mark: 1, Original: flows.Tuple{
			Source:     netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}),
			SourcePort: uint16(i), Destination: netip.MustParseAddr("192.168.100.50"),
		}})
	}
	return list
}

// copied is what a target was told.
type copied struct {
	mu   sync.Mutex // guards all
	all  map[flows.Key]bool
	more chan struct{}
}

func (c *copied) apply(changes flows.Changes) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range changes.Put {
		c.all[e.Key()] = true
	}
	for _, k := range changes.Remove {
		delete(c.all, k)
	}
	select {
	case c.more <- struct{}{}:
	default:
	}
}

func (c *copied) await(t *testing.T, count int) {
	t.Helper()
	for timeout := time.After(patience); ; {
		c.mu.Lock()
		have := len(c.all)
		c.mu.Unlock()
		if have == count {
			return
		}
		select {
		case <-c.more:
		case <-timeout:
			t.Fatalf("have %d connections, want %d", have, count)
		}
	}
}

// TestFollow: all at first, then what changes, then the last of it at the arrival. A target that takes packets gets those that
// the guest has not read, as many messages as that takes.
func TestFollow(t *testing.T) {
	for _, takes := range []bool{false, true} {
		t.Run(fmt.Sprintf("the target takes packets: %t", takes), func(t *testing.T) { testFollow(t, takes) })
	}
}

func testFollow(t *testing.T, takes bool) {
	var unread [][]byte
	for i := range 40 {
		unread = append(unread, bytes.Repeat([]byte{byte(i)}, 64<<10))
	}
	own := identity(t)
	n := newNode(t, own.Fingerprint())
	n.set(entries(3*perLine + 1)) // more than one message
	n.unread = unread
	c := &copied{all: map[flows.Key]bool{}, more: make(chan struct{}, 1)}
	arrived, at := make(chan struct{}), time.Now()
	target := Target{
		Identity: own, Address: n.address, Key: n.Identity.Fingerprint(), Machine: "m", Pod: "p", Apply: c.apply,
		ArrivedAt: func() time.Time { return at },
	}
	var given [][]byte
	if takes {
		target.Give = func(frames [][]byte) { given = append(given, frames...) }
	}
	type result struct {
		Outcome
		err error
	}
	done := make(chan result, 1)
	go func() {
		o, err := target.Follow(t.Context(), arrived)
		done <- result{o, err}
	}()
	c.await(t, 3*perLine+1)
	n.set(entries(5))
	c.await(t, 5)
	n.set(entries(7))
	close(arrived)
	r := <-done
	if ago := at.Sub(r.Heard); r.err != nil || ago > time.Hour || ago < time.Hour-patience {
		t.Errorf("have %+v, want a little less than an hour ago", r)
	}
	c.await(t, 7)
	if n.arrived != 1 {
		t.Errorf("the source heard of %d arrivals, want 1", n.arrived)
	}
	if !takes {
		unread = nil
	}
	if !slices.EqualFunc(given, unread, bytes.Equal) {
		t.Errorf("the guest was given %d packets, want the %d that it has not read", len(given), len(unread))
	}
}

// TestLatePackets: what comes for the guest after it has arrived elsewhere is sent after it, until nothing is led to the old
// pod any more; also what came last.
func TestLatePackets(t *testing.T) {
	own := identity(t)
	n := newNode(t, own.Fingerprint())
	cleared := make(chan struct{})
	n.departure.Cleared = cleared
	arrived, given, done := make(chan struct{}), make(chan []byte, 10), make(chan error, 1)
	target := Target{
		Identity: own, Address: n.address, Key: n.Identity.Fingerprint(), Machine: "m", Pod: "p", ArrivedAt: time.Now,
		Apply: func(flows.Changes) {},
		Give: func(frames [][]byte) {
			for _, f := range frames {
				given <- f
			}
		},
	}
	go func() {
		_, err := target.Follow(t.Context(), arrived)
		done <- err
	}()
	close(arrived)
	for i := range byte(4) {
		n.mu.Lock()
		n.unread = [][]byte{{i}}
		if i == 3 {
			close(cleared)
		}
		n.mu.Unlock()
		select {
		case f := <-given:
			if !slices.Equal(f, []byte{i}) {
				t.Errorf("the guest was given the packet %v, want %d", f, i)
			}
		case err := <-done:
			t.Fatalf("the exchange ended with %v before the guest had packet %d", err, i)
		case <-time.After(patience):
			t.Fatalf("the guest does not get packet %d", i)
		}
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("the exchange does not end when nothing is led to the old pod any more")
	}
}

// TestStandBack: the source leaves its processor to what is on its way to the guest, and reads its connections after that.
func TestStandBack(t *testing.T) {
	own := identity(t)
	n := newNode(t, own.Fingerprint())
	var read time.Time
	flowsOf := n.departure.Flows
	n.departure.Flows = func() ([]flows.Entry, error) {
		read = time.Now()
		return flowsOf()
	}
	n.set(entries(1))
	c := &copied{all: map[flows.Key]bool{}, more: make(chan struct{}, 1)}
	arrived, done := make(chan struct{}), make(chan error, 1)
	var at time.Time
	target := Target{
		Identity: own, Address: n.address, Key: n.Identity.Fingerprint(), Machine: "m", Pod: "p", Apply: c.apply,
		ArrivedAt: func() time.Time { return at },
	}
	go func() {
		_, err := target.Follow(t.Context(), arrived)
		done <- err
	}()
	c.await(t, 1)
	n.set(entries(2))
	at = time.Now()
	close(arrived)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	c.await(t, 2)
	if since := read.Sub(at); since < StandBack {
		t.Errorf("the connections are read %s after the arrival, want at least %s", since, StandBack)
	}
}

// TestRefused: each side speaks with whom it expects only.
func TestRefused(t *testing.T) {
	own := identity(t)
	for _, tt := range []struct {
		name string
		bend func(*node, *Target)
		want error
	}{
		{"a target with another key", func(_ *node, o *Target) { o.Identity = identity(t) }, nil},
		{"a source with another key", func(_ *node, o *Target) { o.Key = identity(t).Fingerprint() }, ErrUnknownKey},
		{"another machine", func(_ *node, o *Target) { o.Machine = "other" }, ErrRefused},
		{"another pod of the machine", func(_ *node, o *Target) { o.Pod = "the one before" }, ErrRefused},
		{"a source that cannot read", func(n *node, _ *Target) {
			n.departure.Flows = func() ([]flows.Entry, error) { return nil, errors.New("no rights") }
		}, ErrRefused},
		{"too many connections", func(n *node, _ *Target) { n.entries = entries(maxEntries + 1) }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, own.Fingerprint())
			target := &Target{
				Identity: own, Address: n.address, Key: n.Identity.Fingerprint(), Machine: "m", Pod: "p", Apply: func(flows.Changes) {},
				ArrivedAt: time.Now,
			}
			tt.bend(n, target)
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience) // too many take seconds on a busy machine
			defer cancel()
			_, err := target.Follow(ctx, nil)
			if err == nil || ctx.Err() != nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("have %v, want %v", err, tt.want)
			}
		})
	}
}

// TestUnheard: the source hears of the migration after the target has asked, before the guest arrives there or after it. The
// target need not ask again.
func TestUnheard(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("the guest has arrived before: %t", late), func(t *testing.T) {
			own := identity(t)
			n := newNode(t, own.Fingerprint())
			n.set(entries(3))
			n.unread = [][]byte{{1}}
			n.unheard = true
			c := &copied{all: map[flows.Key]bool{}, more: make(chan struct{}, 1)}
			given := 0
			target := Target{
				Identity: own, Address: n.address, Key: n.Identity.Fingerprint(), Machine: "m", Pod: "p", Apply: c.apply,
				ArrivedAt: time.Now, Give: func(frames [][]byte) {
					c.await(t, 3) // packets are of connections that are known
					given += len(frames)
				},
			}
			arrived, done := make(chan struct{}), make(chan error, 1)
			if late {
				close(arrived)
			}
			go func() {
				_, err := target.Follow(t.Context(), arrived)
				done <- err
			}()
			select {
			case <-n.asked:
			case err := <-done:
				t.Fatalf("the source was not asked: %v", err)
			case <-time.After(patience):
				t.Fatal("the source was not asked")
			}
			n.hears()
			if !late {
				c.await(t, 3)
				close(arrived)
			}
			if err := <-done; err != nil || given != 1 || n.arrived != 1 || len(c.all) != 3 {
				t.Errorf("have %v, %d packets, %d arrivals, %d connections; want all of it", err, given, n.arrived, len(c.all))
			}
		})
	}
}

// TestMigrationEnds: while the target is told of changes the migration is given up.
func TestMigrationEnds(t *testing.T) {
	own := identity(t)
	n := newNode(t, own.Fingerprint())
	n.set(entries(1))
	target := &Target{
		Identity: own, Address: n.address, Key: n.Identity.Fingerprint(), Machine: "m", Pod: "p", ArrivedAt: time.Now,
		Apply: func(flows.Changes) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.departure.Key = "that of another node"
		},
	}
	if _, err := target.Follow(t.Context(), nil); !errors.Is(err, ErrRefused) {
		t.Errorf("have %v, want ErrRefused", err)
	}
}

// TestLongMessage: a peer that floods is cut off.
func TestLongMessage(t *testing.T) {
	own := identity(t)
	n := newNode(t, own.Fingerprint())
	target := &Target{Identity: own, Address: n.address, Key: n.Identity.Fingerprint()}
	l, err := target.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer l.conn.Close()
	if err := l.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	go fmt.Fprintf(l.conn, "%*s", 2*maxLine, " ")
	if _, err := io.Copy(io.Discard, l.conn); err != nil && errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the source goes on listening: %v", err)
	}
}
