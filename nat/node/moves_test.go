package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/nodetest"
)

// road is two nodes with an agent each, and one guest that can go from one to the other.
type road struct {
	t        testing.TB
	from, to *bench
	pods     int
	source   *vm // where the guest is
	target   *vm // where it may go
	machine  Machine
	rules    *floatip.PodNAT // in the pods, nil for those of every pod
	has      []netip.Addr    // what the guest has
	// strangers: the agents do not know each other.
	strangers bool
	empty     map[string][]string // what each node holds without any address
}

// newRoad has the guest on the first of two nodes, reachable.
func newRoad(t *testing.T) *road { return newRoadBy(t, "", fifty) }

// newRoadWith is newRoad with other rules in the pods.
func newRoadWith(t *testing.T, rules floatip.PodNAT) *road {
	t.Helper()
	var has []netip.Addr
	for _, b := range rules.Bindings {
		has = append(has, b.Floating)
	}
	r := newRoadBy(t, "", has...)
	r.install(rules)
	return r
}

func newRoadBy(t testing.TB, d floatip.Delivery, has ...netip.Addr) *road {
	t.Helper()
	return newRoadOn(t, func(...*bench) {}, d, has...)
}

// newRoadOn is newRoadBy with other NICs of the nodes, which lay makes.
func newRoadOn(t testing.TB, lay func(nodes ...*bench), d floatip.Delivery, has ...netip.Addr) *road {
	t.Helper()
	w := nodetest.NewWorld(t)
	r := &road{t: t, from: newBenchOn(t, w, "10"), to: newBenchOn(t, w, "11"), pods: 1, has: has}
	lay(r.from, r.to)
	var texts []string
	for _, a := range has {
		texts = append(texts, a.String())
	}
	for _, b := range []*bench{r.from, r.to} {
		b.dualStack()
		lan := b.view.Pools["lan"]
		lan.Delivery, b.delivery = d, d
		b.view.Pools["lan"] = lan
	}
	r.empty = map[string][]string{r.from.name: inventory(t, r.from.node.Namespace), r.to.name: inventory(t, r.to.node.Namespace)}
	r.source = r.from.addVM(1, texts...)
	r.machine = r.from.view.Machines[r.source.entry.Machine.UID]
	r.machine.MACs = []string{r.source.Guest.Get("eth0").Attrs().HardwareAddr.String()}
	for _, b := range []*bench{r.from, r.to} {
		b.view.Addresses = r.from.view.Addresses
		b.start()
	}
	r.publish()
	r.from.awaitReport("ready", ready(texts...))
	return r
}

// install gives other rules to the pods, to that where the guest is and to those to come.
func (r *road) install(rules floatip.PodNAT) {
	r.t.Helper()
	r.rules = &rules
	nodetest.Install(r.t, r.source.Pod, rules)
}

// mac is the Ethernet address of the NIC to the LAN.
func (b *bench) mac() string { return b.node.Get(b.nic).Attrs().HardwareAddr.String() }

// describe is what the bench's agent writes on its Node.
func (b *bench) describe() floatip.NodeAgent {
	return floatip.NodeAgent{
		MACs:    []string{b.mac()},
		Address: b.address, Key: b.agent.exchange.identity.Fingerprint(),
	}
}

// publish tells both agents of the machine as it is now.
func (r *road) publish() {
	for _, b := range []*bench{r.from, r.to} {
		b.view.Machines = map[string]Machine{r.machine.UID: r.machine}
		if !r.strangers {
			b.view.Peers = map[string]floatip.NodeAgent{r.from.name: r.from.describe(), r.to.name: r.to.describe()}
		}
		b.view.Pods = slices.Clone(b.view.Pods)
		b.publish()
	}
}

