package node

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/flows"
	"floatip.io/floatip/nat/node/nodetest"
	"floatip.io/floatip/nat/node/peer"
)

// closed admits nobody but to one port by IPv4, and lets the guest open what it likes.
func closed(also ...netip.Addr) floatip.PodNAT {
	d := nodetest.Describe(floatip.Owner{}, append([]netip.Addr{fifty}, also...)...)
	all := floatip.AddressRange{First: netip.MustParseAddr("0.0.0.0"), Last: netip.MustParseAddr("255.255.255.255")}
	d.Firewall = &floatip.Firewall{
		Ingress: floatip.Admitted{Entries: []floatip.Entry{{
			Addresses: all, Protocol: floatip.ProtocolTCP, Ports: floatip.PortRange{First: 81, Last: 81},
		}}},
		Egress: floatip.Admitted{Everything: true},
	}
	return d
}

// TestHandOver: connections that the pod's firewall would not admit again, and that its kernel would not pick up in the
// middle, go on in the new pod: outgoing ones, one over which the guest only receives, UDP too, and an incoming one.
func TestHandOver(t *testing.T) {
	t.Parallel()
	for name, also := range map[string][]netip.Addr{"IPv4": nil, "both families": {fifty6}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testHandOver(t, newRoadWith(t, closed(also...)), 3, func([]*stream) {})
		})
	}
}

// testHandOver moves the guest so many times to and fro, and calls arrived with its connections whenever it has.
func testHandOver(t *testing.T, r *road, moves int, arrived func([]*stream)) {
	host := r.from.world.Host
	streams := []*stream{
		startStream(t, r.source.Guest, host, fifty.String(), 81),
		startStream(t, host, r.source.Guest, nodetest.Beyond, 82),
		startDownload(t, host, r.source.Guest, netip.MustParseAddrPort(nodetest.Beyond+":83")),
		startPush(t, host, r.source.Guest, netip.MustParseAddrPort(nodetest.Beyond+":84")),
	}
	first := len(streams)
	if slices.Contains(r.has, fifty6) {
		streams = append(streams,
			startStream(t, host, r.source.Guest, nodetest.Beyond6, 86),
			startDownload(t, host, r.source.Guest, netip.MustParseAddrPort("["+nodetest.Beyond6+"]:83")),
			startPush(t, host, r.source.Guest, netip.MustParseAddrPort("["+nodetest.Beyond6+"]:84")),
		)
	}
	for n := range moves {
		r.begin()
		r.target.Sysctl("netfilter/nf_conntrack_tcp_loose=0")
		r.to.await("the connections in the target's pod", func() bool {
			return r.target.Flows(fifty) == first && (len(r.has) == 1 || r.target.Flows(fifty6) == len(streams)-first)
		})
		r.listened()
		r.cut()
		r.arrived()
		for _, s := range streams {
			s.proceeds(10)
		}
		arrived(streams)
		report := r.to.awaitReport("the stall", func(report Report) bool {
			m := report.Statuses[fifty].Move
			return m != nil && m.Stall != nil
		})
		m := report.Statuses[fifty].Move
		t.Logf("stall %s, %d connections", m.Stall, m.Flows)
		if m.Flows != len(streams) || m.Trigger != FirstFrame || m.From != r.from.name || *m.Stall > patience {
			t.Errorf("the move is %+v, want %d connections from %s", m, len(streams), r.from.name)
		}
		r.to.tells(fmt.Sprintf("floatip_moves_total{trigger=\"FirstFrame\"} %d", n/2+1)) // each node receives every other time
		r.to.tells(fmt.Sprintf("floatip_move_stall_seconds_count %d", n/2+1))
		r.finish()
		for _, s := range streams {
			s.proceeds(10)
		}
	}
}

