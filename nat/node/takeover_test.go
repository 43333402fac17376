package node

import (
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/flows"
	"floatip.io/floatip/nat/node/nodetest"
	"floatip.io/floatip/nat/node/peer"
	"floatip.io/floatip/nat/node/unread"
)

// datagram is a UDP packet as package unread has it.
func datagram(to net.HardwareAddr, from, at netip.AddrPort, text string) []byte {
	f := make([]byte, 10, 100) // a virtio_net_hdr that asks for nothing
	f = append(f, to...)
	f = append(f, 2, 0, 0, 0, 0, 0, 8, 0)
	ip := make([]byte, 20)
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(text)))
	copy(ip[12:], from.Addr().AsSlice())
	copy(ip[16:], at.Addr().AsSlice())
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	f = append(f, ip...)
	for _, v := range []uint16{from.Port(), at.Port(), uint16(8 + len(text)), 0} { // no checksum
		f = binary.BigEndian.AppendUint16(f, v)
	}
	return append(f, text...)
}

// TestGive: what the old node has kept reaches the guest, if it is of a connection that was taken over, addressed to the guest,
// and the guest has just arrived; anything else does not.
func TestGive(t *testing.T) {
	t.Parallel()
	w := nodetest.NewWorld(t)
	pod := w.AddNode("10").AddPod("a", "100.0.0.1")
	mac := pod.Guest.Get("eth0").Attrs().HardwareAddr
	client, guest := netip.MustParseAddrPort(nodetest.LANHost+":4000"), netip.MustParseAddrPort(nodetest.GuestFixed+":7")
	var l net.PacketConn
	pod.Guest.Do(func() (err error) {
		l, err = net.ListenPacket("udp4", guest.String())
		return err
	})
	t.Cleanup(func() { l.Close() })
	give := newWriter(t, pod, mac.String())
	give.apply(flows.Changes{Put: []flows.Entry{inwardFrom(4000)}})
	if give.put != 1 {
		t.Fatal("the connection was not taken over")
	}
	give.give([][]byte{datagram(mac, client, guest, "too early")})
	give.journey.arrived = time.Now().Add(-2 * patience)
	give.give([][]byte{datagram(mac, client, guest, "too late")})
	give.journey.arrived = time.Now()
	give.give([][]byte{
		nil, make([]byte, 5), make([]byte, 30),
		datagram(mac, netip.AddrPortFrom(client.Addr(), 4001), guest, "of no connection"),
		datagram(net.HardwareAddr{0x52, 0x54, 0, 0, 0, 9}, client, guest, "to somebody else"),
		datagram(net.HardwareAddr{0x52, 0x54, 0, 0, 0, 9}, netip.AddrPortFrom(client.Addr(), 4001), guest, "of no connection, to somebody else"),
		datagram(mac, client, guest, "good"),
	})
	if err := l.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, from, err := l.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "good" || from.String() != client.String() || give.given != 1 {
		t.Errorf("the guest got %q from %v, %v; %d packets were given, want the good one", buf[:n], from, err, give.given)
	}
	// What was of no connection is the first packet of one, once the old node tells of it.
	give.apply(flows.Changes{Put: []flows.Entry{inwardFrom(4002)}})
	if len(give.early) != 1 {
		t.Errorf("%d packets wait for their connections, want one", len(give.early))
	}
	give.apply(flows.Changes{Put: []flows.Entry{inwardFrom(4001)}})
	if n, from, err = l.ReadFrom(buf); err != nil || string(buf[:n]) != "of no connection" || len(give.early) != 0 || give.size != 0 {
		t.Errorf("the guest got %q from %v, %v; %d packets of %d bytes are kept", buf[:n], from, err, len(give.early), give.size)
	}
	give.macs = nil // KubeVirt has not said them
	give.give([][]byte{datagram(mac, client, guest, "good too")})
	if n, _, err = l.ReadFrom(buf); err != nil || string(buf[:n]) != "good too" {
		t.Errorf("the guest got %q, %v", buf[:n], err)
	}
}

