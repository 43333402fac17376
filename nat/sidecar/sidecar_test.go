package sidecar

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
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

const patience = 5 * time.Second

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

func TestRepairs(t *testing.T) {
	ns, k := lab.New(t, "pod"), newKubelet(t)
	p := description(binding("192.168.100.50"), binding("2001:db8:100::50"))
	k.describe(t, p)
	for name, script := range map[string]string{
		"rule deleted":   "flush chain ip nat floatip_guard",
		"rule inserted":  "insert rule ip nat floatip_firewall accept",
		"table flushed":  "flush table ip nat",
		"table deleted":  "delete table ip6 nat",
		"all deleted":    "flush ruleset",
		"set changed":    "add element ip nat floatip_cluster { 198.51.100.0/24 }",
		"chain replaced": "delete chain ip nat floatip_guard\n add chain ip nat floatip_guard { type filter hook postrouting priority 5; }",
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, Config{NATFile: k.path(), NetNS: file(t, ns)})
			before := r.awaitPhase(t, handover.PhaseInstalled)
			began := time.Now()
			ns.NFT(t, script)
			holds(t, kernel(t, ns), p)
			if took := time.Since(began); took > time.Second {
				t.Errorf("repaired after %s, want within a second", took)
			}
			r.await(t, "the repair is counted", func(s handover.State) bool { return s.Repairs > before.Repairs })
			r.stop()
		})
	}
}

// Against somebody who does not stop, the rules are put back ever more slowly, and the agent is told.
func TestContestIsReportedAndSlowedDown(t *testing.T) {
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
}

func TestMalformedDescriptionKeepsTheLastGoodOne(t *testing.T) {
	ns, k := lab.New(t, "pod"), newKubelet(t)
	p := description(binding("192.168.100.50"))
	k.describe(t, p)
	r := start(t, Config{NATFile: k.path(), NetNS: file(t, ns)})
	r.awaitPhase(t, handover.PhaseInstalled)
	for _, text := range []string{
		"{", `{"version":2}`, "", strings.Repeat(" ", maxDescription) + "{}",
		`{"version":1,"interface":"k6t-eth0","bindings":[{"floating":"10.0.2.9","fixed":"10.0.2.2","gateway":"10.0.2.1","guestNetwork":"10.0.2.0/24"}]}`,
	} {
		k.write(t, text)
		s := r.await(t, "the problem is reported", func(s handover.State) bool { return s.Problem != "" })
		if s.Phase != handover.PhaseInstalled || len(s.Bindings) != 1 || !strings.Contains(s.Problem, "kept") {
			t.Errorf("%.30q: state %+v", text, s)
		}
		holds(t, kernel(t, ns), p)
		k.describe(t, p)
		r.await(t, "the problem is gone", func(s handover.State) bool { return s.Problem == "" })
	}
	if n := r.log.lines("description refused"); n != 5 {
		t.Errorf("5 bad descriptions made %d log lines", n)
	}
}

// One refusal is one line in the log, however often it is tried again, and the state says what to do.
func TestRefusedByTheKernel(t *testing.T) {
	k := newKubelet(t)
	k.describe(t, description(binding("192.168.100.50")))
	var mu sync.Mutex
	tries := 0
	r := start(t, Config{NATFile: k.path(), Kernel: nat.Config{Dial: func(requests []netlink.Message) ([]netlink.Message, error) {
		mu.Lock()
		defer mu.Unlock()
		if len(requests) > 1 { // a transaction; lists are empty
			tries++
			return nil, unix.EPERM
		}
		return nil, io.EOF
	}}})
	s := r.awaitPhase(t, handover.PhaseFailed)
	if !strings.Contains(s.Problem, "NET_ADMIN") || len(s.Bindings) != 0 {
		t.Errorf("state: have %+v", s)
	}
	lab.Within(t, patience, "it is tried again", func() bool { mu.Lock(); defer mu.Unlock(); return tries >= 3 })
	if n := r.log.lines("refused"); n != 1 {
		t.Errorf("3 refusals made %d log lines, want 1", n)
	}
}

// world is one VM on a provider LAN whose rules the sidecar keeps.
func world(t *testing.T, bindings ...floatip.Binding) (*lab.Cloud, *lab.VM, *kubelet, *running) {
	t.Helper()
	c := lab.NewCloud(t)
	vm := c.AddVM(t, 1)
	vm.KubeVirt(t)
	vm.PlugLeg(t)
	vm.Guest.Echo(t, 2000)
	vm.Guest.Echo(t, 2001)
	c.Peer.Echo(t, 2000)
	c.Host.Echo(t, 2000)
	k := newKubelet(t)
	k.describe(t, description(bindings...))
	r := start(t, Config{NATFile: k.path(), NetNS: file(t, vm.Pod)})
	r.awaitPhase(t, handover.PhaseInstalled)
	return c, vm, k, r
}