// begin makes a pod on the other node that waits for the guest, as virt-controller does, and returns when that node is
// prepared.
func (r *road) begin() {
	r.t.Helper()
	r.prepare()
	r.publish()
	r.to.awaitReport("staged", r.each(func(s Status) bool { return !s.Here && s.LegReady.True && s.NATReady.True }))
}

// each reports whether it is so for all addresses of the guest.
func (r *road) each(so func(Status) bool) func(Report) bool {
	return func(report Report) bool {
		for _, a := range r.has {
			if s, ok := report.Statuses[a]; !ok || !so(s) {
				return false
			}
		}
		return true
	}
}

// prepare makes the pod and tells nobody.
func (r *road) prepare() {
	r.t.Helper()
	r.pods++
	r.target = r.to.addTarget(r.pods, r.source.entry, r.has...)
	if r.rules != nil {
		nodetest.Install(r.t, r.target.Pod, *r.rules)
	}
	r.machine.Migration = Migration{SourceNode: r.from.name, TargetNode: r.to.name, TargetPod: r.target.entry.Name}
}

// addTarget makes a pod that waits for the guest of another one.
func (b *bench) addTarget(number int, like Pod, has ...netip.Addr) *vm {
	b.t.Helper()
	v := &vm{entry: like}
	v.entry.UID, v.entry.Name = uidOf(number), like.Name+"-"+v.entry.UID[len(v.entry.UID)-3:]
	v.entry.MigrationTarget, v.entry.GuestArrived, v.entry.Created = true, false, int64(number)
	name := v.entry.UID[len(v.entry.UID)-3:]
	v.Pod = b.node.AddWaitingPod(name, fmt.Sprintf("100.0.0.%d", number))
	described, err := floatip.ParsePodNAT([]byte(like.NAT))
	if err != nil {
		b.t.Fatal(err)
	}
	b.equip(v, described, has...)
	b.view.Pods = append(b.view.Pods, v.entry)
	return v
}

// listened waits until the target's agent would hear the guest's first frame: of one that it missed it tells no stall.
func (r *road) listened() {
	r.t.Helper()
	r.to.await("somebody who listens in the target's pod", func() (listens bool) {
		r.target.Do(func() error {
			sockets, err := os.ReadFile("/proc/thread-self/net/packet")
			listens = strings.Count(string(sockets), "\n") > 1 // below the heading
			return err
		})
		return listens
	})
}

// cut moves the guest and lets qemu announce it there. Until then nobody has said anything to the API server.
func (r *road) cut() {
	r.t.Helper()
	r.target.Receive(r.source.Pod)
	r.target.Guest.AnnounceSelf("eth0")
}

// arrived waits until the other node has taken over, without a word of KubeVirt.
func (r *road) arrived() {
	r.t.Helper()
	r.to.awaitReport("arrived", r.each(func(s Status) bool { return s.Here && s.Ready().True && s.Move != nil }))
	r.from.awaitReport("left", r.each(func(s Status) bool { return !s.Here }))
}

// finish is what KubeVirt says and does afterwards. The guest may go back then.
func (r *road) finish() {
	r.t.Helper()
	r.target.entry.GuestArrived = true
	r.machine.Migration.Arrived = true
	r.machine.Node = r.to.name
	r.from.set(r.source.entry.UID, func(p *Pod) { p.Final = true })
	r.to.set(r.target.entry.UID, func(p *Pod) { p.GuestArrived = true })
	r.publish()
	r.from.awaitReport("gone", func(report Report) bool { return len(report.Statuses) == 0 })
	r.to.awaitReport("ready", ready(fifty.String()))
	r.from, r.to, r.source, r.target = r.to, r.from, r.target, nil
}

func (b *bench) set(uid string, change func(*Pod)) {
	b.view.Pods = slices.Clone(b.view.Pods)
	for i := range b.view.Pods {
		if b.view.Pods[i].UID == uid {
			change(&b.view.Pods[i])
		}
	}
}

