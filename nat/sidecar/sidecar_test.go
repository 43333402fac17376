package sidecar

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"floatip.io/floatip"
	"floatip.io/floatip/nat"
	"floatip.io/floatip/nat/handover"
	"floatip.io/floatip/test/lab"
)

// patience bounds every wait of these tests.
const patience = time.Minute

// kubelet writes files as the kubelet does: a new directory, and then one rename of the link "..data".
type kubelet struct {
	dir string
	n   int
}

func newKubelet(t testing.TB) *kubelet {
	t.Helper()
	k := &kubelet{dir: t.TempDir()}
	if err := os.Symlink("..data/"+floatip.NATFile, k.path()); err != nil {
		t.Fatal(err)
	}
	return k
}

func (k *kubelet) path() string { return filepath.Join(k.dir, floatip.NATFile) }

func (k *kubelet) write(t testing.TB, text string) {
	t.Helper()
	k.n++
	version := fmt.Sprintf("..%d", k.n)
	link := filepath.Join(k.dir, "..data_tmp")
	for _, err := range []error{
		os.Mkdir(filepath.Join(k.dir, version), 0o755),
		os.WriteFile(filepath.Join(k.dir, version, floatip.NATFile), []byte(text), 0o644),
		os.Symlink(version, link),
		os.Rename(link, filepath.Join(k.dir, "..data")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (k *kubelet) describe(t testing.TB, p floatip.PodNAT) {
	t.Helper()
	text, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	k.write(t, text)
}

// journal is a log that a test can read while it is written.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) lines(containing string) (n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for line := range strings.Lines(j.buf.String()) {
		if strings.Contains(line, containing) {
			n++
		}
	}
	return n
}

// running is a sidecar under test.
type running struct {
	socket string
	log    *journal
	stop   func()
}

func start(t testing.TB, c Config) *running {
	t.Helper()
	dir, err := os.MkdirTemp("", "fip") // short enough for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &running{socket: filepath.Join(dir, floatip.SocketFile), log: &journal{}}
	c.Socket, c.Log = r.socket, slog.New(slog.NewTextHandler(r.log, nil))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, c) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

func (r *running) state() (handover.State, error) {
	_, s, err := handover.Status(context.Background(), r.socket)
	return s, err
}

// await waits for a state and returns it.
func (r *running) await(t testing.TB, what string, ok func(handover.State) bool) handover.State {
	t.Helper()
	var last handover.State
	lab.Within(t, patience, what, func() bool {
		s, err := r.state()
		last = s
		return err == nil && ok(s)
	})
	return last
}

func (r *running) awaitPhase(t testing.TB, phase handover.Phase) handover.State {
	t.Helper()
	return r.await(t, string(phase), func(s handover.State) bool { return s.Phase == phase })
}

func file(t testing.TB, ns *lab.Namespace) *os.File {
	t.Helper()
	f, err := os.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func kernel(t *testing.T, ns *lab.Namespace) *nat.Kernel {
	t.Helper()
	k, err := nat.Open(nat.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

// holds waits until the kernel holds exactly p.
func holds(t *testing.T, k *nat.Kernel, p floatip.PodNAT) {
	t.Helper()
	diff := ""
	defer func() {
		if t.Failed() {
			t.Log(diff)
		}
	}()
	lab.Within(t, patience, "the rules stand", func() bool {
		have, err := k.Read()
		if err != nil {
			t.Fatal(err)
		}
		diff = nat.Desired(p).Diff(have)
		return diff == ""
	})
}

func binding(floating string, ports ...floatip.Port) floatip.Binding {
	b := floatip.Binding{
		Floating: netip.MustParseAddr(floating), Fixed: netip.MustParseAddr(lab.Guest4),
		Gateway: netip.MustParseAddr(lab.Router4), GuestNetwork: netip.MustParsePrefix("10.0.2.0/24"), Ports: ports,
	}
	if b.Floating.Is6() {
		b.Fixed, b.Gateway = netip.MustParseAddr(lab.Guest6), netip.MustParseAddr(lab.Router6)
		b.GuestNetwork = netip.MustParsePrefix("fd10:0:2::/120")
	}
	return b
}

func description(bindings ...floatip.Binding) floatip.PodNAT {
	p := floatip.PodNAT{
		Version: floatip.PodNATVersion, Owner: floatip.Owner{Namespace: "shop", Name: "web", UID: "4711"},
		Interface: floatip.DefaultGuestInterface, Bindings: bindings,
	}
	for _, n := range append([]string{lab.Node4 + "/32"}, lab.Pods...) {
		p.ClusterNetworks = append(p.ClusterNetworks, netip.MustParsePrefix(n))
	}
	return p
}

func TestWaitsForItsDescription(t *testing.T) {
	t.Parallel()
	ns, k := lab.New(t, "pod"), newKubelet(t)
	r := start(t, Config{NATFile: k.path(), NetNS: file(t, ns)})
	r.awaitPhase(t, handover.PhaseWaiting)
	k.write(t, "") // the downward API writes an empty file while the annotation is absent
	p := description(binding("192.168.100.50"), binding("2001:db8:100::50"))
	k.describe(t, p)
	s := r.awaitPhase(t, handover.PhaseInstalled)
	holds(t, kernel(t, ns), p)
	if s.Owner != p.Owner || len(s.Bindings) != 2 || s.Problem != "" || s.Repairs != 0 {
		t.Errorf("state: have %+v", s)
	}
}

// The kernel may hold rules already, since the container was restarted: nothing is written, counters go on.
func TestRestartChangesNothing(t *testing.T) {
	t.Parallel()
	ns, k := lab.New(t, "pod"), newKubelet(t)
	p := description(binding("192.168.100.50"))
	k.describe(t, p)
	first := start(t, Config{NATFile: k.path(), NetNS: file(t, ns)})
	first.awaitPhase(t, handover.PhaseInstalled)
	first.stop()
	holds(t, kernel(t, ns), p) // the rules stay
	handles := ns.Run(t, "", "nft", "-a", "list", "ruleset")
	second := start(t, Config{NATFile: k.path(), NetNS: file(t, ns)})
	second.awaitPhase(t, handover.PhaseInstalled)
	if diff := cmp.Diff(handles, ns.Run(t, "", "nft", "-a", "list", "ruleset")); diff != "" {
		t.Errorf("rules after a restart (-before +after):\n%s", diff)
	}
}

const reordered = `flush chain ip nat floatip_postrouting
add rule ip nat floatip_postrouting oifname "fip0" ip saddr 10.0.2.2 snat to 192.168.100.50
add rule ip nat floatip_postrouting oifname "k6t-eth0" ct original ip daddr 192.168.100.50 ip saddr 10.0.2.2 snat to 192.168.100.50`

func TestRepairs(t *testing.T) {
	t.Parallel()
	ns, k := lab.New(t, "pod"), newKubelet(t)
	p := description(binding("192.168.100.50"), binding("2001:db8:100::50"))
	k.describe(t, p)
	for name, script := range map[string]string{
		"rules deleted":   "flush chain ip nat floatip_guard",
		"rules reordered": reordered,
		"rule inserted":   "insert rule ip nat floatip_arriving accept",
		"table flushed":   "flush table ip nat",
		"table deleted":   "delete table ip6 nat",
		"all deleted":     "flush ruleset",
		"set changed":     "add element ip nat floatip_cluster { 198.51.100.0/24 }",
		"chain deleted":   "delete chain ip6 nat floatip_postrouting",
		"chain replaced":  "delete chain ip nat floatip_guard\n add chain ip nat floatip_guard { type filter hook postrouting priority 5; }",
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, Config{NATFile: k.path(), NetNS: file(t, ns), Poll: time.Hour}) // events alone have to do
			before := r.awaitPhase(t, handover.PhaseInstalled)
			reader := kernel(t, ns)
			ns.NFT(t, script)
			holds(t, reader, p) // how soon is BenchmarkRepair's to say
			r.await(t, "the repair is counted", func(s handover.State) bool { return s.Repairs > before.Repairs })
			r.stop()
		})
	}
}

// Against somebody who does not stop, the rules are put back ever more slowly, and the agent is told.
func TestContestIsReportedAndSlowedDown(t *testing.T) {
	t.Parallel()
	ns, k := lab.New(t, "pod"), newKubelet(t)
	p := description(binding("192.168.100.50"))
	k.describe(t, p)
	r := start(t, Config{NATFile: k.path(), NetNS: file(t, ns)})
	r.awaitPhase(t, handover.PhaseInstalled)
	began := time.Now()
	for range 8 {
		holds(t, kernel(t, ns), p)
		ns.NFT(t, "flush ruleset")
	}
	// 5 repairs are free, the others wait 100, 200 ms.
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("8 rounds took %s, want at least 300 ms", took)
	}
	s := r.awaitPhase(t, handover.PhaseContested)
	if !strings.Contains(s.Problem, "keeps changing") {
		t.Errorf("problem: have %q", s.Problem)
	}
	k.describe(t, description(binding("192.168.100.51"))) // a new description does not wait
	holds(t, kernel(t, ns), description(binding("192.168.100.51")))
	r.awaitPhase(t, handover.PhaseInstalled) // nobody has contested that one
}