// TestWithoutHandOver is what TestHandOver would be if the agents did not speak: it shows that the test can fail.
func TestWithoutHandOver(t *testing.T) {
	t.Parallel()
	r := newRoadWith(t, closed())
	r.strangers = true
	for _, b := range []*bench{r.from, r.to} {
		b.view.Peers = map[string]floatip.NodeAgent{}
		for _, other := range []*bench{r.from, r.to} {
			b.view.Peers[other.name] = floatip.NodeAgent{MACs: other.describe().MACs}
		}
	}
	s := startDownload(t, r.from.world.Host, r.source.Guest, netip.MustParseAddrPort(nodetest.Beyond+":83"))
	r.begin()
	// As in TestHandOver: an acknowledgement that the guest still owed would open the connection anew.
	r.target.Sysctl("netfilter/nf_conntrack_tcp_loose=0")
	r.cut()
	r.arrived()
	before := s.count()
	time.Sleep(time.Second) // what cannot come is waited for in no other way
	if after := s.count(); after > before+1 {
		t.Errorf("%d messages arrived through a firewall that does not know the connection", after-before)
	}
}

// TestSlowTarget: the agent of the target's node is away until KubeVirt has finished. It gets the connections all the same,
// also when the old pod has ended before KubeVirt says that the guest is elsewhere.
func TestSlowTarget(t *testing.T) {
	t.Parallel()
	for _, said := range []bool{true, false} {
		t.Run(fmt.Sprintf("KubeVirt says where the guest is: %t", said), func(t *testing.T) {
			t.Parallel()
			testSlowTarget(t, said)
		})
	}
}

func testSlowTarget(t *testing.T, said bool) {
	r := newRoadWith(t, closed())
	s := startDownload(t, r.from.world.Host, r.source.Guest, netip.MustParseAddrPort(nodetest.Beyond+":83"))
	r.begin()
	r.to.stop()
	if err := r.target.Link.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		t.Fatal(err)
	}
	r.cut()
	if said {
		r.machine.Node, r.machine.Migration.Arrived = r.to.name, true
	}
	r.from.set(r.source.entry.UID, func(p *Pod) { p.Final = true })
	r.from.view.Machines = map[string]Machine{r.machine.UID: r.machine}
	r.from.publish()
	r.from.awaitReport("gone", func(report Report) bool { return len(report.Statuses) == 0 })
	// What the new agent sees at first is older than what the other one saw.
	r.machine.Node, r.machine.Migration.Arrived = r.from.name, false
	r.to.start()
	r.to.view.Machines = map[string]Machine{r.machine.UID: r.machine}
	for _, b := range []*bench{r.from, r.to} {
		b.view.Peers = map[string]floatip.NodeAgent{r.from.name: r.from.describe(), r.to.name: r.to.describe()}
		b.publish()
	}
	s.proceeds(10)
}

// TestLateNode: the node hears of its new pod when KubeVirt has finished. The move is told, and the connections come.
func TestLateNode(t *testing.T) {
	t.Parallel()
	r := newRoadWith(t, closed())
	s := startDownload(t, r.from.world.Host, r.source.Guest, netip.MustParseAddrPort(nodetest.Beyond+":83"))
	r.prepare()
	// The source knows of the migration, the target of nothing.
	r.from.view.Machines = map[string]Machine{r.machine.UID: r.machine}
	r.from.publish()
	r.from.await("the departure", func() bool {
		_, standing, _ := r.from.agent.exchange.departure(r.machine.UID, r.target.entry.Name)
		return standing == peer.Leaving
	})
	r.cut()
	r.machine.Node, r.machine.Migration.Arrived = r.to.name, true
	r.to.set(r.target.entry.UID, func(p *Pod) { p.GuestArrived = true })
	r.publish()
	r.to.awaitReport("arrived", func(report Report) bool {
		m := report.Statuses[fifty].Move
		return m != nil && m.Trigger == KubeVirt && m.From == r.from.name && m.Flows == 1
	})
	if m := r.to.last.Statuses[fifty].Move; m.Stall != nil {
		t.Errorf("a stall of %s, though nobody heard the guest come", m.Stall)
	}
	s.proceeds(10)
}

