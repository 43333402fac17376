package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
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
	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/nat/node/nodetest"
)

// TestNotAnnouncedBeforeItsRulesStand: LAN hosts would get silence, and a conflict probe a wrong answer.
func TestNotAnnouncedBeforeItsRulesStand(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	v := b.addVM(1, "192.168.100.50")
	v.sidecar.set(handover.State{Phase: handover.PhaseFailed, Problem: "the kernel refused the rules"})
	b.start()
	b.publish()
	// A round may plug the leg of a pod whose sidecar has said nothing yet when the round began.
	r := b.awaitReport("leg, and the sidecar's problem", func(r Report) bool {
		s := r.Statuses[fifty]
		return s.LegReady.True && s.Ready().Message == "the kernel refused the rules"
	})
	if s := r.Statuses[fifty]; s.Announced.True || s.NATReady.True {
		t.Errorf("status is %+v, want neither NAT nor announcement", s)
	}
	if proxies := b.holding().Answered; len(proxies) != 0 {
		t.Errorf("the kernel answers for %v", proxies)
	}
	v.sidecar.set(installed(fifty))
	b.awaitReport("ready", ready("192.168.100.50"))
	b.answers("vm1", "192.168.100.50")
}

// TestSidecarComplains: what a sidecar complains of while its rules stand is told, and takes nobody's address away.
func TestSidecarComplains(t *testing.T) {
	b := newBench(t)
	v := b.addVM(1, "192.168.100.50")
	b.start()
	b.publish()
	b.awaitReport("ready", ready("192.168.100.50"))
	for phase, problem := range map[handover.Phase]string{
		handover.PhaseContested: "somebody keeps changing the rules",
		handover.PhaseInstalled: "the rules in force are kept",
	} {
		state := installed(fifty)
		state.Phase, state.Problem = phase, problem
		v.sidecar.set(state)
		r := b.awaitReport(problem, func(r Report) bool {
			c := r.Statuses[fifty].NATReady
			return c.Reason == string(phase) && strings.Contains(c.Message, problem)
		})
		if s := r.Statuses[fifty]; !s.NATReady.True || !s.Announced.True {
			t.Errorf("%s: status is %+v, want NAT and announcement", phase, s)
		}
		b.answers("vm1", "192.168.100.50")
	}
}

func (b *bench) holding() leg.Holding {
	b.t.Helper()
	kernel, err := leg.Open(b.node.File, leg.DefaultSysctls)
	if err != nil {
		b.t.Fatal(err)
	}
	defer kernel.Close()
	h, err := kernel.Holding()
	if err != nil {
		b.t.Fatal(err)
	}
	return h
}

// TestRestart: an agent that is stopped and started changes nothing and interrupts nothing.
func TestRestart(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	v := b.addVM(1, "192.168.100.50")
	b.start()
	b.publish()
	b.awaitReport("ready", ready("192.168.100.50"))
	before := inventory(t, b.node.Namespace, v.Namespace)
	stream := startEcho(t, v.Guest, b.world.Host, "192.168.100.50:7")
	end := stream.flow(time.Millisecond)
	b.stop()
	b.start()
	b.publish()
	b.awaitReport("ready again", ready("192.168.100.50"))
	sent, lost := end()
	t.Logf("%d packets, one in a millisecond, around the restart; %d lost", sent, lost)
	if lost != 0 || sent < 5 {
		t.Errorf("%d of %d packets were lost around the restart, want none of at least 5", lost, sent)
	}
	if changes := b.agent.changes(); changes != 0 {
		t.Errorf("the second agent made %d changes to a kernel that held all", changes)
	}
	if diff := cmp.Diff(before, inventory(t, b.node.Namespace, v.Namespace)); diff != "" {
		t.Errorf("kernel (-before +after):\n%s", diff)
	}
}

func (a *Agent) changes() uint64 {
	a.health.mu.Lock()
	defer a.health.mu.Unlock()
	return a.health.changes
}

// TestStartWithoutAPIServer: the agent goes on with what its predecessor left, ARP answers included.
func TestStartWithoutAPIServer(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.addVM(1, "192.168.100.50")
	b.start()
	b.publish()
	b.awaitReport("ready", ready("192.168.100.50"))
	b.stop()
	b.cluster.complete = false
	b.start()
	// The kernel's proxy entries would answer a request, but no probe: that is the agent's work.
	b.await("an answer to a probe", func() bool {
		said, err := b.world.Host.Probe("eth0", fifty, 100*time.Millisecond)
		return err == nil && said == b.node.Get("red0").Attrs().HardwareAddr.String()
	})
	b.answers("vm1", "192.168.100.50")
	if len(b.holding().Ports) != 1 {
		t.Errorf("the node holds %v, want the one leg that was there", b.holding().Ports)
	}
}