func TestMalformedDescriptionKeepsTheLastGoodOne(t *testing.T) {
	t.Parallel()
	ns, k := lab.New(t, "pod"), newKubelet(t)
	p := description(binding("192.168.100.50"))
	k.describe(t, p)
	r := start(t, Config{NATFile: k.path(), NetNS: file(t, ns)})
	r.awaitPhase(t, handover.PhaseInstalled)
	const gone = "gone"
	for _, text := range []string{
		gone, "{", `{"version":2}`, "", strings.Repeat(" ", maxDescription) + "{}",
		`{"version":1,"interface":"k6t-eth0","bindings":[{"floating":"10.0.2.9","fixed":"10.0.2.2","gateway":"10.0.2.1","guestNetwork":"10.0.2.0/24"}]}`,
	} {
		if text == gone {
			if err := os.Remove(filepath.Join(k.dir, "..data")); err != nil {
				t.Fatal(err)
			}
		} else {
			k.write(t, text)
		}
		s := r.await(t, "the problem is reported", func(s handover.State) bool { return s.Problem != "" })
		if s.Phase != handover.PhaseInstalled || len(s.Bindings) != 1 || !strings.Contains(s.Problem, "kept") {
			t.Errorf("%.30q: state %+v", text, s)
		}
		holds(t, kernel(t, ns), p)
		k.describe(t, p)
		r.await(t, "the problem is gone", func(s handover.State) bool { return s.Problem == "" })
	}
	if n := r.log.lines("description refused"); n != 6 {
		t.Errorf("6 bad descriptions made %d log lines", n)
	}
}