// TestMove: a guest goes to another node and back, several times. Its connections live on, in both directions, and what
// is left on a node that it has left is nothing.
func TestMove(t *testing.T) {
	t.Parallel()
	for _, d := range []floatip.Delivery{floatip.DeliveryLeg, floatip.DeliveryRouted} {
		for _, has := range [][]netip.Addr{{fifty}, {fifty, fifty6}} {
			t.Run(fmt.Sprintf("%s %s", d, has), func(t *testing.T) {
				t.Parallel()
				testMove(t, newRoadBy(t, d, has...))
			})
		}
	}
}

func testMove(t *testing.T, r *road) {
	host := r.from.world.Host
	streams := []*stream{
		startStream(t, r.source.Guest, host, fifty.String(), 81),  // from the LAN
		startStream(t, host, r.source.Guest, nodetest.Beyond, 82), // to a host beyond the gateway
		startStream(t, r.source.Guest, host, fifty.String(), 83),  // from the LAN, by somebody who knows one node only
	}
	udp := startEcho(t, r.source.Guest, host, fifty.String()+":7")
	if slices.Contains(r.has, fifty6) {
		streams = append(streams,
			startStream(t, r.source.Guest, host, fifty6.String(), 84), startStream(t, host, r.source.Guest, nodetest.Beyond6, 85))
		udp = startEcho(t, r.source.Guest, host, "["+fifty6.String()+"]:7")
	}
	for range 3 {
		end := udp.flow(time.Millisecond)
		r.begin()
		r.from.awaitReport("about to leave", r.each(func(s Status) bool { return s.Here && s.To == r.to.name }))
		began := time.Now()
		r.cut()
		r.arrived()
		for _, s := range streams {
			s.proceeds(10)
		}
		sent, lost := end()
		for _, b := range []*bench{r.from, r.to} {
			for _, f := range b.agent.responders.figures()[b.nic] {
				if f.Claims > 0 || f.Defences > 0 {
					t.Errorf("%s took the other node for a foreign host: %d claims, %d defences", b.name, f.Claims, f.Defences)
				}
			}
		}
		t.Logf("reported on both sides after %s; %d of %d UDP packets lost", time.Since(began), lost, sent)
		r.finish()
		for _, s := range streams {
			s.proceeds(10)
		}
		if diff := cmp.Diff(r.empty[r.to.name], inventory(t, r.to.node.Namespace)); diff != "" {
			t.Fatalf("left on the node that the guest has left (-before +after):\n%s", diff)
		}
	}
}

// TestGuestIsKnown: the first packets for a guest that has arrived do not wait until it has answered a question for its Ethernet
// address, in both families. Here it answers none.
func TestGuestIsKnown(t *testing.T) {
	r := newRoadBy(t, "", fifty, fifty6)
	host := r.from.world.Host
	flows := []*echo{startEcho(t, r.source.Guest, host, fifty.String()+":7"), startEcho(t, r.source.Guest, host, "["+fifty6.String()+"]:7")}
	for _, f := range flows {
		f.pass(3)
	}
	r.begin()
	r.source.Guest.Sysctl("ipv4/conf/eth0/arp_ignore=8")
	r.source.Guest.Run("nft add table ip6 deaf", "nft add chain ip6 deaf in { type filter hook input priority 0 ; }",
		"nft add rule ip6 deaf in icmpv6 type nd-neighbor-solicit drop")
	r.cut()
	r.arrived()
	for _, f := range flows {
		if !f.send(patience) {
			t.Errorf("nothing from %s reaches the guest", f.conn.RemoteAddr())
		}
	}
}

// missed has the LAN's host, which is the gateway too, send to the old node as if it had heard nothing of the move.
func (r *road) missed(addresses ...netip.Addr) {
	r.t.Helper()
	for _, a := range addresses {
		r.from.world.Host.Run("ip neigh replace " + a.String() + " lladdr " + r.from.mac() + " dev eth0 nud permanent")
	}
}

