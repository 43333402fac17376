package cluster

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/nat/handover"
	"floatip.io/floatip/nat/node"
	"floatip.io/floatip/nat/node/announce"
	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/nat/node/nodetest"
)

// TestAPIServerAway: an agent on a node, all of it real but the guests, and its API server stops. Packets go on, also
// while the agent starts anew and a sidecar does. What has changed when the API server is back catches up.
func TestAPIServerAway(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.addVM(1, "192.168.100.50")
	p.addVM(2, "192.168.100.51")
	p.start()
	p.awaitPhase("192.168.100.50", v1alpha1.PhaseReady)
	p.awaitPhase("192.168.100.51", v1alpha1.PhaseReady)
	still := p.talk("192.168.100.50:81")
	still("before")
	since := p.readySince("192.168.100.50")

	p.road.cut()
	if err := p.env.ControlPlane.APIServer.Stop(); err != nil {
		t.Fatal(err)
	}
	still("without the API server")
	p.stop()
	still("without an agent")
	p.start()
	mac := p.node.Get("red0").Attrs().HardwareAddr.String()
	p.until("the new agent answers a probe", func() bool {
		said, err := p.lan.Host.Probe("eth0", fifty, 100*time.Millisecond)
		return err == nil && said == mac
	})
	still("with an agent that has seen no API server")
	p.vms[1].restartSidecar()
	still("with a sidecar that is a new one too")

	if err := p.env.ControlPlane.APIServer.Start(); err != nil {
		t.Fatal(err)
	}
	p.patch(p.vms[2].object, `{"status":{"phase":"Succeeded"}}`, "status")
	p.addVM(3, "192.168.100.52")
	still("while others know more than the agent")
	began := time.Now()
	p.road.open()
	p.awaitPhase("192.168.100.52", v1alpha1.PhaseReady)
	p.awaitPhase("192.168.100.51", v1alpha1.PhaseBound)
	t.Logf("caught up %s after the API server was back", time.Since(began).Round(time.Millisecond))
	still("afterwards")
	if now := p.readySince("192.168.100.50"); now != since {
		t.Errorf("an address that worked all the time is Ready since %s, want since %s", now, since)
	}
	if said, err := p.lan.Host.Ask("192.168.100.52:80", patience); err != nil || said != "vm3 sees "+nodetest.Gateway {
		t.Errorf("the VM that was made meanwhile says %q, %v", said, err)
	}
	if said, err := p.lan.Host.Probe("eth0", netip.MustParseAddr("192.168.100.51"), 100*time.Millisecond); err == nil {
		t.Errorf("%s answers for the address of a guest that has ended", said)
	}
	var f v1alpha1.FloatingIP
	p.get("192.168.100.51", &f)
	if f.Status.Node != "" {
		t.Errorf("the address of the guest that has ended is on node %q", f.Status.Node)
	}
}

// place is a node with its agent, a LAN, and an API server behind a road that can be cut.
type place struct {
	*world
	lan  *nodetest.World
	node *nodetest.Node
	road *road
	vms  map[int]*vm
	stop func() // agent and watches

	kubelet string // its directory
}

