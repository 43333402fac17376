package node

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/handover"
	"floatip.io/floatip/nat/node/announce"
	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/nat/node/nodetest"
)

// patience bounds every wait of these tests. A machine that is busy elsewhere may stand still for seconds, and TCP backs off.
const patience = time.Minute

// cluster is a View that tests change.
type cluster struct {
	mu       sync.Mutex // guards what follows
	view     View
	complete bool
	reports  chan Report // the latest one
}

func (c *cluster) View() (View, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view, c.complete
}

func (c *cluster) Report(r Report) {
	select {
	case <-c.reports:
	default:
	}
	c.reports <- r
}

// set gives the agent a copy: the test goes on writing to its own while the agent reads.
func (c *cluster) set(v View) {
	v.Pods = slices.Clone(v.Pods)
	v.Addresses, v.Pools, v.Machines = maps.Clone(v.Addresses), maps.Clone(v.Pools), maps.Clone(v.Machines)
	v.Unknown, v.Peers = maps.Clone(v.Unknown), maps.Clone(v.Peers)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.view, c.complete = v, true
}

// bench is a node with its agent, on a LAN.
type bench struct {
	t       testing.TB
	name    string
	number  string // the last byte of the node's addresses
	nic     string // the one to the LAN
	address string // for other agents
	world   *nodetest.World
	node    *nodetest.Node
	cluster *cluster
	kubelet string
	timing  announce.Timing
	view    View
	log     *testLog // of all agents

	delivery   floatip.Delivery // of the pool
	noFastPath bool
	stop       func() // the agent
	agent      *Agent
	last       *Report // the latest one that was looked at
}

func newBench(t testing.TB) *bench {
	t.Helper()
	return newBenchOn(t, nodetest.NewWorld(t), "10")
}

// newBenchOn makes the bench of one of several nodes on a LAN.
func newBenchOn(t testing.TB, w *nodetest.World, number string) *bench {
	t.Helper()
	b := &bench{
		t: t, name: "node" + number, number: number, nic: "red0", address: "201.0.0." + number + ":9448", world: w, node: w.AddNode(number),
		kubelet: t.TempDir(), cluster: &cluster{reports: make(chan Report, 1)}, timing: quick,
		log: &testLog{t: t},
	}
	b.view = View{
		Addresses: map[netip.Addr]Held{}, Machines: map[string]Machine{}, Peers: map[string]floatip.NodeAgent{},
		Pools: map[string]Pool{"lan": {
			Name: "lan", Networks: []netip.Prefix{netip.MustParsePrefix(nodetest.Pool)},
			Gateways: []netip.Addr{netip.MustParseAddr(nodetest.Gateway)}, Sample: []netip.Addr{fifty},
		}},
	}
	return b
}

// dualStack gives the pool IPv6 addresses too.
func (b *bench) dualStack() {
	p := b.view.Pools["lan"]
	p.Networks = append(p.Networks, netip.MustParsePrefix(nodetest.Pool6))
	p.Gateways = append(p.Gateways, netip.MustParseAddr(nodetest.Gateway6))
	p.Sample = append(p.Sample, fifty6)
	b.view.Pools["lan"] = p
}

// quick is for tests that do not look at the timing of probes, and have no other host with the address.
var quick = announce.Timing{
	Probes: 2, Every: 5 * time.Millisecond, Wait: 20 * time.Millisecond, Trial: time.Millisecond,
	Defend: 300 * time.Millisecond, Quiet: time.Second, Retry: 100 * time.Millisecond, RetryMost: 100 * time.Millisecond,
}

// start runs an agent until the test ends or stop is called.
func (b *bench) start() {
	b.t.Helper()
	b.last = nil
	a, err := NewAgent(Options{
		Name: b.name, KubeletDir: b.kubelet, NetNS: b.node.File, PeerAddress: b.address, Sysctls: leg.DefaultSysctls,
		Timing: b.timing, Patience: Patience{Answer: patience, Remembered: patience, Stale: patience}, NoFastPath: b.noFastPath,
		Log: slog.New(slog.NewTextHandler(b.log, nil)).With("node", b.name),
	}, b.cluster, b.cluster)
	if err != nil {
		b.t.Fatal(err)
	}
	b.agent = a
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("the agent ended: %v", err)
		}
		b.await("the agent's lock to be free", b.unlocked)
	})
	b.t.Cleanup(b.stop)
}

// unlocked reports whether the kernel has forgotten the socket of an agent that has ended. A program that another test
// starts at that moment has it for as long as it takes to begin.
func (b *bench) unlocked() bool {
	var sockets []byte
	b.node.Do(func() (err error) {
		sockets, err = os.ReadFile("/proc/thread-self/net/unix")
		return err
	})
	return !strings.Contains(string(sockets), lockName)
}

// testLog writes to the test's log, and remembers.
type testLog struct {
	t    testing.TB
	mu   sync.Mutex // guards said
	said strings.Builder
}

func (l *testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", p[:len(p)-1])
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.said.Write(p)
}

// count returns how often the words were said.
func (l *testLog) count(words string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.said.String(), words)
}

// publish gives the view to the agent.
func (b *bench) publish() {
	b.cluster.set(b.view)
	if b.agent != nil {
		b.agent.Wake()
	}
}

// vm is a pod with a guest, its sidecar, and the objects that entitle it to an address.
type vm struct {
	*nodetest.Pod
	entry   Pod
	sidecar *sidecar
}

// sidecar is the real server of package handover, with a state that the test sets.
type sidecar struct {
	server *handover.Server
	stop   func()     // its socket stays, as that of a killed one does
	mu     sync.Mutex // guards state
	state  handover.State
}

