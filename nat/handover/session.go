package handover

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Session is the agent's end of a connection to one sidecar.
type Session struct {
	path  string
	rules rules
	conn  *net.UnixConn
	netns *os.File
	pod   Pod
	first State

	updates chan State
	done    chan struct{} // closed by Close
	close   sync.Once

	mu  sync.Mutex // guards err
	err error      // why updates was closed
}

// rules are what a session demands of the other end.
type rules struct {
	check func(fd int) error // of the descriptor
	hello time.Duration      // longest wait for the complete hello
	stall time.Duration      // longest wait for each later state
}

// Dial connects to the socket at path, takes the network namespace and the first state, and goes on receiving. It
// fails with ErrNotSocket, ErrNoNamespace, ErrOwnNamespace, ErrVersion, ErrMalformed or an error of the system, and
// never takes longer than about ten seconds, whatever the other end does.
func Dial(ctx context.Context, path string) (*Session, error) {
	ctx, cancel := context.WithTimeout(ctx, ioTimeout)
	defer cancel()
	conn, err := connect(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("sidecar %s: %w", path, err)
	}
	s, err := newSession(ctx, conn, rules{check: checkForeign, hello: ioTimeout, stall: stallAfter})
	if err != nil {
		return nil, fmt.Errorf("sidecar %s: %w", path, err)
	}
	s.path = path
	return s, nil
}

// Status asks the sidecar at path for its state and leaves again. Other than Dial it may be called inside the pod.
// Its errors are those of Dial.
func Status(ctx context.Context, path string) (Pod, State, error) {
	ctx, cancel := context.WithTimeout(ctx, ioTimeout)
	defer cancel()
	conn, err := connect(ctx, path)
	if err != nil {
		return Pod{}, State{}, fmt.Errorf("sidecar %s: %w", path, err)
	}
	s, err := newSession(ctx, conn, rules{check: checkNamespace, hello: ioTimeout, stall: stallAfter})
	if err != nil {
		return Pod{}, State{}, fmt.Errorf("sidecar %s: %w", path, err)
	}
	defer s.Close()
	return s.pod, s.first, nil
}

// connect goes through a descriptor of the socket's inode: a path below the kubelet's directory is longer than the 108
// bytes of sockaddr_un (unix(7)), and the sidecar, who owns the directory, cannot lead the agent elsewhere by a symbolic
// link.
func connect(ctx context.Context, path string) (*net.UnixConn, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, ErrNotSocket
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// newSession is Dial on a connection that exists. It closes conn if it fails.
func newSession(ctx context.Context, conn *net.UnixConn, r rules) (*Session, error) {
	s := &Session{conn: conn, rules: r, updates: make(chan State), done: make(chan struct{})}
	if err := conn.SetReadDeadline(time.Now().Add(r.hello)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	lines, err := s.receiveHello()
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		stop()
		conn.Close()
		if s.netns != nil {
			s.netns.Close()
		}
		return nil, err
	}
	go s.receive(lines)
	return s, nil
}

// NetNS returns the network namespace of the pod. It belongs to the session and is closed by Close.
func (s *Session) NetNS() *os.File { return s.netns }

// Pod returns what the sidecar calls its pod. Only the path of the socket proves which pod it is.
func (s *Session) Pod() Pod { return s.pod }

// State returns the state that came with the hello.
func (s *Session) State() State { return s.first }

// Updates passes on each later state. It is closed at the end of the session; Err then says why.
func (s *Session) Updates() <-chan State { return s.updates }

// Err returns why Updates was closed: ErrClosed, ErrStalled, ErrMalformed or an error of the system. It is nil before.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Next waits for the next state. It returns ctx's error, or that of Err when the session is over.
func (s *Session) Next(ctx context.Context) (State, error) {
	select {
	case state, ok := <-s.updates:
		if !ok {
			return State{}, s.Err()
		}
		return state, nil
	case <-ctx.Done():
		return State{}, ctx.Err()
	}
}

// Ask makes the sidecar send its state now, with fresh counters. The answer arrives as an update.
func (s *Session) Ask() error {
	line, err := json.Marshal(ask{Ask: askState})
	if err != nil {
		return err
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(ioTimeout)); err != nil {
		return err
	}
	if _, err := s.conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("sidecar %s: ask for the state: %w", s.path, err)
	}
	return nil
}