func newPlace(t testing.TB) *place {
	t.Helper()
	p := &place{world: newWorld(t), lan: nodetest.NewWorld(t), vms: map[int]*vm{}}
	p.kubelet = filepath.Join(p.dir, "kubelet")
	if err := os.Mkdir(p.kubelet, 0o755); err != nil {
		t.Fatal(err)
	}
	p.node = p.lan.AddNode("10")
	p.road = newRoad(t, p.config, func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") })
	p.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod"}})
	p.create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	p.create(&v1alpha1.FloatingIPPool{ObjectMeta: metav1.ObjectMeta{Name: "lan"}, Spec: v1alpha1.FloatingIPPoolSpec{
		Addresses: []string{"192.168.100.50-192.168.100.99"}, Gateways: []string{nodetest.Gateway},
	}})
	return p
}

// start runs an agent and its watches until the test ends or stop is called.
func (p *place) start() {
	p.t.Helper()
	log := slog.New(slog.NewTextHandler(logWriter{p.t}, nil))
	config := rest.CopyConfig(p.config)
	config.Host = p.road.host()
	var agent *node.Agent
	api, err := New(config, "n1", func() { agent.Wake() }, log)
	if err != nil {
		p.t.Fatal(err)
	}
	agent, err = node.NewAgent(node.Options{
		Name: "n1", KubeletDir: p.kubelet, NetNS: p.node.File, Sysctls: leg.DefaultSysctls, Log: log, Timing: announce.Timing{
			Probes: 2, Every: 5 * time.Millisecond, Wait: 20 * time.Millisecond, Trial: time.Millisecond,
			Defend: time.Second, Quiet: time.Second, Retry: time.Second, RetryMost: time.Second,
		},
	}, api, api)
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	for _, run := range []func(context.Context) error{agent.Run, api.Run} {
		parts.Go(func() {
			if err := run(ctx); err != nil {
				p.t.Errorf("the agent ended: %v", err)
			}
		})
	}
	p.stop = sync.OnceFunc(func() {
		cancel()
		parts.Wait()
		// A program that another test starts at that moment has the agent's lock for as long as it takes to begin.
		p.until("the agent's lock to be free", func() bool {
			var sockets []byte
			p.node.Do(func() (err error) {
				sockets, err = os.ReadFile("/proc/thread-self/net/unix")
				return err
			})
			return !strings.Contains(string(sockets), "@floatip-agent")
		})
	})
	p.t.Cleanup(p.stop)
}

// vm is a pod with a guest and a sidecar, and its objects.
type vm struct {
	*nodetest.Pod
	t       testing.TB
	address netip.Addr
	object  *corev1.Pod
	socket  string
	stop    func() // the sidecar
}

func (p *place) addVM(number int, address string) {
	p.t.Helper()
	v := &vm{
		Pod: p.node.AddPod(fmt.Sprint(number), fmt.Sprintf("100.0.0.%d", number)), t: p.t, address: netip.MustParseAddr(address),
	}
	v.Guest.Serve(fmt.Sprintf("vm%d", number), ":80")
	go echo(v.Guest.Listen(":81"))
	nodetest.Translate(p.t, v.Pod, v.address)
	p.addObjects(number, v)
	v.startSidecar()
	p.vms[number] = v
}

// addObjects adds the objects of a VM, and what the kubelet makes for its pod.
func (p *place) addObjects(number int, v *vm) {
	p.t.Helper()
	name, address := fmt.Sprintf("vm%d", number), v.address.String()
	owner := floatip.Owner{Namespace: "prod", Name: name, UID: "uid-" + name}
	p.create(&v1alpha1.FloatingIP{ObjectMeta: metav1.ObjectMeta{Name: address}, Spec: v1alpha1.FloatingIPSpec{
		Address: address, Pool: "lan", VM: v1alpha1.VMReference{Namespace: "prod", Name: name, UID: types.UID(owner.UID)},
	}})
	machine := p.machine("n1")
	machine.SetName(name)
	machine.SetOwnerReferences([]metav1.OwnerReference{{
		APIVersion: "kubevirt.io/v1", Kind: vmKind, Name: name, UID: types.UID(owner.UID), Controller: &yes,
	}})
	p.create(machine)
	text, err := nodetest.Describe(owner, v.address).Encode()
	if err != nil {
		p.t.Fatal(err)
	}
	v.object = podOn("n1", machine.GetUID())
	v.object.Name, v.object.OwnerReferences[0].Name = "launcher-"+name, name
	v.object.Annotations[floatip.AnnotationNAT] = text
	p.create(v.object)
	v.socket = filepath.Join(p.kubelet, "pods", string(v.object.UID), "volumes", "kubernetes.io~empty-dir", floatip.SocketVolume,
		floatip.SocketFile)
	if err := os.MkdirAll(filepath.Dir(v.socket), 0o755); err != nil {
		p.t.Fatal(err)
	}
}

func (v *vm) startSidecar() {
	v.t.Helper()
	dir, err := os.Open(filepath.Dir(v.socket)) // its path is longer than a socket's may be
	if err != nil {
		v.t.Fatal(err)
	}
	defer dir.Close()
	l, err := handover.Listen(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), floatip.SocketFile))
	if err != nil {
		v.t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	server := &handover.Server{NetNS: v.File, State: func() handover.State {
		return handover.State{Phase: handover.PhaseInstalled, Bindings: []handover.Binding{
			{Floating: v.address, Fixed: netip.MustParseAddr(nodetest.GuestFixed)},
		}}
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(ctx, l); err != nil {
			v.t.Error(err)
		}
	}()
	v.stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	v.t.Cleanup(v.stop)
}

func (v *vm) restartSidecar() {
	v.stop()
	v.startSidecar()
}

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c) // the test ends it
		}()
	}
}

