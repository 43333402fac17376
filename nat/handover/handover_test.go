package handover

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"floatip.io/floatip"
)

var addresses = cmpopts.EquateComparable(netip.Addr{})

func exampleState() State {
	floating := netip.MustParseAddr("192.168.100.50")
	return State{
		Phase:    PhaseInstalled,
		Owner:    floatip.Owner{Namespace: "shop", Name: "web", UID: "4711"},
		Bindings: []Binding{{Floating: floating, Fixed: netip.MustParseAddr("10.0.2.2")}},
		Since:    time.Unix(1700000000, 0).UTC(),
		Counters: []Counter{{Floating: floating, In: Figure{Packets: 3, Bytes: 180}}},
	}
}

// lenient accepts this process's own namespace, which is the only one that a test without privileges has.
func lenient() rules {
	return rules{check: checkNamespace, hello: 5 * time.Second, stall: 5 * time.Second}
}

func ownNamespace(t *testing.T) *os.File {
	t.Helper()
	ns, err := OwnNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// pair returns the two ends of a socketpair, the sidecar's first.
func pair(t *testing.T) (sidecar, agent *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := [2]*net.UnixConn{}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = conn.(*net.UnixConn)
		t.Cleanup(func() { conn.Close() })
	}
	return ends[0], ends[1]
}

// serve runs a server at a socket whose path is longer than sockaddr_un allows, as the kubelet's are.
func serve(t *testing.T, s *Server) (path string) {
	t.Helper()
	short, err := os.MkdirTemp("", "fip")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	l, err := Listen(filepath.Join(short, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if err := os.Symlink(short, long); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return filepath.Join(long, "agent.sock")
}

func TestStatusAnswersInsideThePod(t *testing.T) {
	path := serve(t, &Server{NetNS: ownNamespace(t), Pod: Pod{Name: "virt-launcher-web-x"}, State: exampleState})
	pod, state, err := Status(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(exampleState(), state, addresses); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	if pod.Name != "virt-launcher-web-x" {
		t.Errorf("pod: have %+v", pod)
	}
}

func TestDialRefusesItsOwnNamespace(t *testing.T) {
	path := serve(t, &Server{NetNS: ownNamespace(t), State: exampleState})
	if _, err := Dial(t.Context(), path); !errors.Is(err, ErrOwnNamespace) {
		t.Fatalf("want ErrOwnNamespace, have %v", err)
	}
}

func TestSessionGetsEveryNewestState(t *testing.T) {
	var repairs atomic.Uint64
	server := &Server{NetNS: ownNamespace(t), State: func() State {
		s := exampleState()
		s.Repairs = repairs.Load()
		return s
	}}
	path := serve(t, server)
	conn, err := connect(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSession(t.Context(), conn, lenient())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if diff := cmp.Diff(exampleState(), s.State(), addresses); diff != "" {
		t.Fatalf("first state (-want +got):\n%s", diff)
	}
	checkSameNamespace(t, s.NetNS())

	for want := uint64(1); want < 4; want++ {
		repairs.Store(want)
		server.Changed()
		state, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if state.Repairs != want {
			t.Errorf("repairs: want %d, have %d", want, state.Repairs)
		}
	}
	repairs.Store(9)
	if err := s.Ask(); err != nil {
		t.Fatal(err)
	}
	if state, err := s.Next(t.Context()); err != nil || state.Repairs != 9 {
		t.Errorf("answer to Ask: want 9 repairs, have %+v, %v", state, err)
	}
}

func checkSameNamespace(t *testing.T, f *os.File) {
	t.Helper()
	var have, want unix.Stat_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &have), unix.Stat("/proc/self/ns/net", &want)); err != nil {
		t.Fatal(err)
	}
	if have.Ino != want.Ino {
		t.Errorf("namespace: want inode %d, have %d", want.Ino, have.Ino)
	}
}

func TestNextEndsWithTheContextAndWithTheSidecar(t *testing.T) {
	sidecar, agent := pair(t)
	sendHello(t, sidecar, ownNamespace(t))
	s, err := newSession(t.Context(), agent, lenient())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Next with a cancelled context: have %v", err)
	}
	sidecar.Close()
	for range 2 {
		if _, err := s.Next(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("Next after the sidecar left: want ErrClosed, have %v", err)
		}
	}
}

// TestNextIsGivenUp: who waits for a sidecar that is silent can be called off, by the context and by Close.
func TestNextIsGivenUp(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(s *Session, cancel func())
		want error
	}{
		"context": {func(_ *Session, cancel func()) { cancel() }, context.Canceled},
		"close":   {func(s *Session, _ func()) { s.Close() }, ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			sidecar, agent := pair(t)
			sendHello(t, sidecar, ownNamespace(t))
			r := lenient()
			r.stall = time.Hour
			s, err := newSession(t.Context(), agent, r)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if _, err := sidecar.Write([]byte(mustJSON(t, update{State: exampleState()}))); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Next(ctx); err != nil {
				t.Fatal(err)
			}
			go tc.end(s, cancel)
			if _, err := s.Next(ctx); !errors.Is(err, tc.want) {
				t.Errorf("want %v, have %v", tc.want, err)
			}
		})
	}
}

