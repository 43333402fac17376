package sidecar

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
	"floatip.io/floatip/nat"
	"floatip.io/floatip/nat/handover"
	"floatip.io/floatip/test/lab"
)

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
	t.Parallel()
	v4, v6 := binding("192.168.100.51"), binding("2001:db8:100::51")
	listed, other := binding("192.168.100.51", floatip.Port{Protocol: "TCP", Number: 2000}), binding("192.168.100.59")
	longer := binding("192.168.100.51", floatip.Port{Protocol: "TCP", Number: 2000}, floatip.Port{Protocol: "TCP", Number: 2001})
	ranges := func(first, last uint16) floatip.Binding {
		return binding("192.168.100.51", floatip.Port{Protocol: "TCP", Number: first, Last: last})
	}
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
		"IPv6 removed":      {[]floatip.Binding{v4, v6}, []floatip.Binding{v4}, nil, true, true, false, true, true},
		"IPv6 replaced":     {[]floatip.Binding{v4, v6}, []floatip.Binding{v4, binding("2001:db8:100::59")}, nil, true, true, false, true, true},
		"ports unlisted":    {[]floatip.Binding{longer, v6}, []floatip.Binding{v4, v6}, nil, true, true, true, true, true},
		"all removed":       {[]floatip.Binding{v4, v6}, nil, nil, false, false, false, false, true},
		"address replaced":  {[]floatip.Binding{v4, v6}, []floatip.Binding{other, v6}, nil, false, false, true, false, true},
		"ports narrowed":    {[]floatip.Binding{v4, v6}, []floatip.Binding{listed, v6}, nil, true, false, true, true, true},
		"range narrowed":    {[]floatip.Binding{ranges(1990, 2010), v6}, []floatip.Binding{ranges(1990, 2000), v6}, nil, true, false, true, true, true},
		"range moved":       {[]floatip.Binding{ranges(1990, 2010), v6}, []floatip.Binding{ranges(2001, 2020), v6}, nil, false, true, true, true, true},
		"range widened":     {[]floatip.Binding{longer, v6}, []floatip.Binding{ranges(1, 65535), v6}, nil, true, true, true, true, true},
		"range to port":     {[]floatip.Binding{ranges(1990, 2010), v6}, []floatip.Binding{listed, v6}, nil, true, false, true, true, true},
		"range unlisted":    {[]floatip.Binding{ranges(1990, 2010), v6}, []floatip.Binding{v4, v6}, nil, true, true, true, true, true},
		"firewall narrowed": {[]floatip.Binding{v4, v6}, []floatip.Binding{v4, v6}, narrow, true, false, false, false, true},
		"all closed":        {[]floatip.Binding{v4, v6}, []floatip.Binding{v4, v6}, &floatip.Firewall{}, false, false, false, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
	listed := binding("192.168.100.51", floatip.Port{Protocol: "TCP", Number: 2000})
	c, vm, _, _ := world(t, listed, binding("2001:db8:100::51"))
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
	t.Parallel()
	ns, k := lab.New(t, "pod"), newKubelet(t)
	p := description(binding("192.168.100.50"))
	k.describe(t, p)
	config := Config{NATFile: k.path(), Poll: time.Minute, Kernel: nat.Config{NetNS: ns.FD()}, Log: slog.New(slog.DiscardHandler)}
	state := &board{config: config.Kernel}
	l := newLoop(config, state)
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
	t.Parallel()
	c, _, k, r := world(t, binding("192.168.100.51"))
	dial(t, c.Host, "192.168.100.51", 2000)
	first := r.await(t, "traffic is counted", func(s handover.State) bool {
		return len(s.Counters) == 1 && s.Counters[0].In.Packets > 0 && s.Counters[0].Out.Packets > 0
	})
	k.describe(t, description(binding("192.168.100.51", floatip.Port{Protocol: "TCP", Number: 2000})))
	lab.Within(t, patience, "rules are rewritten", func() bool { return r.log.lines("installed rules") == 2 })
	dial(t, c.Host, "192.168.100.51", 2000)
	s, err := r.state()
	if err != nil {
		t.Fatal(err)
	}
	if s.Counters[0].In.Packets <= first.Counters[0].In.Packets {
		t.Errorf("packets in: %d before the rewrite, %d after it and another call",
			first.Counters[0].In.Packets, s.Counters[0].In.Packets)
	}
}