// TestLateSource: the agent of the source's node hears of the migration when it is over, all at once. The connections come
// along even so: one over which the guest only receives, through a firewall that would not admit it. So does the stall.
func TestLateSource(t *testing.T) {
	t.Parallel()
	for _, final := range []bool{false, true} {
		t.Run(fmt.Sprintf("the source's pod has ended: %t", final), func(t *testing.T) {
			t.Parallel()
			r := newRoadWith(t, closed())
			s := startDownload(t, r.from.world.Host, r.source.Guest, netip.MustParseAddrPort(nodetest.Beyond+":83"))
			r.prepare()
			r.to.view.Machines = map[string]Machine{r.machine.UID: r.machine}
			r.to.publish()
			r.to.awaitReport("staged", func(report Report) bool {
				s, ok := report.Statuses[fifty]
				return ok && !s.Here && s.LegReady.True && s.NATReady.True
			})
			r.listened()
			began := time.Now()
			r.cut()
			r.to.awaitReport("arrived", func(report Report) bool { s := report.Statuses[fifty]; return s.Here && s.Move != nil })
			took := time.Since(began)
			r.machine.Node, r.machine.Migration.Arrived = r.to.name, true
			r.from.set(r.source.entry.UID, func(p *Pod) { p.Final = final })
			r.publish()
			r.from.awaitReport("gone", func(report Report) bool { return len(report.Statuses) == 0 })
			r.to.awaitReport("the connection", func(report Report) bool {
				m := report.Statuses[fifty].Move
				return m != nil && m.Flows == 1
			})
			if m := r.to.last.Statuses[fifty].Move; m.Stall == nil || *m.Stall > took {
				t.Errorf("the move is %+v, want a stall of at most the %s that it took", m, took)
			}
			s.proceeds(10)
		})
	}
}

// TestSourceHearsLast: a guest goes there and back, and there again; of that the agent of its old node hears when the guest has
// arrived already. It tells of this migration, and not of the first one, in which the same machine went the same way.
func TestSourceHearsLast(t *testing.T) {
	t.Parallel()
	r := newRoadWith(t, closed())
	s := startDownload(t, r.from.world.Host, r.source.Guest, netip.MustParseAddrPort(nodetest.Beyond+":83"))
	told := func(report Report) bool {
		m := report.Statuses[fifty].Move
		return m != nil && m.Flows == 1
	}
	for range 2 {
		r.begin()
		r.to.await("the connection in the target's pod", func() bool { return r.target.Flows(fifty) == 1 })
		r.cut()
		r.arrived()
		r.to.awaitReport("the connection", told)
		r.finish()
	}
	began := time.Now()
	r.prepare()
	r.to.view.Machines = map[string]Machine{r.machine.UID: r.machine}
	r.to.publish()
	r.to.awaitReport("staged", r.each(func(s Status) bool { return !s.Here && s.LegReady.True && s.NATReady.True }))
	r.cut()
	r.to.awaitReport("arrived", r.each(func(s Status) bool { return s.Here && s.Move != nil }))
	if _, standing, _ := r.from.agent.exchange.departure(r.machine.UID, r.target.entry.Name); standing != peer.Unheard {
		t.Errorf("before the source has heard of the migration it stands to it as %d, want Unheard", standing)
	}
	r.publish()
	report := r.to.awaitReport("the connection", told)
	if stall := report.Statuses[fifty].Move.Stall; stall != nil && *stall > time.Since(began) {
		t.Errorf("the guest is said to have stood still for %s, since before it was moved", stall)
	}
	s.proceeds(10)
}

// TestSourceNodeGone: the source's node dies when the guest has left it. What it had told of the connections by then is enough.
func TestSourceNodeGone(t *testing.T) {
	t.Parallel()
	r := newRoadWith(t, closed())
	s := startDownload(t, r.from.world.Host, r.source.Guest, netip.MustParseAddrPort(nodetest.Beyond+":83"))
	r.begin()
	r.to.await("the connection in the target's pod", func() bool { return r.target.Flows(fifty) == 1 })
	r.from.stop()
	r.from.node.Down("red0")
	r.from.node.Down("green0")
	r.cut()
	r.to.awaitReport("arrived", r.each(func(s Status) bool { return s.Here && s.Ready().True && s.Move != nil }))
	s.proceeds(10)
	r.machine.Node, r.machine.Migration.Arrived = r.to.name, true
	r.publish()
	s.proceeds(10)
	if m := r.to.last.Statuses[fifty].Move; m.Stall != nil || m.From != r.from.name {
		t.Errorf("the move is %+v, want one from %s of whose stall nobody knows", m, r.from.name)
	}
}

