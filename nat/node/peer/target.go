package peer

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"time"

	"floatip.io/floatip/nat/node/flows"
	"floatip.io/floatip/nat/node/netns"
)

// Target takes over the tracked connections of one machine.
type Target struct {
	Identity *Identity
	// NetNS is the node's network namespace, nil for that of the process.
	NetNS *os.File
	// Address and Key are those that the agent of the source has published.
	Address, Key string
	// Machine is the UID of the VirtualMachineInstance, Pod the name of the pod that it migrates into. A machine that goes to
	// and fro has been on the same two nodes a moment ago: only the pod tells one migration from another.
	Machine, Pod string
	// ArrivedAt returns when the guest arrived, as far as is known, once it has.
	ArrivedAt func() time.Time
	// Apply writes changes into the pod.
	Apply func(flows.Changes)
	// Give hands packets to the guest, each as package unread has it. nil: it gets none.
	Give func([][]byte)
	// Wait bounds each read and write. 0 stands for DefaultWait.
	Wait time.Duration
}

// Outcome is what is known after the arrival.
type Outcome struct {
	// Heard is when the source last heard the guest, by the clock of the target's node, the zero Time where it does not know.
	Heard time.Time
}

// Follow applies what the source tells, until the guest has arrived and the last of it was told. It fails when ctx is
// done, with ErrUnknownKey, ErrRefused, or an error of the network; what was applied by then stays.
func (t *Target) Follow(ctx context.Context, arrived <-chan struct{}) (Outcome, error) {
	l, err := t.dial(ctx)
	if err != nil {
		return Outcome{}, fmt.Errorf("agent at %s: %w", t.Address, err)
	}
	defer l.conn.Close()
	defer closeWith(ctx, l.conn)()
	if err := l.send(ask{Version: Version, Machine: t.Machine, Pod: t.Pod, Frames: t.Give != nil}); err != nil {
		return Outcome{}, fmt.Errorf("agent at %s: %w", t.Address, err)
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-arrived:
			_ = l.send(ask{Arrived: true, Ago: time.Since(t.ArrivedAt())}) // a connection that broke is found by the reader
		case <-done:
		}
	}()
	outcome, err := t.receive(l)
	if err != nil {
		return outcome, fmt.Errorf("agent at %s: %w", t.Address, err)
	}
	return outcome, nil
}

func (t *Target) receive(l *line) (Outcome, error) {
	var clocks skew
	for entries, frames := 0, 0; ; {
		var u update
		if err := l.receive(&u); err != nil {
			return Outcome{}, err
		}
		clocks.note(u.Sent, time.Now())
		if u.Refused != "" {
			return Outcome{}, fmt.Errorf("%w: %.200q", ErrRefused, u.Refused)
		}
		if entries += len(u.Put); entries > maxEntries {
			return Outcome{}, fmt.Errorf("it sends more than %d connections", maxEntries)
		}
		if frames += len(u.Frames); frames > maxFrames {
			return Outcome{}, fmt.Errorf("it sends more than %d packets", maxFrames)
		}
		if len(u.Put)+len(u.Remove) > 0 {
			t.Apply(u.Changes)
		}
		if len(u.Frames) > 0 && t.Give != nil {
			t.Give(u.Frames)
		}
		if u.Last {
			return t.outcome(u, clocks), nil
		}
	}
}

func (t *Target) outcome(last update, clocks skew) Outcome {
	switch {
	case clocks.known && !last.Heard.IsZero():
		return Outcome{Heard: clocks.here(last.Heard)}
	case last.Silence != nil:
		return Outcome{Heard: t.ArrivedAt().Add(-max(0, *last.Silence))}
	}
	return Outcome{}
}

func (t *Target) dial(ctx context.Context) (*line, error) {
	wait := cmp.Or(t.Wait, DefaultWait)
	dialer := net.Dialer{Timeout: wait}
	var plain net.Conn
	err := netns.Do(t.NetNS, func() (err error) {
		plain, err = dialer.DialContext(ctx, "tcp", t.Address)
		return err
	})
	if err != nil {
		return nil, err
	}
	conn := tls.Client(plain, t.Identity.config(func(key string) bool { return key == t.Key }))
	if err := plain.SetDeadline(time.Now().Add(wait)); err != nil {
		plain.Close()
		return nil, err
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		plain.Close()
		return nil, err
	}
	return newLine(conn, wait), nil
}