func dial(t *testing.T, from *lab.Namespace, to string, port int) net.Conn {
	t.Helper()
	conn, err := from.Dial("tcp", to, port, 0, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if !lab.Alive(conn, patience) {
		t.Fatalf("no echo from %s:%d", to, port)
	}
	return conn
}

// silence is how long an answer that must not come is waited for: longer than TCP's first two retransmissions.
const silence = 700 * time.Millisecond

func TestLiveChange(t *testing.T) {
	v4, v6 := binding("192.168.100.51"), binding("2001:db8:100::51")
	listed := binding("192.168.100.51", floatip.Port{Protocol: "TCP", Number: 2000})
	ssh, err := floatip.ParseEntry("192.168.100.0/24 tcp/2000")
	if err != nil {
		t.Fatal(err)
	}
	narrow := &floatip.Firewall{Ingress: floatip.Admitted{Entries: []floatip.Entry{ssh}}}
	for name, tc := range map[string]struct {
		before, after          []floatip.Binding
		firewall               *floatip.Firewall // afterwards
		in, in2, in6, out, pod bool              // which connections live on
	}{
		"nothing":           {[]floatip.Binding{v4, v6}, []floatip.Binding{v4, v6}, nil, true, true, true, true, true},
		"address removed":   {[]floatip.Binding{v4, v6}, []floatip.Binding{v6}, nil, false, false, true, false, true},
		"all removed":       {[]floatip.Binding{v4, v6}, nil, nil, false, false, false, false, true},
		"address replaced":  {[]floatip.Binding{v4, v6}, []floatip.Binding{binding("192.168.100.59"), v6}, nil, false, false, true, false, true},
		"ports narrowed":    {[]floatip.Binding{v4, v6}, []floatip.Binding{listed, v6}, nil, true, false, true, true, true},
		"firewall narrowed": {[]floatip.Binding{v4, v6}, []floatip.Binding{v4, v6}, narrow, true, false, false, false, true},
		"all closed":        {[]floatip.Binding{v4, v6}, []floatip.Binding{v4, v6}, &floatip.Firewall{}, false, false, false, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			c, vm, k, _ := world(t, tc.before...)
			connections := map[string]struct {
				conn net.Conn
				live bool
			}{
				"in":                   {dial(t, c.Host, vm.Floating4, 2000), tc.in},
				"in to another port":   {dial(t, c.Host, vm.Floating4, 2001), tc.in2},
				"in by IPv6":           {dial(t, c.Host, vm.Floating6, 2000), tc.in6},
				"out":                  {dial(t, vm.Guest, lab.Host4, 2000), tc.out},
				"of the pod's address": {dial(t, vm.Guest, lab.Peer4, 2000), tc.pod},
			}
			after := description(tc.after...)
			after.Firewall = tc.firewall
			k.describe(t, after)
			holds(t, kernel(t, vm.Pod), after)
			for what, c := range connections {
				if c.live && !lab.Alive(c.conn, patience) {
					t.Errorf("connection %s broke", what)
				}
				if !c.live {
					lab.Within(t, patience, "connection "+what+" ends", func() bool { return !lab.Alive(c.conn, silence) })
				}
			}
		})
	}
}

// An address that comes while the VM runs: what the guest already has under the pod's address goes on, also a new call
// from outside is answered at once.
func TestAddressForARunningVM(t *testing.T) {
	c, vm, k, _ := world(t)
	kept := dial(t, vm.Guest, lab.Peer4, 2000)
	c.Outside.Echo(t, 2000)
	outside := dial(t, vm.Guest, lab.Outside4, 2000)
	k.describe(t, description(binding("192.168.100.51")))
	holds(t, kernel(t, vm.Pod), description(binding("192.168.100.51")))
	dial(t, c.Host, "192.168.100.51", 2000)
	if !lab.Alive(kept, patience) || !lab.Alive(outside, patience) {
		t.Error("a connection under the pod's address broke")
	}
}

// A migration target may know nothing of the connections that arrive with the guest. Addresses and ports are the same
// there, so they are taken up in the middle, whoever speaks first.
func TestConnectionsAreTakenUpInTheMiddle(t *testing.T) {
	c, vm, _, _ := world(t, binding("192.168.100.51", floatip.Port{Protocol: "TCP", Number: 2000}), binding("2001:db8:100::51"))
	connections := map[string]net.Conn{
		"in":          dial(t, c.Host, vm.Floating4, 2000),
		"in by IPv6":  dial(t, c.Host, vm.Floating6, 2000),
		"out":         dial(t, vm.Guest, lab.Host4, 2000),
		"out by IPv6": dial(t, vm.Guest, lab.Host6, 2000),
	}
	n, err := nat.ForgetFlows(nat.Config{NetNS: vm.Pod.FD()}, func(nat.Flow) bool { return true })
	if err != nil || n < len(connections) {
		t.Fatalf("forgot %d flows, want at least %d: %v", n, len(connections), err)
	}
	for what, conn := range connections {
		if !lab.Alive(conn, patience) {
			t.Errorf("connection %s broke", what)
		}
	}
}

