package node

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ndp"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/nat/node/nodetest"
)

var (
	everyone = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodes = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
)

// arpOf is an ARP packet that says that the address is at mac.
func arpOf(t *testing.T, op arp.Operation, mac net.HardwareAddr, a netip.Addr) []byte {
	t.Helper()
	p, err := arp.NewPacket(op, mac, a, everyone, a)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := p.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// packet6 is an IPv6 packet with a payload of the protocol.
func packet6(source, destination netip.Addr, protocol byte, payload []byte) []byte {
	head := make([]byte, 40)
	head[0], head[6], head[7] = 6<<4, protocol, 255
	binary.BigEndian.PutUint16(head[4:], uint16(len(payload)))
	copy(head[8:], source.AsSlice())
	copy(head[24:], destination.AsSlice())
	return append(head, payload...)
}

// advertisementOf is a neighbour advertisement from source that says that the address is at mac.
func advertisementOf(t *testing.T, source, a netip.Addr, mac net.HardwareAddr) []byte {
	t.Helper()
	to := netip.MustParseAddr("ff02::1")
	raw, err := ndp.MarshalMessageChecksum(&ndp.NeighborAdvertisement{
		Override: true, TargetAddress: a, Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: mac}},
	}, source, to)
	if err != nil {
		t.Fatal(err)
	}
	return packet6(source, to, unix.IPPROTO_ICMPV6, raw)
}

// TestHostileLauncher: whoever has a launcher pod's network in his hands speaks for his neighbour's addresses on the leg,
// by ARP and by neighbour discovery, and sends frames straight to the neighbour's leg. The neighbour stays reachable, its
// leg hears none of it, and the LAN neither.
func TestHostileLauncher(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.dualStack()
	victim := b.addVM(1, "192.168.100.50", "2001:db8:100::50")
	evil := b.addVM(2, "192.168.100.51", "2001:db8:100::51")
	b.start()
	b.publish()
	b.awaitReport("ready", ready("192.168.100.50", "2001:db8:100::50", "192.168.100.51", "2001:db8:100::51"))
	evil.Run("nft flush ruleset")

	mac := evil.Get("fip0").Attrs().HardwareAddr
	target := victim.Get("fip0").Attrs().HardwareAddr
	node := b.node.Get(leg.PortName(evil.entry.UID)).Attrs().HardwareAddr
	own6 := netip.MustParseAddr("2001:db8:100::51")
	neighbour, lan := victim.Frames("fip0"), b.world.Host.Frames("eth0")

	send := func(etherType uint16, payload []byte, to ...net.HardwareAddr) {
		for _, m := range to {
			evil.SendFrame("fip0", m, etherType, payload)
		}
	}
	for range 3 {
		send(unix.ETH_P_ARP, arpOf(t, arp.OperationRequest, mac, fifty), everyone, node, target)
		send(unix.ETH_P_ARP, arpOf(t, arp.OperationReply, mac, fifty), everyone, node, target)
		// From its own address, which may enter the bridge, and from the neighbour's, which may not.
		send(unix.ETH_P_IPV6, advertisementOf(t, own6, fifty6, mac), allNodes, node, target)
		send(unix.ETH_P_IPV6, advertisementOf(t, fifty6, fifty6, mac), allNodes, node, target)
		// Past the node's routes: from its own address, straight to the neighbour's Ethernet address.
		send(unix.ETH_P_IPV6, packet6(own6, fifty6, unix.IPPROTO_NONE, []byte("by a side door")), target, everyone)
	}
	// What comes after it in order shows that the frames had their time.
	b.answers("vm1", "192.168.100.50")
	said, err := b.world.Host.Ask("[2001:db8:100::50]:80", patience)
	if err != nil || !bytes.HasPrefix([]byte(said), []byte("vm1 sees")) {
		t.Errorf("the neighbour does not answer by IPv6: %q, %v", said, err)
	}
	for _, place := range []struct {
		name   string
		frames <-chan []byte
	}{{"the neighbour's leg", neighbour}, {"the LAN", lan}} {
		for more := true; more; {
			select {
			case f := <-place.frames:
				if bytes.Equal(f[6:12], mac) || bytes.Contains(f, mac) {
					t.Errorf("%s hears %x of the hostile pod", place.name, f)
				}
			default:
				more = false
			}
		}
	}
	for _, n := range []*nodetest.Namespace{b.node.Namespace} {
		list, err := n.Link.NeighList(n.Get(leg.PortName(victim.entry.UID)).Attrs().Index, unix.AF_UNSPEC)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range list {
			a, _ := netip.AddrFromSlice(entry.IP)
			if a = a.Unmap(); (a == fifty || a == fifty6) && !bytes.Equal(entry.HardwareAddr, target) {
				t.Errorf("the node has %s at %s, want %s", a, entry.HardwareAddr, target)
			}
		}
	}
	if s := b.agent.Status(); len(s.Addresses) != 4 || s.Addresses[0].Conflict != "" {
		t.Errorf("status is %+v, want four addresses without a conflict", s)
	}
}

