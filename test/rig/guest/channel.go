package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"floatip.io/floatip/test/rig/guest/wire"
)

var (
	// ErrClosed is returned by Run when the machine ended or Close was called.
	ErrClosed = errors.New("control channel is closed")
	// ErrStatus is wrapped by Run's error when the command ran and exited with another status than 0.
	ErrStatus = errors.New("command failed in the guest")
)

// redialEvery is how often Connect looks whether the machine has made its socket.
const redialEvery = 50 * time.Millisecond

// Channel runs commands in one guest. Its methods may be called at the same time.
type Channel struct {
	conn  net.Conn
	write sync.Mutex // guards whole lines written to conn

	mu      sync.Mutex // guards the fields below
	last    int
	waiting map[string]chan wire.Reply
	closed  bool
}

// Connect waits until the socket at path accepts a connection, or ctx is done. That says nothing of the guest: it may
// still be booting, and the first Run waits for it. A machine serves one channel at a time.
func Connect(ctx context.Context, path string) (*Channel, error) {
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			return open(conn)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to the guest at %s: %w: %w", path, context.Cause(ctx), err)
		case <-time.After(redialEvery):
		}
	}
}

// open ends, with a newline, what an earlier client may have left unfinished in the guest.
func open(conn net.Conn) (*Channel, error) {
	if _, err := conn.Write([]byte("\n")); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to the guest: %w", err), conn.Close())
	}
	// Numbers go on from the clock, so that a late reply to an earlier client is not taken for ours.
	c := &Channel{conn: conn, last: int(time.Now().UnixNano()), waiting: map[string]chan wire.Reply{}}
	go c.receive()
	return c, nil
}

// Run executes command in the guest's shell and returns what it wrote, stdout and stderr together, at most
// wire.MaxOutput bytes. The error wraps ErrStatus if the command ran and failed, ErrClosed if the machine ended first,
// and is ctx's if that is done before; the command itself then goes on in the guest.
func (c *Channel) Run(ctx context.Context, command string) (string, error) {
	id, reply, err := c.expect()
	if err != nil {
		return "", fmt.Errorf("run %q: %w", command, err)
	}
	defer c.forget(id)
	if err := c.send(wire.Request{ID: id, Command: command}); err != nil {
		return "", fmt.Errorf("run %q: %w", command, err)
	}
	select {
	case r, ok := <-reply:
		if !ok {
			return "", fmt.Errorf("run %q: %w", command, ErrClosed)
		}
		if r.Status != 0 {
			return r.Output, fmt.Errorf("run %q: %w with status %d: %s", command, ErrStatus, r.Status, r.Output)
		}
		return r.Output, nil
	case <-ctx.Done():
		return "", fmt.Errorf("run %q: no answer of the guest: %w", command, context.Cause(ctx))
	}
}

// Close ends the channel; calls of Run return ErrClosed.
func (c *Channel) Close() error { return c.conn.Close() }

func (c *Channel) send(request wire.Request) error {
	line, err := json.Marshal(request)
	if err != nil {
		return err
	}
	c.write.Lock()
	defer c.write.Unlock()
	_, err = c.conn.Write(append(line, '\n'))
	return err
}

// receive hands replies to those who wait for them, until the connection ends.
func (c *Channel) receive() {
	defer c.end()
	lines := bufio.NewReader(c.conn)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			if !errors.Is(err, io.EOF) {
				_ = c.conn.Close()
			}
			return
		}
		var reply wire.Reply
		if json.Unmarshal(line, &reply) != nil {
			continue // the tail of a reply to an earlier client
		}
		c.mu.Lock()
		if waiter, ok := c.waiting[reply.ID]; ok {
			waiter <- reply // has room for one
			delete(c.waiting, reply.ID)
		}
		c.mu.Unlock()
	}
}

func (c *Channel) expect() (string, <-chan wire.Reply, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return "", nil, ErrClosed
	}
	c.last++
	id, reply := strconv.Itoa(c.last), make(chan wire.Reply, 1)
	c.waiting[id] = reply
	return id, reply, nil
}

func (c *Channel) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

func (c *Channel) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for id, waiter := range c.waiting {
		close(waiter)
		delete(c.waiting, id)
	}
}
