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

// Session is the agent's end of a connection to one sidecar. It has no goroutine of its own: on a node with many pods their stacks
// would be most of what the agent keeps.
type Session struct {
	path  string
	rules rules
	conn  *net.UnixConn
	netns *os.File
	pod   Pod
	first State

	close sync.Once

	// Of Next alone.
	lines *bufio.Reader
	last  time.Time // of the latest state
	err   error     // why there is none after it
}

// rules are what a session demands of the other end.
type rules struct {
	check func(fd int) error // of the descriptor
	hello time.Duration      // longest wait for the complete hello
	stall time.Duration      // longest wait for each later state
}

// Dial connects to the socket at path and takes the network namespace and the first state; later ones wait for Next. It
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
	s := &Session{conn: conn, rules: r}
	if err := conn.SetReadDeadline(time.Now().Add(r.hello)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	err := s.receiveHello()
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
	return s, nil
}

// NetNS returns the network namespace of the pod. It belongs to the session and is closed by Close.
func (s *Session) NetNS() *os.File { return s.netns }

// Pod returns what the sidecar calls its pod. Only the path of the socket proves which pod it is.
func (s *Session) Pod() Pod { return s.pod }

// State returns the state that came with the hello.
func (s *Session) State() State { return s.first }

// Next waits for the next state, and for minInterval after the one before it. It fails with ctx's error, ErrClosed, ErrStalled,
// ErrMalformed or an error of the system; after it has waited in vain the session is over. One goroutine may call it.
func (s *Session) Next(ctx context.Context) (State, error) {
	if err := s.pace(ctx); err != nil {
		return State{}, err
	}
	if s.err != nil {
		return State{}, s.err
	}
	if err := s.conn.SetReadDeadline(time.Now().Add(s.rules.stall)); err != nil {
		return State{}, ErrClosed
	}
	stop := context.AfterFunc(ctx, func() { s.conn.SetReadDeadline(time.Unix(1, 0)) })
	state, err := s.readState()
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		s.err = err
		s.conn.Close()
		return State{}, err
	}
	s.last = time.Now()
	return state, nil
}

// pace waits until another state may be passed on.
func (s *Session) pace(ctx context.Context) error {
	pause := time.NewTimer(time.Until(s.last.Add(minInterval)))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
	}
	return ctx.Err()
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
		s.conn.Close()
		s.netns.Close()
	})
	return nil
}

// receiveHello fills in netns, pod, first, and lines with whatever came after the hello.
func (s *Session) receiveHello() error {
	start, err := s.receiveNamespace()
	if err != nil {
		return err
	}
	s.lines = bufio.NewReaderSize(io.MultiReader(bytes.NewReader(start), s.conn), usualLine)
	line, err := readLine(s.lines)
	if err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	var h hello
	if err := json.Unmarshal(line, &h); err != nil {
		return fmt.Errorf("hello: %w: %w", ErrMalformed, err)
	}
	if h.Version != Version {
		return fmt.Errorf("hello: %w: want %d, have %d", ErrVersion, Version, h.Version)
	}
	if err := h.State.check(); err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	h.Pod.clean()
	s.pod, s.first = h.Pod, h.State
	return nil
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

func (s *Session) readState() (State, error) {
	line, err := readLine(s.lines)
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
