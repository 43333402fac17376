package handover

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Listen makes the socket at path, readable by root alone. A socket that an earlier run of the sidecar left behind is
// replaced; anything else at path is an error.
func Listen(path string) (*net.UnixListener, error) {
	info, err := os.Lstat(path)
	switch {
	case err == nil && info.Mode().Type() != os.ModeSocket:
		return nil, fmt.Errorf("listen on %s: %w", path, ErrNotSocket)
	case err == nil:
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", path, err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// Server is the sidecar's end. Its fields are set before Serve.
type Server struct {
	// NetNS is the network namespace to hand over, for instance that of OwnNamespace.
	NetNS *os.File
	// Pod is sent along for people.
	Pod Pod
	// State returns the state of now, with counters. Several connections call it at the same time.
	State func() State

	mu      sync.Mutex // guards clients
	clients map[*client]struct{}
}

// client is one connection. Its writer sends the state whenever wake holds a token, so that a slow reader gets the
// newest state and never a queue of old ones.
type client struct {
	conn *net.UnixConn
	wake chan struct{} // capacity 1
}

// Serve answers connections until ctx is done, then closes l and all connections, and returns nil. It returns the error
// that made l unusable. Nothing uses NetNS any more when it returns.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	var serving sync.WaitGroup
	defer serving.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		c := s.admit(conn)
		if c == nil {
			conn.Close()
			continue
		}
		serving.Go(func() {
			defer s.dismiss(c)
			s.serve(ctx, c)
		})
	}
}

// Changed pushes the state to everyone who is connected. It does not wait for them.
func (s *Server) Changed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.clients {
		c.poke()
	}
}

func (c *client) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (s *Server) admit(conn *net.UnixConn) *client {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.clients) >= maxClients {
		return nil
	}
	if s.clients == nil {
		s.clients = map[*client]struct{}{}
	}
	c := &client{conn: conn, wake: make(chan struct{}, 1)}
	s.clients[c] = struct{}{}
	return c
}

func (s *Server) dismiss(c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.clients, c)
	c.conn.Close()
}

// serve sends hello and then one update per wake-up, until the peer leaves or stops reading.
func (s *Server) serve(ctx context.Context, c *client) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	context.AfterFunc(ctx, func() { c.conn.Close() }) // ends a write to a peer that does not read
	if err := s.greet(c); err != nil {
		return
	}
	go func() {
		defer cancel()
		c.listen()
	}()
	heartbeat := time.NewTicker(Heartbeat)
	defer heartbeat.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-heartbeat.C:
		}
		if err := c.send(update{State: s.State()}, nil); err != nil {
			return
		}
	}
}

func (s *Server) greet(c *client) error {
	return c.send(hello{Version: Version, Pod: s.Pod, State: s.State()}, unix.UnixRights(int(s.NetNS.Fd())))
}

// listen reads what the peer asks for. It returns when the peer is gone or talks nonsense.
func (c *client) listen() {
	lines := bufio.NewScanner(c.conn)
	lines.Buffer(nil, MaxLine)
	for lines.Scan() {
		var a ask
		if json.Unmarshal(lines.Bytes(), &a) != nil || a.Ask != askState {
			return
		}
		c.poke()
	}
}

func (c *client) send(message any, rights []byte) error {
	line, err := json.Marshal(message)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if err := c.conn.SetWriteDeadline(time.Now().Add(ioTimeout)); err != nil {
		return err
	}
	n, _, err := c.conn.WriteMsgUnix(line, rights, nil)
	if err != nil {
		return err
	}
	_, err = c.conn.Write(line[n:])
	return err
}