// Close ends the session and closes the namespace. It may be called several times.
func (s *Session) Close() error {
	s.close.Do(func() {
		close(s.done)
		s.conn.Close()
		s.netns.Close()
	})
	return nil
}

// receiveHello fills in netns, pod and first. The returned reader holds whatever came after the hello.
func (s *Session) receiveHello() (*bufio.Reader, error) {
	start, err := s.receiveNamespace()
	if err != nil {
		return nil, err
	}
	lines := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(start), s.conn), usualLine)
	line, err := readLine(lines)
	if err != nil {
		return nil, fmt.Errorf("hello: %w", err)
	}
	var h hello
	if err := json.Unmarshal(line, &h); err != nil {
		return nil, fmt.Errorf("hello: %w: %w", ErrMalformed, err)
	}
	if h.Version != Version {
		return nil, fmt.Errorf("hello: %w: want %d, have %d", ErrVersion, Version, h.Version)
	}
	if err := h.State.check(); err != nil {
		return nil, fmt.Errorf("hello: %w", err)
	}
	h.Pod.clean()
	s.pod, s.first = h.Pod, h.State
	return lines, nil
}

// receiveNamespace reads the first bytes and the descriptor that travels with them. Descriptors of later messages are
// dropped by the kernel, since nobody offers room for them (unix(7), SCM_RIGHTS).
func (s *Session) receiveNamespace() (start []byte, err error) {
	start = make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := s.conn.ReadMsgUnix(start, oob)
	if err != nil {
		return nil, fmt.Errorf("hello: %w", stalled(err))
	}
	s.netns, err = namespaceOf(oob[:oobn], s.rules.check)
	return start[:n], err
}

func namespaceOf(oob []byte, check func(fd int) error) (*os.File, error) {
	fds := descriptors(oob)
	if len(fds) != 1 {
		closeAll(fds)
		return nil, fmt.Errorf("%w: %d descriptors", ErrNoNamespace, len(fds))
	}
	if err := check(fds[0]); err != nil {
		closeAll(fds)
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "netns"), nil
}

func descriptors(oob []byte) (fds []int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		if rights, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, rights...)
		}
	}
	return fds
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// receive passes states on until the connection ends.
func (s *Session) receive(lines *bufio.Reader) {
	err := s.forward(lines)
	s.mu.Lock()
	s.err = err
	s.mu.Unlock()
	s.conn.Close()
	close(s.updates)
}

func (s *Session) forward(lines *bufio.Reader) error {
	pace := time.NewTimer(0)
	defer pace.Stop()
	for {
		select {
		case <-pace.C:
			pace.Reset(minInterval)
		case <-s.done:
			return ErrClosed
		}
		state, err := s.readState(lines)
		if err != nil {
			return err
		}
		select {
		case s.updates <- state:
		case <-s.done:
			return ErrClosed
		}
	}
}

func (s *Session) readState(lines *bufio.Reader) (State, error) {
	if err := s.conn.SetReadDeadline(time.Now().Add(s.rules.stall)); err != nil {
		return State{}, ErrClosed
	}
	line, err := readLine(lines)
	if err != nil {
		return State{}, err
	}
	var u update
	if err := json.Unmarshal(line, &u); err != nil {
		return State{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return u.State, u.State.check()
}

// usualLine is the size of the buffer that is kept for each pod of a node, in bytes. A longer line is put together for once.
const usualLine = 1 << 10

// readLine returns the next line, valid until the next read.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if !errors.Is(err, bufio.ErrBufferFull) {
		return line, stalled(err)
	}
	long := bytes.Clone(line)
	for errors.Is(err, bufio.ErrBufferFull) {
		if len(long) >= MaxLine {
			return nil, fmt.Errorf("%w: a line of more than %d bytes", ErrMalformed, MaxLine)
		}
		line, err = r.ReadSlice('\n')
		long = append(long, line...)
	}
	return long, stalled(err)
}

// stalled turns the errors of a silent and of a closed connection into the package's own.
func stalled(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrStalled
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		return ErrClosed
	}
	return err
}