// TestLatePackets: a host that does not hear of the move goes on sending to the old node, which sends it on: what comes from
// the LAN, and, as long as the old pod is there, what comes by the gateway as well, although the nodes filter by reverse path.
func TestLatePackets(t *testing.T) {
	t.Parallel()
	for _, d := range []floatip.Delivery{floatip.DeliveryLeg, floatip.DeliveryRouted} {
		t.Run(string(d), func(t *testing.T) {
			t.Parallel()
			r := newRoadBy(t, d, fifty, fifty6)
			host := r.from.world.Host
			near := startStream(t, r.source.Guest, host, fifty.String(), 81)
			all := []*stream{near, startStream(t, host, r.source.Guest, nodetest.Beyond, 82), startStream(t, host, r.source.Guest, nodetest.Beyond6, 83)}
			r.begin()
			r.cut()
			r.arrived()
			r.missed(r.has...)
			for _, s := range all {
				s.proceeds(10)
			}
			r.finish()
			near.proceeds(10)
		})
	}
}

// stream is a TCP connection over which numbered messages go to and fro.
type stream struct {
	t    testing.TB
	conn net.Conn
	mu   sync.Mutex    // guards what follows, up to err
	back uint64        // the last number that came back
	at   time.Time     // when it did
	long time.Duration // the longest time between two that came back, since silence was called
	err  error
	more chan struct{}
}

// startStream opens a connection from one namespace to a server in the other and keeps it busy.
func startStream(t testing.TB, server, client *nodetest.Namespace, address string, port uint16) *stream {
	t.Helper()
	l := server.Listen(netip.AddrPortFrom(netip.IPv6Unspecified(), port).String()) // of both families
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(c, c)
	}()
	conn, err := client.Dial(netip.AddrPortFrom(netip.MustParseAddr(address), port).String(), patience)
	if err != nil {
		t.Fatalf("connect to %s port %d: %v", address, port, err)
	}
	t.Cleanup(func() { conn.Close() })
	s := &stream{t: t, conn: conn, more: make(chan struct{}, 1)}
	go s.talk()
	s.proceeds(3)
	return s
}

// talk sends the next number when the last one has come back, or a millisecond later.
func (s *stream) talk() {
	var number, buf [8]byte
	for n := uint64(1); ; n++ {
		binary.BigEndian.PutUint64(number[:], n)
		if _, err := s.conn.Write(number[:]); err != nil {
			s.fail(err)
			return
		}
		if _, err := io.ReadFull(s.conn, buf[:]); err != nil {
			s.fail(err)
			return
		}
		if buf != number {
			s.fail(errors.New("another number came back"))
			return
		}
		s.mu.Lock()
		now := time.Now()
		if n > 1 {
			s.long = max(s.long, now.Sub(s.at))
		}
		s.back, s.at = n, now
		s.mu.Unlock()
		select {
		case s.more <- struct{}{}:
		default:
		}
		time.Sleep(time.Millisecond)
	}
}

// silence returns the longest time in which nothing came back, since it was asked last.
func (s *stream) silence() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	long := s.long
	s.long = 0
	return long
}

func (s *stream) fail(err error) {
	s.mu.Lock()
	s.err = err
	s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// proceeds wants so many more messages to come back.
func (s *stream) proceeds(messages uint64) {
	s.t.Helper()
	s.mu.Lock()
	from := s.back
	s.mu.Unlock()
	for timeout := time.After(patience); ; {
		s.mu.Lock()
		back, err := s.back, s.err
		s.mu.Unlock()
		if err != nil {
			s.t.Fatalf("the stream broke after %d messages: %v", back, err)
		}
		if back >= from+messages {
			return
		}
		select {
		case <-s.more:
		case <-timeout:
			s.t.Fatalf("the stream %s > %s stands still at message %d", s.conn.LocalAddr(), s.conn.RemoteAddr(), back)
		}
	}
}