// await polls until f is true.
func (b *bench) await(what string, f func() bool) {
	b.t.Helper()
	if !nodetest.Until(patience, f) {
		b.t.Fatalf("%s: not within %s", what, patience)
	}
}

// TestWithdraw: the pod's guest has ended. Nothing stays, and an open connection is dead within a second.
func TestWithdraw(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.dualStack()
	empty := inventory(t, b.node.Namespace)
	v := b.addVM(1, "192.168.100.50", "2001:db8:100::50")
	emptyPod := inventory(t, v.Namespace)
	b.start()
	b.publish()
	b.awaitReport("ready", ready("192.168.100.50", "2001:db8:100::50"))
	streams := []*echo{
		startEcho(t, v.Guest, b.world.Host, "192.168.100.50:7"), startEcho(t, v.Guest, b.world.Host, "[2001:db8:100::50]:7"),
	}
	for _, s := range streams {
		s.pass(5)
	}
	for _, a := range []netip.Addr{fifty, fifty6} {
		b.view.Addresses[a] = withNode(b.view.Addresses[a], "node10")
	}
	b.view.Pods = slices.Clone(b.view.Pods)
	b.view.Pods[0].Final = true
	b.publish()
	began := time.Now()
	r := b.awaitReport("gone", func(r Report) bool { return len(r.Statuses) == 0 && len(r.Left) == 2 })
	if !slices.Equal(r.Left, []netip.Addr{fifty, fifty6}) {
		t.Errorf("left %v, want %s and %s", r.Left, fifty, fifty6)
	}
	for _, s := range streams {
		if !s.dead(time.Second) {
			t.Errorf("an old flow to %s still passes a second after the address was withdrawn", s.conn.RemoteAddr())
		}
	}
	t.Logf("withdrawn after %s", time.Since(began))
	if diff := cmp.Diff(empty, inventory(t, b.node.Namespace)); diff != "" {
		t.Errorf("left on the node (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(emptyPod, inventory(t, v.Namespace)); diff != "" {
		t.Errorf("left in the pod (-before +after):\n%s", diff)
	}
	for _, a := range []netip.Addr{fifty, fifty6} {
		for _, ns := range []*nodetest.Namespace{v.Namespace, b.node.Namespace} {
			if flows := ns.Flows(a); flows != 0 {
				t.Errorf("connection tracking still knows %d flows of %s", flows, a)
			}
		}
	}
}

func withNode(h Held, name string) Held {
	h.Node = name
	return h
}

// TestNICChanges: the provider NIC goes down, is put into a bridge together with its address, as some CNIs do, and
// comes out again. Nothing is withdrawn meanwhile, and packets flow as soon as the LAN can be reached.
func TestNICChanges(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	v := b.addVM(1, "192.168.100.50")
	b.start()
	b.publish()
	b.awaitReport("ready", ready("192.168.100.50"))
	stream := startEcho(t, v.Guest, b.world.Host, "192.168.100.50:7")
	flows := func(when string) {
		t.Helper()
		b.await(when, func() bool { return stream.send(100 * time.Millisecond) })
		b.awaitReport("ready "+when, ready("192.168.100.50"))
	}
	flows("before")

	b.node.Down("red0")
	b.awaitReport("NIC down", func(r Report) bool { return !r.Pools["lan"] })
	b.node.Up("red0")
	flows("after the NIC was down")

	b.node.Remove("red0", "192.168.100.10/24")
	b.awaitReport("no NIC", func(r Report) bool { return !r.Pools["lan"] })
	b.node.Bridge("br-ext", "red0")
	b.node.Address("br-ext", "192.168.100.10/24")
	flows("on the bridge")
	if nics := b.holding().Answered; len(nics["br-ext"]) != 1 || len(nics["red0"]) != 0 {
		t.Errorf("the kernel answers on %v, want br-ext alone", nics)
	}

	b.node.Remove("br-ext", "192.168.100.10/24")
	b.node.Release("red0")
	b.node.Address("red0", "192.168.100.10/24")
	flows("on the NIC again")
	if len(b.holding().Ports) != 1 {
		t.Errorf("the node holds the legs %v, want the one from the start", b.holding().Ports)
	}
}

// TestSettingsAreRepaired: some other program resets what the leg relies on.
func TestSettingsAreRepaired(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	v := b.addVM(1, "192.168.100.50")
	b.start()
	b.publish()
	b.awaitReport("ready", ready("192.168.100.50"))
	look := func() []string { return inventory(t, b.node.Namespace, v.Namespace) }
	port := leg.PortName(v.entry.UID)
	want := look()
	b.node.Sysctl("ipv4/conf/red0/forwarding=0", "ipv4/neigh/red0/proxy_delay=80", "ipv4/conf/"+port+"/forwarding=0")
	v.Sysctl("ipv4/conf/fip0/rp_filter=1")
	b.node.Run("ip rule del pref 5002", "ip rule del pref 5003", "ip route flush table 7101", "nft delete table netdev floatip",
		"ip neigh flush nud permanent dev "+port)
	v.Run("ip rule del pref 77", "ip route flush table 77", "ip neigh flush nud permanent dev fip0")
	b.agent.Recheck()
	var have []string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline) && !cmp.Equal(want, have); {
		have = look()
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("kernel after the repair (-want +got):\n%s", diff)
	}
	b.answers("vm1", "192.168.100.50")
	if have := b.node.ReadSysctl("ipv4/neigh/red0/proxy_delay"); have != "0" {
		t.Errorf("proxy_delay is %s, want 0", have)
	}
}