// talk opens a connection from the LAN, which has to live from then on: what it returns says a word and wants it back.
func (p *place) talk(address string) func(when string) {
	p.t.Helper()
	c, err := p.lan.Host.Dial(address, patience)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return func(when string) {
		p.t.Helper()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			p.t.Fatal(err)
		}
		back := make([]byte, 5)
		if _, err := c.Write([]byte("still")); err != nil {
			p.t.Fatalf("%s: %v", when, err)
		}
		if _, err := io.ReadFull(c, back); err != nil || string(back) != "still" {
			p.t.Fatalf("%s: the guest said %q, %v", when, back, err)
		}
	}
}

func (p *place) get(address string, into *v1alpha1.FloatingIP) {
	p.t.Helper()
	if err := p.api.Get(context.Background(), client.ObjectKey{Name: address}, into); err != nil {
		p.t.Fatal(err)
	}
}

// readySince is when the condition Ready became true.
func (p *place) readySince(address string) metav1.Time {
	p.t.Helper()
	var f v1alpha1.FloatingIP
	p.get(address, &f)
	c := meta.FindStatusCondition(f.Status.Conditions, v1alpha1.ConditionReady)
	if c == nil || c.Status != metav1.ConditionTrue {
		p.t.Fatalf("%s is not ready: %+v", address, f.Status)
	}
	return c.LastTransitionTime
}

func (p *place) awaitPhase(address string, phase v1alpha1.Phase) {
	p.t.Helper()
	var f v1alpha1.FloatingIP
	p.until(fmt.Sprintf("%s to be %s", address, phase), func() bool {
		p.get(address, &f)
		return f.Status.Phase == phase
	})
}

func (p *place) until(what string, f func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// road leads to the API server. Cut, it ends what is on the way and lets nobody through.
type road struct {
	to       string
	listener net.Listener

	mu    sync.Mutex // guards what follows
	shut  bool
	conns map[net.Conn]bool
}

func newRoad(t testing.TB, config *rest.Config, listen func() (net.Listener, error)) *road {
	t.Helper()
	target, err := url.Parse(config.Host)
	if err != nil || target.Host == "" {
		target = &url.URL{Host: config.Host}
	}
	r := &road{to: target.Host, conns: map[net.Conn]bool{}}
	if r.listener, err = listen(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := r.listener.Accept()
			if err != nil {
				return
			}
			go r.pass(c)
		}
	}()
	t.Cleanup(func() {
		r.listener.Close()
		r.cut()
	})
	return r
}

func (r *road) host() string { return "https://" + r.listener.Addr().String() }

func (r *road) pass(from net.Conn) {
	defer from.Close()
	server, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer server.Close()
	r.mu.Lock()
	shut := r.shut
	r.conns[from], r.conns[server] = true, true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.conns, from)
		delete(r.conns, server)
	}()
	if shut {
		return
	}
	go func() {
		defer server.Close()
		_, _ = io.Copy(server, from) // ends with either of the two
	}()
	_, _ = io.Copy(from, server)
}

func (r *road) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shut = true
	for c := range r.conns {
		c.Close()
	}
}

func (r *road) open() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shut = false
}