// TestEarly: what waits for its connection is bounded, in packets and in bytes.
func TestEarly(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	from, at := netip.MustParseAddrPort(nodetest.LANHost+":4000"), netip.MustParseAddrPort(nodetest.GuestFixed+":7")
	small, large := datagram(mac, from, at, "small"), datagram(mac, from, at, strings.Repeat("large", 10000))
	for _, tt := range []struct {
		name  string
		frame []byte
		want  int
	}{{"many", small, unread.MaxFrames}, {"long ones", large, unread.MaxBytes / len(large)}} {
		t.Run(tt.name, func(t *testing.T) {
			w := &writer{journey: new(journey), inward: map[flows.Key]bool{}}
			for range unread.MaxFrames + 1 {
				w.give([][]byte{tt.frame})
			}
			if len(w.early) != tt.want || w.size != tt.want*len(tt.frame) {
				t.Errorf("%d packets of %d bytes are kept, want %d", len(w.early), w.size, tt.want)
			}
		})
	}
}

// newWriter writes into a pod as while a guest moves there.
func newWriter(t *testing.T, pod *nodetest.Pod, macs ...string) *writer {
	t.Helper()
	table, err := flows.Open(pod.File)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	return &writer{
		journey: new(journey), table: table, bindings: nodetest.Describe(floatip.Owner{}, fifty).Bindings,
		held: map[flows.Key]flows.Entry{}, inward: map[flows.Key]bool{}, ns: pod.File, bridge: "k6t-eth0", macs: macs, stale: patience,
	}
}

// inwardFrom is a connection of UDP from a port of the host on the LAN to the guest.
func inwardFrom(port uint16) flows.Entry {
	host, guest := netip.MustParseAddr(nodetest.LANHost), netip.MustParseAddr(nodetest.GuestFixed)
	return flows.Entry{
		Protocol: unix.IPPROTO_UDP, Timeout: 30,
		Original: flows.Tuple{Source: host, SourcePort: port, Destination: fifty, DestinationPort: 7},
		Reply:    flows.Tuple{Source: guest, SourcePort: 7, Destination: host, DestinationPort: port},
	}
}

// TestApplyChanges: the pod's kernel is kept as the old node says until the guest is there, and then knows better; it is told
// nothing that is no connection of the guest by its floating address, and nobody can make it forget what it was not told.
func TestApplyChanges(t *testing.T) {
	t.Parallel()
	pod := nodetest.NewWorld(t).AddNode("10").AddPod("a", "100.0.0.1")
	w := newWriter(t, pod)
	tracked := func() (ports []uint16) {
		t.Helper()
		entries, err := flows.Read(pod.File, w.bindings)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			ports = append(ports, e.Original.SourcePort)
			if e.Status != w.held[e.Key()].Status && !w.journey.hasArrived() {
				t.Errorf("port %d has the status %d", e.Original.SourcePort, e.Status)
			}
		}
		slices.Sort(ports)
		return ports
	}
	is := func(when string, fresh [3]uint64, ports ...uint16) {
		t.Helper()
		have := w.fresh()
		if now := tracked(); !slices.Equal(now, ports) || have != fresh || len(w.connections()) != 0 {
			t.Errorf("%s: ports %v, counted %v; want %v and %v", when, now, have, ports, fresh)
		}
	}
	answered := func(e flows.Entry) flows.Entry {
		e.Status = 1 << 1 // IPS_SEEN_REPLY
		return e
	}
	foreign, clash := inwardFrom(4002), inwardFrom(4000)
	foreign.Reply.Source = netip.MustParseAddr("10.0.2.9")
	// The answers of another connection look the same.
	clash.Original, clash.Reply = flows.Tuple{
		Source: clash.Reply.Source, SourcePort: 99, Destination: clash.Original.Source, DestinationPort: 4000,
	}, flows.Tuple{Source: clash.Original.Source, SourcePort: 4000, Destination: fifty, DestinationPort: 7}
	if err := w.table.Put(inwardFrom(5000), false); err != nil {
		t.Fatal(err)
	}
	w.apply(flows.Changes{Put: []flows.Entry{inwardFrom(4000), answered(inwardFrom(4001)), foreign}})
	is("at first", [3]uint64{2, 1, 0}, 4000, 4001, 5000)
	w.apply(flows.Changes{Put: []flows.Entry{answered(inwardFrom(4000)), clash}, Remove: []flows.Key{inwardFrom(5000).Key()}})
	is("changed", [3]uint64{1, 0, 1}, 4000, 4001, 5000)
	w.apply(flows.Changes{Remove: []flows.Key{inwardFrom(4001).Key()}})
	is("ended", [3]uint64{}, 4000, 5000)
	if len(w.held) != 1 {
		t.Errorf("%d connections came along, want one", len(w.held))
	}
	w.journey.arrive(time.Now())
	w.apply(flows.Changes{Put: []flows.Entry{inwardFrom(4000), inwardFrom(4003)}, Remove: []flows.Key{inwardFrom(4000).Key()}})
	is("the guest is there", [3]uint64{2, 0, 0}, 4000, 4003, 5000)
	entries, err := flows.Read(pod.File, w.bindings)
	for _, e := range entries {
		if e.Original.SourcePort == 4000 && e.Status == 0 {
			t.Errorf("an entry of the kernel was replaced when the guest was there: %+v, %v", e, err)
		}
	}
}