// TestSecondAgent: two agents on one node would undo each other's work.
func TestSecondAgent(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.start()
	b.await("the first agent", func() bool { return b.agent.Healthy() == nil })
	second, err := NewAgent(Options{
		Name: "node10", KubeletDir: b.kubelet, NetNS: b.node.File, Sysctls: leg.DefaultSysctls, Log: slog.New(slog.DiscardHandler),
	}, b.cluster, b.cluster)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(context.Background()); !errors.Is(err, ErrSecondAgent) {
		t.Errorf("the second agent ended with %v, want ErrSecondAgent", err)
	}
}

// TestHostileSidecars: what stands in one pod's directory keeps no other pod waiting and leads the agent nowhere.
func TestHostileSidecars(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		set    func(t *testing.T, dir, victim string)
		reason string
	}{
		{"a symbolic link to another pod's socket", func(t *testing.T, dir, victim string) {
			if err := os.Symlink(victim, filepath.Join(dir, floatip.SocketFile)); err != nil {
				t.Fatal(err)
			}
		}, "not a unix socket"},
		{"a file", func(t *testing.T, dir, _ string) {
			if err := os.WriteFile(filepath.Join(dir, floatip.SocketFile), []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "not a unix socket"},
		{"a server that says nothing", func(t *testing.T, dir, _ string) { listenIn(t, dir) }, "not reached"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			good := b.addVM(1, "192.168.100.50")
			bad := b.addVM(2, "192.168.100.51")
			dir := b.socketDir(bad.entry.UID)
			if err := os.Remove(filepath.Join(dir, floatip.SocketFile)); err != nil {
				t.Fatal(err)
			}
			tt.set(t, dir, socketPath(b.kubelet, good.entry.UID))
			b.start()
			b.publish()
			r := b.awaitReport("the good pod", func(r Report) bool {
				return ready("192.168.100.50")(r) &&
					strings.Contains(r.Statuses[netip.MustParseAddr("192.168.100.51")].LegReady.Message, tt.reason)
			})
			if r.Statuses[netip.MustParseAddr("192.168.100.51")].Announced.True {
				t.Error("the address of the hostile pod is announced")
			}
			b.answers("vm1", "192.168.100.50")
		})
	}
}

// listenIn accepts connections in a directory and never says a word.
func listenIn(t *testing.T, dir string) {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), floatip.SocketFile))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