func sendHello(t *testing.T, conn *net.UnixConn, ns *os.File) {
	t.Helper()
	c := &client{conn: conn}
	if err := c.send(hello{Version: Version, State: exampleState()}, unix.UnixRights(int(ns.Fd()))); err != nil {
		t.Fatal(err)
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw) + "\n"
}

// A sidecar that lies gets an error, in bounded time, and leaves no descriptor behind in the agent.
func TestLyingSidecar(t *testing.T) {
	ns := ownNamespace(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	good := mustJSON(t, hello{Version: Version, State: exampleState()})
	three := exampleState()
	three.Bindings = append(three.Bindings, three.Bindings[0], three.Bindings[0])
	for name, tc := range map[string]struct {
		files []*os.File
		text  string
		want  error
	}{
		"no descriptor":         {nil, good, ErrNoNamespace},
		"a file":                {[]*os.File{null}, good, ErrNoNamespace},
		"two namespaces":        {[]*os.File{ns, ns}, good, ErrNoNamespace},
		"a hundred descriptors": {many(ns, 100), good, ErrNoNamespace},
		"not JSON":              {[]*os.File{ns}, "hello\n", ErrMalformed},
		"another version":       {[]*os.File{ns}, `{"version":2}` + "\n", ErrVersion},
		"unknown phase":         {[]*os.File{ns}, `{"version":1,"state":{"phase":"Fine"}}` + "\n", ErrMalformed},
		"too many bindings":     {[]*os.File{ns}, mustJSON(t, hello{Version: Version, State: three}), ErrMalformed},
		"endless line":          {[]*os.File{ns}, strings.Repeat("x", 2*MaxLine), ErrMalformed},
		"silence in the line":   {[]*os.File{ns}, `{"version":1`, ErrStalled},
		"binding of nothing":    {[]*os.File{ns}, `{"version":1,"state":{"phase":"Installed","bindings":[{}]}}` + "\n", ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			sidecar, agent := pair(t)
			before := openDescriptors(t)
			var fds []int
			for _, f := range tc.files {
				fds = append(fds, int(f.Fd()))
			}
			go func() {
				n, _, err := sidecar.WriteMsgUnix([]byte(tc.text), unix.UnixRights(fds...), nil)
				if err == nil {
					sidecar.Write([]byte(tc.text[n:]))
				}
			}()
			r := lenient()
			r.hello = 200 * time.Millisecond
			if _, err := newSession(t.Context(), agent, r); !errors.Is(err, tc.want) {
				t.Fatalf("want %v, have %v", tc.want, err)
			}
			if after := openDescriptors(t); after > before {
				t.Errorf("open descriptors: %d before, %d after", before, after)
			}
		})
	}
}

func many(f *os.File, n int) (files []*os.File) {
	for range n {
		files = append(files, f)
	}
	return files
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestStalledAndTalkativeSidecars(t *testing.T) {
	for name, tc := range map[string]struct {
		after string
		want  error
	}{
		"silent":       {"", ErrStalled},
		"malformed":    {"{}\n", ErrMalformed},
		"half a state": {`{"state":`, ErrStalled},
		"endless":      {strings.Repeat("y", 2*MaxLine), ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			sidecar, agent := pair(t)
			sendHello(t, sidecar, ownNamespace(t))
			r := lenient()
			r.stall = 100 * time.Millisecond
			s, err := newSession(t.Context(), agent, r)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			go sidecar.Write([]byte(tc.after))
			if _, err := s.Next(t.Context()); !errors.Is(err, tc.want) {
				t.Errorf("want %v, have %v", tc.want, err)
			}
		})
	}
}