// The agent hears of each change without asking: a new description, a refused one, a repair.
func TestChangesArePushed(t *testing.T) {
	ns, k := lab.New(t, "pod"), newKubelet(t)
	r := start(t, Config{NATFile: k.path(), NetNS: file(t, ns), Poll: time.Hour})
	r.awaitPhase(t, handover.PhaseWaiting)
	session, err := handover.Dial(t.Context(), r.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	pushed := func(what string, is func(handover.State) bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), handover.Heartbeat/2) // which would tell it, too
		defer cancel()
		for s := session.State(); !is(s); {
			if s, err = session.Next(ctx); err != nil {
				t.Fatalf("%s is not pushed: %v", what, err)
			}
		}
	}
	k.describe(t, description(binding("192.168.100.50")))
	pushed("a description in force", func(s handover.State) bool { return len(s.Bindings) == 1 })
	k.write(t, "{")
	pushed("a refused description", func(s handover.State) bool { return s.Problem != "" })
	ns.NFT(t, "flush ruleset")
	pushed("a repair", func(s handover.State) bool { return s.Repairs == 1 })
}

// meddler is a log whose reader acts at once when the rules stand, before anybody watches for changes.
type meddler struct {
	slog.Handler
	act func()
}

func (m meddler) Enabled(context.Context, slog.Level) bool { return true }

func (m meddler) Handle(ctx context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "installed rules") {
		m.act()
	}
	return m.Handler.Handle(ctx, r)
}

// What changes between the first look and the watches is found, although no event tells it.
func TestChangesBeforeTheWatches(t *testing.T) {
	ns, k := lab.New(t, "pod"), newKubelet(t)
	before, after := description(binding("192.168.100.50")), description(binding("192.168.100.51"))
	k.describe(t, before)
	act := sync.OnceFunc(func() {
		ns.NFT(t, "flush ruleset")
		k.describe(t, after)
	})
	config := Config{NATFile: k.path(), Socket: filepath.Join(t.TempDir(), "s"), NetNS: file(t, ns), Poll: time.Hour,
		Log: slog.New(meddler{slog.DiscardHandler, act})}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, config) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	holds(t, kernel(t, ns), after)
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
	want := []time.Duration{
		0, 0, 0, 0, 0, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 10000 * ms, 10000 * ms,
	}
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

// limitRepair is how many ms a repair may take, from the flush to the rules in place.
const limitRepair = 5

// BenchmarkRepair is from "flush ruleset" to rules in place, both families. The agent is told when they stand.
func BenchmarkRepair(b *testing.B) {
	ns, k := lab.New(b, "pod"), newKubelet(b)
	k.describe(b, description(binding("192.168.100.50"), binding("2001:db8:100::50")))
	r := start(b, Config{NATFile: k.path(), NetNS: file(b, ns)})
	r.awaitPhase(b, handover.PhaseInstalled)
	r.stop()
	state := &board{config: nat.Config{NetNS: ns.FD()}}
	l := newLoop(Config{NATFile: k.path(), Kernel: state.config, Log: slog.New(slog.DiscardHandler)}, state)
	changed := newSignal()
	if err := watchRules(b.Context(), state.config, changed, func() {}); err != nil {
		b.Fatal(err)
	}
	l.look(time.Now())
	conn := ns.Conn(b)
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		l.contest = contest{} // this loop is not to be slowed down
		for len(changed) > 0 {
			<-changed
		}
		conn.FlushRuleset()
		b.StartTimer()
		began := time.Now()
		if err := conn.Flush(); err != nil {
			b.Fatal(err)
		}
		<-changed
		l.look(time.Now())
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	middle := float64(took[len(took)/2].Microseconds()) / 1000
	b.ReportMetric(middle, "ms-repair")
	b.Logf("flush to rules in place: %.1f ms, limit %d ms", middle, limitRepair)
}