// TestTakeOverAsks: who takes over asks for its own pod, and asks again with the key that the source's agent has published since
// it was started anew. What it was told is counted.
func TestTakeOverAsks(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.start()
	pod := b.node.AddPod("1", "100.0.0.1")
	identity, err := peer.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	const address = "127.0.0.1:9449"
	l, err := peer.Listen(b.node.File, address)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan string, 16)
	source := &peer.Source{
		Identity: identity, Log: b.agent.Log, Expected: func(string) bool { return true }, Wait: patience,
		Departure: func(machine, pod string) (peer.Departure, peer.Standing, <-chan struct{}) {
			select {
			case asked <- machine + " " + pod:
			default:
			}
			return peer.Departure{
				Key: b.agent.exchange.identity.Fingerprint(), Arrived: func() {},
				Flows: func() ([]flows.Entry, error) { return []flows.Entry{inwardFrom(4000)}, nil },
				Heard: func() (time.Time, bool) { return time.Time{}, false },
			}, peer.Leaving, nil
		},
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = source.Serve(t.Context(), l)
	}()
	t.Cleanup(func() { <-served })
	complaint := make(firstLine, 1)
	s := newSession(t.Context(), "", slog.New(slog.NewTextHandler(complaint, nil)), func() {})
	t.Cleanup(s.cancel)
	ns, err := duplicate(pod.File)
	if err != nil {
		t.Fatal(err)
	}
	s.journey.claimFlows(floatip.NodeAgent{Address: address, Key: "of an agent that was"})
	g := granted(Staged, func(g *Grant) {
		g.Pod.Name, g.Pod.Machine.UID = "p2", "m"
		g.NAT = nodetest.Describe(floatip.Owner{}, fifty)
	})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.agent.takeOver(s, ns, g, g.NAT.Bindings)
	}()
	<-complaint
	s.journey.claimFlows(floatip.NodeAgent{Address: address, Key: identity.Fingerprint()})
	select {
	case question := <-asked:
		if question != "m p2" {
			t.Errorf("asked for %q, want the machine and its pod", question)
		}
	case <-time.After(patience):
		t.Fatal("the agent that was started anew is not asked")
	}
	s.journey.arrive(time.Now())
	<-ended
	b.tells(`floatip_move_connections_total{result="` + flowResults[0] + `"} 1`)
}