// A flood is passed on at the reader's pace and at most every minInterval, and Close ends it.
func TestFloodIsSlowedDown(t *testing.T) {
	sidecar, agent := pair(t)
	sendHello(t, sidecar, ownNamespace(t))
	s, err := newSession(t.Context(), agent, lenient())
	if err != nil {
		t.Fatal(err)
	}
	line := []byte(mustJSON(t, update{State: exampleState()}))
	flooded := make(chan struct{})
	go func() {
		defer close(flooded)
		for {
			if _, err := sidecar.Write(line); err != nil {
				return
			}
		}
	}()
	const n = 10
	start := time.Now()
	for range n {
		if _, err := s.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took < (n-2)*minInterval {
		t.Errorf("%d states in %v, want at least %v", n, took, (n-2)*minInterval)
	}
	s.Close()
	<-flooded
	if _, err := s.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Next after Close: want ErrClosed, have %v", err)
	}
}

func TestSocketThatIsNone(t *testing.T) {
	dir := t.TempDir()
	real := serve(t, &Server{NetNS: ownNamespace(t), State: exampleState})
	link, file := filepath.Join(dir, "link"), filepath.Join(dir, "file")
	if err := errors.Join(os.Symlink(real, link), os.WriteFile(file, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		path string
		want error
	}{
		"absent":                    {filepath.Join(dir, "absent"), os.ErrNotExist},
		"link to another socket":    {link, ErrNotSocket},
		"ordinary file":             {file, ErrNotSocket},
		"directory":                 {dir, ErrNotSocket},
		"socket that nobody serves": {abandoned(t), unix.ECONNREFUSED},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Dial(t.Context(), tc.path); !errors.Is(err, tc.want) {
				t.Errorf("want %v, have %v", tc.want, err)
			}
		})
	}
	if _, err := Listen(file); !errors.Is(err, ErrNotSocket) {
		t.Errorf("Listen at an ordinary file: want ErrNotSocket, have %v", err)
	}
}

// abandoned returns a socket file that a killed sidecar left behind.
func abandoned(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	return path
}

func TestListenReplacesAnAbandonedSocket(t *testing.T) {
	path := abandoned(t)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode: want 0600, have %v, %v", info.Mode(), err)
	}
}

// A client that connects and never reads, or one too many, does not keep the others from their updates.
func TestDeafClientsDoNotBlockOthers(t *testing.T) {
	server := &Server{NetNS: ownNamespace(t), State: exampleState}
	path := serve(t, server)
	for range maxClients - 1 {
		conn, err := connect(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	conn, err := connect(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSession(t.Context(), conn, lenient())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 3 {
		server.Changed()
		if _, err := s.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := Status(t.Context(), path); err == nil {
		t.Errorf("client %d was admitted", maxClients+1)
	}
}

func TestTextsAreCleaned(t *testing.T) {
	s := exampleState()
	s.Problem = "line one\nlevel=error \x1b[31mforged" + strings.Repeat("z", 2*maxText)
	if err := s.check(); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(s.Problem, "\n\x1b") || len(s.Problem) > maxText+16 {
		t.Errorf("problem is not cleaned: %d bytes, %.60q", len(s.Problem), s.Problem)
	}
}

func FuzzState(f *testing.F) {
	raw, err := json.Marshal(update{State: exampleState()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"state":{"phase":"Waiting","bindings":[{"floating":"fe80::1%eth0"}]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var u update
		if json.Unmarshal(raw, &u) != nil || u.State.check() != nil {
			return
		}
		for _, b := range u.State.Bindings {
			if !b.Floating.IsValid() || b.Floating.Zone() != "" {
				t.Errorf("accepted floating address %q", b.Floating)
			}
		}
		if strings.ContainsFunc(u.State.Problem, func(r rune) bool { return r < ' ' }) {
			t.Errorf("accepted text %q", u.State.Problem)
		}
	})
}
