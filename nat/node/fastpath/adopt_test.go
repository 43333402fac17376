package fastpath

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/flows"
	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/nat/node/nodetest"
)

// TestAdopt: of connections that began elsewhere those become flows that the node forwards, untranslated and in both
// directions, to where the fast path would send them; and connection tracking forgets these.
func TestAdopt(t *testing.T) {
	node, lan, other := nodetest.NewNamespace(t), nodetest.NewNamespace(t), nodetest.NewNamespace(t)
	port := leg.PortName("one")
	node.Cable("red0", lan, "eth0")
	node.Cable("green0", other, "eth0")
	node.Cable(port, nodetest.NewNamespace(t), "leg")
	node.Address("red0", "192.168.100.10/24", "2001:db8:100::10/64")
	node.Address("green0", "201.0.0.10/24")
	node.Route(fifty.String()+"/32", "", port)
	node.Route(fifty6.String()+"/128", "", port)
	node.Route(fifty.Next().String()+"/32", "", port)
	node.Route("0.0.0.0/0", "192.168.100.1", "red0")
	node.Route("::/0", "2001:db8:100::1", "red0")
	node.Route("203.0.113.0/24", "201.0.0.1", "green0")
	node.Route("192.168.100.77/32", "", "green0")
	node.Route("203.0.114.0/24", "192.168.100.9", "red0")
	node.Sysctl("ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1")
	n, c := Open(node.File, leg.DefaultSysctls), config()
	c.Legs = c.Legs[:1]
	apply(t, n, c)
	table, err := flows.Open(node.File)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })

	var all, want, rest []Connection
	for i, tt := range []struct {
		name     string
		outside  string
		floating netip.Addr
		out      bool // the guest's packet was the first one
		change   func(*flows.Entry)
		adopted  bool
	}{
		{"on the LAN", "192.168.100.7", fifty, false, nil, true},
		{"on the LAN, from the guest", "192.168.100.7", fifty, true, nil, true},
		{"beyond the gateway", "198.51.100.7", fifty, false, nil, true},
		{"IPv6", "2001:db8:100::7", fifty6, false, nil, true},
		{"IPv6 beyond, from the guest", "2001:db8:f::7", fifty6, true, nil, true},
		{"one direction", "192.168.100.7", fifty, false, func(e *flows.Entry) { e.Status = 0 }, false},
		{"about to end", "192.168.100.7", fifty, false, func(e *flows.Entry) { e.TCP.State = 4 }, false},
		{"another destination", "192.168.100.7", fifty, false,
			func(e *flows.Entry) { e.Reply.Source = netip.MustParseAddr("10.0.0.9") }, false},
		{"another source", "192.168.100.7", fifty, false,
			func(e *flows.Entry) { e.Reply.Destination = netip.MustParseAddr("10.0.0.9") }, false},
		{"in the cluster", "100.0.0.9", fifty, false, nil, false},
		{"the node itself", "192.168.100.10", fifty, false, nil, false},
		{"by another NIC", "203.0.113.7", fifty, false, nil, false},
		{"on the LAN by another NIC", "192.168.100.77", fifty, false, nil, false},
		{"by another gateway", "203.0.114.7", fifty, false, nil, false},
		{"no address of this node", "192.168.100.7", fifty.Next(), false, nil, false},
		{"not tracked", "192.168.100.7", fifty, false, func(e *flows.Entry) { e.Timeout = 0 }, false},
	} {
		one := Connection{
			Outside:  netip.AddrPortFrom(netip.MustParseAddr(tt.outside), uint16(1000+i)),
			Floating: netip.AddrPortFrom(tt.floating, uint16(2000+i)),
		}
		e := entryOf(one, tt.out)
		if tt.change != nil {
			tt.change(&e)
		}
		if e.Timeout > 0 {
			if err := table.Put(e, false); err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
		}
		all = append(all, one)
		if tt.adopted {
			want = append(want, one)
		} else {
			rest = append(rest, one)
		}
	}
	sameAs := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	left, err := n.Adopt(c, all)
	if diff := cmp.Diff(rest, left, sameAs); err != nil || diff != "" {
		t.Errorf("%v; not adopted (-want +got):\n%s", err, diff)
	}
	if diff := cmp.Diff(want, flowsIn(t, n), sameAs); diff != "" {
		t.Errorf("flows (-want +got):\n%s", diff)
	}
	if again, err := n.Adopt(c, want); err != nil || !cmp.Equal(want, again, sameAs) {
		t.Errorf("connections that the node does not track are adopted: %v, %v", again, err)
	}
	if again, err := n.Adopt(leg.Config{}, rest); err != nil || !cmp.Equal(rest, again, sameAs) {
		t.Errorf("without a leg: %v, %v", again, err)
	}
}

// entryOf is what a node tracks of an established connection. out: the first packet was the guest's.
func entryOf(c Connection, out bool) flows.Entry {
	in := flows.Tuple{
		Source: c.Outside.Addr(), SourcePort: c.Outside.Port(), Destination: c.Floating.Addr(), DestinationPort: c.Floating.Port(),
	}
	back := flows.Tuple{
		Source: in.Destination, SourcePort: in.DestinationPort, Destination: in.Source, DestinationPort: in.SourcePort,
	}
	if out {
		in, back = back, in
	}
	const seenReply, assured = 1 << 1, 1 << 2
	return flows.Entry{
		Protocol: unix.IPPROTO_TCP, Original: in, Reply: back, Timeout: 1000, Status: seenReply | assured,
		TCP: &flows.TCP{State: tcpEstablished},
	}
}

// flowsIn lists the flows of TCP, in the order of the guest's ports.
func flowsIn(t *testing.T, n *Node) (list []Connection) {
	t.Helper()
	k, err := n.open()
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	for _, f := range []family{ipv4, ipv6} {
		elements, err := k.nft.GetSetElements(f.flowSets()[0])
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range elements {
			outside, _ := netip.AddrFromSlice(e.Key[:f.size])
			floating, _ := netip.AddrFromSlice(e.Key[f.size : 2*f.size])
			ports := e.Key[2*f.size:]
			list = append(list, Connection{
				netip.AddrPortFrom(outside, uint16(ports[0])<<8|uint16(ports[1])),
				netip.AddrPortFrom(floating, uint16(ports[4])<<8|uint16(ports[5])),
			})
			if e.Timeout != Life {
				t.Errorf("a flow lives for %s, want %s", e.Timeout, Life)
			}
		}
	}
	slices.SortFunc(list, func(a, b Connection) int { return int(a.Floating.Port()) - int(b.Floating.Port()) })
	return list
}