// TestHostileGuest: a guest speaks for other addresses on the bridge in its pod, and sends under them. Nothing of that
// gets onto the leg. What the pod sends by its own interface is the CNI's business, which filters here as most do.
func TestHostileGuest(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.dualStack()
	b.addVM(1, "192.168.100.50", "2001:db8:100::50")
	evil := b.addVM(2, "192.168.100.51", "2001:db8:100::51")
	b.start()
	b.publish()
	b.awaitReport("ready", ready("192.168.100.50", "2001:db8:100::50", "192.168.100.51", "2001:db8:100::51"))
	b.node.Run("nft add table inet cni", "nft add chain inet cni from { type filter hook prerouting priority raw ; }",
		"nft add rule inet cni from iifname cali2 ip saddr != "+evil.IP+" drop",
		"nft add rule inet cni from iifname cali2 ip6 saddr != { fd30::2, fe80::/10, :: } drop")
	mac := evil.Guest.Get("eth0").Attrs().HardwareAddr
	lan, leg := b.world.Host.Frames("eth0"), evil.Frames("fip0")
	heard := b.hearUDP("192.168.100.200:9", "[2001:db8:100::200]:9")
	for range 3 {
		evil.Guest.SendFrame("eth0", everyone, unix.ETH_P_ARP, arpOf(t, arp.OperationRequest, mac, fifty))
		evil.Guest.SendFrame("eth0", allNodes, unix.ETH_P_IPV6, advertisementOf(t, fifty6, fifty6, mac))
	}
	// Packets under foreign addresses, the neighbour's and one of nobody, routed as the guest's own.
	evil.Guest.Address("lo", "192.168.100.50/32", "2001:db8:100::50/128", "192.168.100.77/32")
	for _, p := range [][2]string{
		{"192.168.100.50", "192.168.100.200:9"}, {"2001:db8:100::50", "[2001:db8:100::200]:9"},
		{"192.168.100.77", "192.168.100.200:9"}, {nodetest.GuestFixed, "192.168.100.200:9"},
	} {
		evil.Guest.SendMarked(0, p[0], p[1])
	}
	select {
	case from := <-heard:
		if from != "192.168.100.51" {
			t.Errorf("the LAN heard %s first, want the guest's own floating address, sent last", from)
		}
	case <-time.After(patience):
		t.Fatal("the LAN heard nothing, not even of what the guest may send")
	}
	b.answers("vm1", "192.168.100.50")
	for name, frames := range map[string]<-chan []byte{"the LAN": lan, "the leg": leg} {
		for more := true; more; {
			select {
			case f := <-frames:
				if bytes.Contains(f, mac) {
					t.Errorf("%s hears %x of the guest's Ethernet address", name, f)
				}
			default:
				more = false
			}
		}
	}
}