// TestYieldWhileUnknown: the other node has the address, and the machine cannot be read for a moment. The address is not
// taken back.
func TestYieldWhileUnknown(t *testing.T) {
	j := new(journey)
	j.leave()
	for _, kernel := range []Mode{Active, Staged, Left} {
		if mode := j.provisional(kernel); mode != Left {
			t.Errorf("with %s in the kernel the mode is %s, want %s", kernel, mode, Left)
		}
	}
}

// TestStrangersAsk: who is not the agent of the node that the guest migrates to gets nothing.
func TestStrangersAsk(t *testing.T) {
	t.Parallel()
	r := newRoad(t)
	startStream(t, r.source.Guest, r.from.world.Host, fifty.String(), 81)
	r.begin()
	for _, tt := range []struct {
		name    string
		machine string
		own     bool // with the key of the target's agent
	}{
		{"another key", r.machine.UID, false},
		{"another machine", "vmi-of-somebody-else", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := r.ask(tt.machine, tt.own)
			t.Logf("refused with: %v", err)
			if err == nil {
				t.Error("the source's agent told its connections")
			}
		})
	}
	// Once the migration is given up the same agent gets nothing either.
	r.machine.Migration.Failed = true
	r.publish()
	r.to.awaitReport("gone", func(report Report) bool { return len(report.Statuses) == 0 })
	if err := r.ask(r.machine.UID, true); err == nil {
		t.Error("after the migration the source's agent told its connections")
	}
}

// ask asks the source's agent as a target does.
func (r *road) ask(machine string, own bool) error {
	r.t.Helper()
	identity := r.to.agent.exchange.identity
	if !own {
		var err error
		if identity, err = peer.NewIdentity(); err != nil {
			r.t.Fatal(err)
		}
	}
	source := r.from.describe()
	target := peer.Target{
		Identity: identity, NetNS: r.to.node.File, Address: source.Address, Key: source.Key, Machine: machine, Pod: r.target.entry.Name,
		Apply: func(c flows.Changes) { r.t.Errorf("told %d connections", len(c.Put)) },
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	_, err := target.Follow(ctx, nil)
	return err
}

func (s *stream) count() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.back
}

// startDownload has the client open a TCP connection over which it only receives.
func startDownload(t *testing.T, server, client *nodetest.Namespace, address netip.AddrPort) *stream {
	t.Helper()
	l := server.Listen(address.String())
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		for {
			if _, err := c.Write(make([]byte, 100)); err != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	conn, err := client.Dial(address.String(), patience)
	if err != nil {
		t.Fatalf("connect to %s: %v", address, err)
	}
	t.Cleanup(func() { conn.Close() })
	s := &stream{t: t, conn: conn, more: make(chan struct{}, 1)}
	go s.receive(100)
	s.proceeds(3)
	return s
}

// startPush has the client send one UDP packet, and the server answer for ever.
func startPush(t *testing.T, server, client *nodetest.Namespace, address netip.AddrPort) *stream {
	t.Helper()
	var l net.PacketConn
	server.Do(func() (err error) {
		l, err = net.ListenPacket("udp", address.String())
		return err
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		_, from, err := l.ReadFrom(make([]byte, 100))
		for ; err == nil; _, err = l.WriteTo(make([]byte, 100), from) {
			time.Sleep(time.Millisecond)
		}
	}()
	s := &stream{t: t, more: make(chan struct{}, 1)}
	client.Do(func() (err error) {
		s.conn, err = net.Dial("udp", address.String())
		return err
	})
	t.Cleanup(func() { s.conn.Close() })
	if _, err := s.conn.Write([]byte("tell me")); err != nil {
		t.Fatal(err)
	}
	go s.receive(100)
	s.proceeds(3)
	return s
}

// receive counts messages of a size.
func (s *stream) receive(size int) {
	buf := make([]byte, size)
	for {
		if _, err := io.ReadFull(s.conn, buf); err != nil {
			s.fail(err)
			return
		}
		s.mu.Lock()
		s.back++
		s.mu.Unlock()
		select {
		case s.more <- struct{}{}:
		default:
		}
	}
}