// Events can be lost: the poll finds what they would have told.
func TestPollFindsDrift(t *testing.T) {
	ns, k := lab.New(t, "pod"), newKubelet(t)
	p := description(binding("192.168.100.50"))
	k.describe(t, p)
	config := Config{NATFile: k.path(), Poll: time.Minute, Kernel: nat.Config{NetNS: ns.FD()}}
	state := &board{config: config.Kernel}
	l := &loop{config: config, log: slog.New(slog.DiscardHandler), state: state}
	l.look(time.Now())
	ns.NFT(t, "flush ruleset")
	if wait := l.look(time.Now()); wait != config.Poll {
		t.Errorf("next look after %s, want %s", wait, config.Poll)
	}
	have, err := kernel(t, ns).Read()
	if err != nil {
		t.Fatal(err)
	}
	if d := nat.Desired(p).Diff(have); d != "" || state.read().Repairs != 1 {
		t.Errorf("after one look: %s, %d repairs", d, state.read().Repairs)
	}
}

func TestCountersSurviveARewrite(t *testing.T) {
	c, _, k, r := world(t, binding("192.168.100.51"))
	dial(t, c.Host, "192.168.100.51", 2000)
	first := r.await(t, "traffic is counted", func(s handover.State) bool {
		return len(s.Counters) == 1 && s.Counters[0].In.Packets > 0 && s.Counters[0].Out.Packets > 0
	})
	k.describe(t, description(binding("192.168.100.51", floatip.Port{Protocol: "TCP", Number: 2000})))
	r.await(t, "rules are rewritten", func(s handover.State) bool { return s.Since.After(first.Since) || r.log.lines("installed rules") == 2 })
	dial(t, c.Host, "192.168.100.51", 2000)
	s, err := r.state()
	if err != nil {
		t.Fatal(err)
	}
	if s.Counters[0].In.Packets <= first.Counters[0].In.Packets {
		t.Errorf("packets in: %d before the rewrite, %d after it and another call", first.Counters[0].In.Packets, s.Counters[0].In.Packets)
	}
}

func TestContestPace(t *testing.T) {
	var c contest
	now := time.Unix(0, 0)
	var waits []time.Duration
	for range 14 {
		w := c.wait(now)
		waits = append(waits, w)
		now = now.Add(w)
		if again := c.wait(now); again != 0 {
			t.Fatalf("after waiting %s: wait %s more", w, again)
		}
		c.repaired(now)
	}
	ms := time.Millisecond
	want := []time.Duration{0, 0, 0, 0, 0, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 10000 * ms, 10000 * ms}
	if diff := cmp.Diff(want, waits); diff != "" {
		t.Errorf("waits (-want +got):\n%s", diff)
	}
	if !c.contested(now) || c.contested(now.Add(repairWindow)) {
		t.Error("contested: want true now and false a window later")
	}
}

func FuzzReadDescription(f *testing.F) {
	text, err := description(binding("192.168.100.50"), binding("2001:db8:100::50")).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(text))
	f.Add([]byte(" \n"))
	path := filepath.Join(f.TempDir(), "nat.json")
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := readDescription(path)
		if err == nil && p.Validate() != nil {
			t.Errorf("accepted %q", raw)
		}
	})
}

// BenchmarkRepair is from "flush ruleset" to rules in place, both families. The agent is told when they stand.
func BenchmarkRepair(b *testing.B) {
	ns, k := lab.New(b, "pod"), newKubelet(b)
	k.describe(b, description(binding("192.168.100.50"), binding("2001:db8:100::50")))
	r := start(b, Config{NATFile: k.path(), NetNS: file(b, ns)})
	r.awaitPhase(b, handover.PhaseInstalled)
	r.stop()
	state := &board{config: nat.Config{NetNS: ns.FD()}}
	l := &loop{config: Config{NATFile: k.path(), Kernel: state.config}, log: slog.New(slog.DiscardHandler), state: state}
	changed := newSignal()
	if err := watchRules(b.Context(), state.config, changed, func() {}); err != nil {
		b.Fatal(err)
	}
	l.look(time.Now())
	conn := ns.Conn(b)
	for b.Loop() {
		b.StopTimer()
		l.contest = contest{} // this loop is not to be slowed down
		for len(changed) > 0 {
			<-changed
		}
		conn.FlushRuleset()
		b.StartTimer()
		if err := conn.Flush(); err != nil {
			b.Fatal(err)
		}
		<-changed
		l.look(time.Now())
	}
}