// One refusal is one line in the log, however often it is tried again, and the state says what to do.
func TestRefusedByTheKernel(t *testing.T) {
	t.Parallel()
	k := newKubelet(t)
	k.describe(t, description(binding("192.168.100.50")))
	for name, tc := range map[string]struct {
		errno   unix.Errno
		problem string
	}{
		"no capability": {unix.EPERM, "NET_ADMIN"},
		"no nat":        {unix.ENOENT, "nft_chain_nat"},
		"no memory":     {unix.ENOMEM, "cannot allocate memory"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var tries atomic.Int32
			r := start(t, Config{NATFile: k.path(), Kernel: nat.Config{Dial: func(requests []netlink.Message) ([]netlink.Message, error) {
				if len(requests) > 1 { // a transaction; lists are empty
					tries.Add(1)
					return nil, tc.errno
				}
				return nil, io.EOF
			}}})
			s := r.awaitPhase(t, handover.PhaseFailed)
			if !strings.Contains(s.Problem, tc.problem) || strings.Contains(s.Problem, "\n") || len(s.Bindings) != 0 {
				t.Errorf("state: have %+v, want one line with %q", s, tc.problem)
			}
			first := tries.Load()
			lab.Within(t, patience, "it is tried again", func() bool { return tries.Load() >= 3*first })
			if n := r.log.lines("refused"); n != 1 {
				t.Errorf("%d refusals made %d log lines, want 1", tries.Load(), n)
			}
		})
	}
}

// A kernel that refuses at first is no reason to give up.
func TestRecoversFromARefusal(t *testing.T) {
	t.Parallel()
	ns, k := lab.New(t, "pod"), newKubelet(t)
	p := description(binding("192.168.100.50"))
	k.describe(t, p)
	// A chain of ours, of another type and in use, is what Apply cannot replace.
	ns.NFT(t, `
add table ip nat
add chain ip nat floatip_guest
add chain ip nat theirs
add rule ip nat theirs jump floatip_guest
add set ip nat floatip_links { type ipv4_addr; }
add rule ip nat theirs ip saddr @floatip_links accept`)
	r := start(t, Config{NATFile: k.path(), NetNS: file(t, ns)})
	s := r.awaitPhase(t, handover.PhaseFailed)
	if !strings.Contains(s.Problem, "busy") {
		t.Errorf("problem: have %q", s.Problem)
	}
	ns.NFT(t, "flush chain ip nat theirs")
	if s := r.awaitPhase(t, handover.PhaseInstalled); s.Problem != "" {
		t.Errorf("problem after the recovery: %q", s.Problem)
	}
	holds(t, kernel(t, ns), p)
}