func (s *sidecar) set(state handover.State) {
	s.mu.Lock()
	s.state = state
	s.mu.Unlock()
	s.server.Changed()
}

func uidOf(number int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", number) }

// addVM makes the pod and the objects; the agent learns of them by publish.
func (b *bench) addVM(number int, addresses ...string) *vm {
	b.t.Helper()
	uid, name := uidOf(number), fmt.Sprintf("vm%d", number)
	v := &vm{Pod: b.node.AddPod(fmt.Sprint(number), fmt.Sprintf("100.0.0.%d", number))}
	var all []netip.Addr
	for _, a := range addresses {
		all = append(all, netip.MustParseAddr(a))
	}
	v.Guest.Serve(name, ":80")
	owner := floatip.Owner{Namespace: "prod", Name: name, UID: "vm-" + uid}
	described := nodetest.Describe(owner, all...)
	described.Delivery = b.delivery
	nat, err := described.Encode()
	if err != nil {
		b.t.Fatal(err)
	}
	v.entry = Pod{UID: uid, Namespace: "prod", Name: "virt-launcher-" + name, Machine: Reference{Name: name, UID: "vmi-" + uid}, NAT: nat}
	b.equip(v, described, all...)
	b.view.Pods = append(b.view.Pods, v.entry)
	for _, a := range all {
		b.view.Addresses[a] = Held{Pool: "lan", Owner: owner}
	}
	b.view.Machines["vmi-"+uid] = Machine{Namespace: "prod", Name: name, UID: "vmi-" + uid, VM: owner.UID, Node: b.name, Running: true}
	return v
}

// equip gives a pod what KubeVirt and, where the pod translates, its sidecar would.
func (b *bench) equip(v *vm, described floatip.PodNAT, addresses ...netip.Addr) {
	b.t.Helper()
	v.entry.IPv4, v.entry.IPv6 = netip.MustParseAddr(v.IP), netip.MustParseAddr(v.IP6())
	if !described.Delivery.InPod() {
		nodetest.KubeVirt(b.t, v.Pod)
		return
	}
	nodetest.Translate(b.t, v.Pod, addresses...)
	nodetest.Install(b.t, v.Pod, described)
	v.sidecar = b.serveSidecar(v.Pod, v.entry.UID, addresses...)
}

// socketDir makes the directory that the kubelet makes for the sidecar.
func (b *bench) socketDir(uid string) string {
	b.t.Helper()
	dir := filepath.Dir(socketPath(b.kubelet, uid))
	if err := os.MkdirAll(dir, 0o777); err != nil {
		b.t.Fatal(err)
	}
	return dir
}

func (b *bench) serveSidecar(p *nodetest.Pod, uid string, addresses ...netip.Addr) *sidecar {
	b.t.Helper()
	dir, err := os.Open(b.socketDir(uid)) // its path is longer than a socket's may be
	if err != nil {
		b.t.Fatal(err)
	}
	defer dir.Close()
	l, err := handover.Listen(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), floatip.SocketFile))
	if err != nil {
		b.t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	s := &sidecar{state: installed(addresses...)}
	s.server = &handover.Server{NetNS: p.File, State: func() handover.State {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.state
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.server.Serve(ctx, l); err != nil {
			b.t.Error(err)
		}
	}()
	s.stop = func() {
		cancel()
		<-done
	}
	b.t.Cleanup(s.stop)
	return s
}

func installed(addresses ...netip.Addr) handover.State {
	s := handover.State{Phase: handover.PhaseInstalled}
	for _, a := range addresses {
		fixed := netip.MustParseAddr(nodetest.GuestFixed)
		if a.Is6() {
			fixed = netip.MustParseAddr(nodetest.GuestFixed6)
		}
		s.Bindings = append(s.Bindings, handover.Binding{Floating: a, Fixed: fixed})
	}
	return s
}

// awaitReport waits until the latest report fits, and for what the round after it does for the fast path.
func (b *bench) awaitReport(what string, fits func(Report) bool) Report {
	b.t.Helper()
	r := b.within(patience, what, fits)
	b.await("the fast path", func() bool { return !b.agent.fast.waiting.Load() })
	return r
}

func (b *bench) within(wait time.Duration, what string, fits func(Report) bool) Report {
	b.t.Helper()
	for timeout := time.After(wait); ; {
		if b.last != nil && fits(*b.last) {
			return *b.last
		}
		select {
		case r := <-b.cluster.reports:
			b.last = &r
		case <-timeout:
			b.t.Fatalf("%s: not within %s; the latest report is %+v", what, wait, b.last)
		}
	}
}

func ready(addresses ...string) func(Report) bool {
	return func(r Report) bool {
		for _, a := range addresses {
			if !r.Statuses[netip.MustParseAddr(a)].Ready().True {
				return false
			}
		}
		return true
	}
}

// answers wants who to answer at address when asked from the LAN.
func (b *bench) answers(who, address string) {
	b.t.Helper()
	said, err := b.world.Host.Ask(address+":80", patience)
	if want := who + " sees " + nodetest.Gateway; err != nil || said != want {
		b.t.Errorf("ask %s: have %q, %v; want %q", address, said, err, want)
	}
}

// TestFromPodToAnswer: a granted pod is reachable from the provider LAN, and is said to be.
func TestFromPodToAnswer(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.addVM(1, "192.168.100.50")
	b.addVM(2, "192.168.100.51")
	b.start()
	began := time.Now()
	b.publish()
	b.awaitReport("ready", ready("192.168.100.50", "192.168.100.51"))
	t.Logf("two addresses ready after %s", time.Since(began))
	b.answers("vm1", "192.168.100.50")
	b.answers("vm2", "192.168.100.51")
}
