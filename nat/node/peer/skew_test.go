package peer

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"floatip.io/floatip/nat/node/flows"
)

// TestSkew: clocks that differ by an hour, and messages that take between a millisecond and a second.
func TestSkew(t *testing.T) {
	now := time.Unix(10_000, 0)
	for _, ahead := range []time.Duration{time.Hour, 0, -time.Hour} {
		var s skew
		s.note(time.Time{}, now) // of an agent that does not say when
		if s.known {
			t.Error("a message that does not say when it was sent tells of clocks")
		}
		for i, took := range []time.Duration{300 * time.Millisecond, time.Millisecond, time.Second} {
			sent := now.Add(time.Duration(i) * time.Second)
			s.note(sent, sent.Add(ahead+took))
		}
		if have := s.here(now).Sub(now); have != ahead+time.Millisecond {
			t.Errorf("clocks %s apart: %s, want it but for the millisecond that the fastest message took", ahead, have)
		}
	}
}

// relay passes connections on to address. What clients say is held back for a time once slow is set.
func relay(t *testing.T, address string, slow *atomic.Bool, held time.Duration) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		client, err := l.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", address)
		if err != nil {
			client.Close()
			return
		}
		go func() {
			defer client.Close()
			io.Copy(client, server)
		}()
		defer server.Close()
		for buf := make([]byte, 64<<10); ; {
			n, err := client.Read(buf)
			if err != nil {
				return
			}
			if slow.Load() {
				<-time.After(held) // what is tested is a word that comes late: this is the delay, nobody hopes that it is enough
			}
			if _, err := server.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	return l.Addr().String()
}

// TestLateWord: the word that the guest has arrived reaches the source late. The guest is not said to have been silent for as
// long.
func TestLateWord(t *testing.T) {
	const held, silent = 2 * time.Second, 100 * time.Millisecond
	own := identity(t)
	n := newNode(t, own.Fingerprint())
	n.set(entries(1))
	var slow atomic.Bool
	var at atomic.Pointer[time.Time]
	n.departure.Heard = func() (time.Time, bool) { return at.Load().Add(-silent), true }
	arrived := make(chan struct{})
	target := Target{
		Identity: own, Address: relay(t, n.address, &slow, held), Key: n.Identity.Fingerprint(), Machine: "m", Pod: "p",
		ArrivedAt: func() time.Time { return *at.Load() },
		Apply: func(flows.Changes) {
			if slow.CompareAndSwap(false, true) {
				now := time.Now()
				at.Store(&now)
				close(arrived)
			}
		},
	}
	o, err := target.Follow(t.Context(), arrived)
	if silence := at.Load().Sub(o.Heard); err != nil || silence > silent || silence < silent-held/2 {
		t.Errorf("have %s, %v; want a silence of %s or a little less, and not the %s that the word took", silence, err, silent, held)
	}
	if took := time.Since(*at.Load()); took < held {
		t.Errorf("the word took %s, want %s: the test shows nothing", took, held)
	}
}