// TestSpoofing: a pod in foreign hands sends with the addresses of its neighbour. The node drops it: IPv4 twice, by the port's
// reverse-path filter and by its guard, and IPv6, for which the kernel has no such filter, by the guard.
func TestSpoofing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.dualStack()
	b.addVM(1, "192.168.100.50", "2001:db8:100::50")
	evil := b.addVM(2, "192.168.100.51", "2001:db8:100::51")
	b.start()
	b.publish()
	b.awaitReport("ready", ready("192.168.100.50", "192.168.100.51", "2001:db8:100::50", "2001:db8:100::51"))
	// Own rules are no obstacle to a hostile sidecar: it sends by itself, past them.
	evil.Run("nft flush ruleset")
	for _, family := range []struct{ to, neighbour, own, bits string }{
		{nodetest.LANHost + ":9", "192.168.100.50", "192.168.100.51", "/32"},
		{"[" + nodetest.LANHost6 + "]:9", "2001:db8:100::50", "2001:db8:100::51", "/128"},
	} {
		heard := b.hearUDP(family.to)
		for _, source := range []string{family.neighbour, family.own} {
			evil.Address("lo", source+family.bits)
			evil.SendMarked(nat.LegMark, source, family.to)
		}
		select {
		case from := <-heard:
			if from != family.own {
				t.Errorf("the LAN heard %s first, want only the pod's own %s", from, family.own)
			}
		case <-time.After(patience):
			t.Fatal("the LAN heard nothing, not even from the pod's own address")
		}
	}
}

// echo is a UDP stream of numbered packets from a LAN host to a guest and back.
type echo struct {
	t    testing.TB
	conn net.Conn
	sent uint32
	mu   sync.Mutex // guards back
	back map[uint32]bool
	more chan struct{}
}

func startEcho(t testing.TB, guest, host *nodetest.Namespace, address string) *echo {
	t.Helper()
	to, port, _ := net.SplitHostPort(address)
	network := "udp4"
	if strings.Contains(to, ":") {
		network = "udp6"
	}
	var server net.PacketConn
	guest.Do(func() (err error) {
		server, err = net.ListenPacket(network, ":"+port)
		return err
	})
	t.Cleanup(func() { server.Close() })
	go func() {
		buf := make([]byte, 64)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			if _, err := server.WriteTo(buf[:n], from); err != nil {
				return
			}
		}
	}()
	e := &echo{t: t, back: map[uint32]bool{}, more: make(chan struct{}, 1)}
	host.Do(func() (err error) {
		e.conn, err = net.Dial(network, address)
		return err
	})
	t.Cleanup(func() { e.conn.Close() })
	go e.receive()
	return e
}

func (e *echo) receive() {
	buf := make([]byte, 64)
	for {
		n, err := e.conn.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n != 4 {
			continue // an ICMP error of an earlier packet
		}
		e.mu.Lock()
		e.back[binary.BigEndian.Uint32(buf)] = true
		e.mu.Unlock()
		select {
		case e.more <- struct{}{}:
		default:
		}
	}
}

// send sends one packet and waits for it to come back, at most for the time given.
func (e *echo) send(wait time.Duration) bool {
	e.sent++
	packet := binary.BigEndian.AppendUint32(nil, e.sent)
	if _, err := e.conn.Write(packet); err != nil {
		return false
	}
	timeout := time.After(wait)
	for {
		e.mu.Lock()
		arrived := e.back[e.sent]
		e.mu.Unlock()
		if arrived {
			return true
		}
		select {
		case <-e.more:
		case <-timeout:
			return false
		}
	}
}

// pass sends packets one after the other.
func (e *echo) pass(packets int) {
	for range packets {
		e.send(time.Second)
	}
}

// flow sends one packet in each interval, whether the others come back or not, until the function that it returns is
// called. That one waits for the last packet and says how many were sent and lost.
func (e *echo) flow(interval time.Duration) (end func() (sent, lost int)) {
	e.t.Helper()
	if !e.send(patience) {
		e.t.Fatal("the first packet did not come back")
	}
	const least = 20 // what is looked at may be over sooner than a few intervals
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for over, ended := stop, false; !ended || e.sent < least; {
			select {
			case <-over:
				over, ended = nil, true
				continue
			case <-ticker.C:
			}
			e.sent++
			if _, err := e.conn.Write(binary.BigEndian.AppendUint32(nil, e.sent)); err != nil {
				e.t.Errorf("packet %d: %v", e.sent, err)
				return
			}
		}
	}()
	return func() (sent, lost int) {
		close(stop)
		<-done
		e.send(patience)
		e.mu.Lock()
		defer e.mu.Unlock()
		return int(e.sent), int(e.sent) - len(e.back)
	}
}

// dead reports whether packets stop coming back within the time given.
func (e *echo) dead(within time.Duration) bool {
	for deadline := time.Now().Add(within); time.Now().Before(deadline); {
		if !e.send(50 * time.Millisecond) {
			return true
		}
	}
	return false
}

func inventory(t testing.TB, namespaces ...*nodetest.Namespace) (lines []string) {
	t.Helper()
	for _, n := range namespaces {
		lines = append(lines, n.Inventory()...)
	}
	return lines
}
