package leg

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"floatip.io/floatip/nat/node/nodetest"
)

var compareNet = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, t := range texts {
		list = append(list, netip.MustParsePrefix(t))
	}
	return list
}

func TestFind(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("192.168.100.10")}
	red := NIC{Name: "red0", Up: true, MTU: 9000, Networks: prefixes("192.168.100.0/24"), Own: own}
	green := NIC{Name: "green0", Up: true, MTU: 1500, Networks: prefixes("201.0.0.0/24")}
	port := NIC{Name: "eth1", Master: "br-ext", MasterKind: "bridge", Up: true, MTU: 1500}
	bridge := NIC{Name: "br-ext", Up: true, MTU: 1500, Networks: prefixes("192.168.100.0/24"), Own: own}
	naked := NIC{Name: "red0", Up: true, MTU: 1500}
	wide := NIC{Name: "wan0", Up: true, MTU: 1500, Networks: prefixes("192.168.0.0/16")}
	down := NIC{Name: "red0", MTU: 1500, Networks: prefixes("192.168.100.0/24"), Own: own}
	routed := NIC{Name: "red0", MTU: 1500, Networks: prefixes("192.168.100.0/24"), Own: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	for _, tt := range []struct {
		name  string
		nics  []NIC
		want  Provider
		found Network
		err   string
	}{
		{"by its address", []NIC{green, red}, Provider{}, Network{Interface: "red0", MTU: 9000}, ""},
		{"by its name", []NIC{green, red}, Provider{Interface: "red0"}, Network{Interface: "red0", MTU: 9000}, ""},
		{"a port leads by its bridge", []NIC{port, bridge}, Provider{Interface: "eth1"}, Network{Interface: "br-ext", MTU: 1500}, ""},
		{"re-found on the bridge", []NIC{port, bridge}, Provider{}, Network{Interface: "br-ext", MTU: 1500}, ""},
		{"without an address, by name and network", []NIC{naked}, Provider{Interface: "red0", Networks: prefixes("192.168.100.0/24")},
			Network{Interface: "red0", MTU: 1500, Bare: true}, ""},
		{"by its route, with an address of another network", []NIC{routed}, Provider{}, Network{Interface: "red0", MTU: 1500, Bare: true}, ""},
		{"without an address, network unknown", []NIC{naked}, Provider{Interface: "red0"}, Network{}, "the pool names no network"},
		{"the narrower network is nearer", []NIC{wide, red}, Provider{}, Network{Interface: "red0", MTU: 9000}, ""},
		{"a wider network is no sign of the pool's", []NIC{wide}, Provider{Networks: prefixes("192.168.100.0/24")}, Network{}, "none has"},
		{"two are on it", []NIC{red, bridge}, Provider{}, Network{}, "interfaces red0 and br-ext"},
		{"none is on it", []NIC{green}, Provider{}, Network{}, "none has an address or a route"},
		{"it is down, and stays the one", []NIC{green, down}, Provider{}, Network{Interface: "red0", MTU: 1500}, ""},
		{"the name does not exist", []NIC{green}, Provider{Interface: "red0"}, Network{}, "it has no red0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.want.Address = floating
			tt.want.Gateways = []netip.Addr{netip.MustParseAddr("192.168.100.1")}
			found, err := Find(tt.nics, tt.want)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("have %+v, %v; want an error with %q", found, err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			tt.found.Prefix, tt.found.Gateway = netip.MustParsePrefix("192.168.100.0/24"), netip.MustParseAddr("192.168.100.1")
			if diff := cmp.Diff(tt.found, found, compareNet); diff != "" {
				t.Errorf("network (-want +got):\n%s", diff)
			}
		})
	}
}

// TestKindsOfNICs: what the kernel tells of links that not every kernel can make, and which of them leads to the provider
// network, by its address and by the name of each.
func TestKindsOfNICs(t *testing.T) {
	mac, _ := net.ParseMAC("02:00:00:00:00:01")
	attrs := func(index int, name string, master, parent int) netlink.LinkAttrs {
		return netlink.LinkAttrs{
			Index: index, Name: name, MasterIndex: master, ParentIndex: parent, MTU: 1500, Flags: net.FlagUp, HardwareAddr: mac,
		}
	}
	eth0, eth1 := &netlink.Device{LinkAttrs: attrs(2, "eth0", 0, 0)}, &netlink.Device{LinkAttrs: attrs(3, "eth1", 9, 0)}
	free := &netlink.Device{LinkAttrs: attrs(3, "eth1", 0, 0)}
	for _, tt := range []struct {
		name  string
		links []netlink.Link
		has   string            // the address
		leads map[string]string // by the name in the pool; an error that has the words
	}{
		{"a VLAN on a trunk", []netlink.Link{free, &netlink.Vlan{LinkAttrs: attrs(9, "eth1.100", 0, 3), VlanId: 100}}, "eth1.100",
			map[string]string{"": "eth1.100", "eth1.100": "eth1.100", "eth1": "eth1"}},
		{"a bond", []netlink.Link{eth1, &netlink.Bond{LinkAttrs: attrs(9, "bond0", 0, 0)}}, "bond0",
			map[string]string{"": "bond0", "bond0": "bond0", "eth1": "bond0"}},
		{"a VLAN on a bond", []netlink.Link{eth1, &netlink.Bond{LinkAttrs: attrs(9, "bond0", 0, 0)},
			&netlink.Vlan{LinkAttrs: attrs(10, "bond0.100", 0, 9), VlanId: 100}}, "bond0.100",
			map[string]string{"": "bond0.100", "bond0.100": "bond0.100"}},
		{"a team", []netlink.Link{eth1, &netlink.GenericLink{LinkAttrs: attrs(9, "team0", 0, 0), LinkType: "team"}}, "team0",
			map[string]string{"": "team0", "eth1": "team0"}},
		{"a bridge on a VLAN on a bond", []netlink.Link{
			&netlink.Device{LinkAttrs: attrs(3, "eth1", 8, 0)}, &netlink.Bond{LinkAttrs: attrs(8, "bond0", 0, 0)},
			&netlink.Vlan{LinkAttrs: attrs(10, "bond0.100", 9, 8), VlanId: 100}, &netlink.Bridge{LinkAttrs: attrs(9, "br-ext", 0, 0)}}, "br-ext",
			map[string]string{"": "br-ext", "bond0.100": "br-ext", "eth1": "bond0"}},
		{"a bridge on a bond", []netlink.Link{
			&netlink.Device{LinkAttrs: attrs(3, "eth1", 8, 0)}, &netlink.Bond{LinkAttrs: attrs(8, "bond0", 9, 0)},
			&netlink.Bridge{LinkAttrs: attrs(9, "br-ext", 0, 0)}}, "br-ext",
			map[string]string{"": "br-ext", "eth1": "br-ext", "bond0": "br-ext"}},
		{"Open vSwitch", []netlink.Link{eth1, &netlink.GenericLink{LinkAttrs: attrs(9, "ovs-system", 0, 0), LinkType: "openvswitch"},
			&netlink.GenericLink{LinkAttrs: attrs(10, "br-ex", 0, 0), LinkType: "openvswitch"}}, "br-ex",
			map[string]string{"": "br-ex", "br-ex": "br-ex", "eth1": "port of Open vSwitch"}},
		{"a VRF", []netlink.Link{eth1, &netlink.Vrf{LinkAttrs: attrs(9, "blue", 0, 0), Table: 10}}, "eth1",
			map[string]string{"": "in the VRF blue", "eth1": "in the VRF blue"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			byIndex, _ := nicsOf(append(tt.links, eth0))
			var nics []NIC
			for _, nic := range byIndex {
				if nic.Name == tt.has {
					nic.Networks, nic.Own = prefixes(nodetest.Pool), []netip.Addr{netip.MustParseAddr("192.168.100.10")}
				}
				nics = append(nics, *nic)
			}
			for name, want := range tt.leads {
				found, err := Find(nics, Provider{Address: floating, Networks: prefixes(nodetest.Pool), Interface: name})
				if found.Interface != want && (err == nil || !errors.Is(err, ErrNoNIC) || !strings.Contains(err.Error(), want)) {
					t.Errorf("named %q: have %q, %v; want %q", name, found.Interface, err, want)
				}
			}
		})
	}
}

// TestNICs reads a real node: pods' routes of a single address are no networks, and the bridge of the legs is no NIC.
func TestNICs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.addPod("a", "100.0.0.5", floating)
	r.apply()
	nics, err := r.kernel.NICs(r.holding())
	if err != nil {
		t.Fatal(err)
	}
	found, err := Find(nics, Provider{Address: floating})
	if err != nil || found.Interface != "red0" || found.Prefix.String() != nodetest.Pool {
		t.Errorf("have %+v, %v; want red0 on %s", found, err, nodetest.Pool)
	}
	own := netip.MustParseAddr("192.168.100.10")
	if i := slices.IndexFunc(nics, func(n NIC) bool { return n.Name == "red0" }); !slices.Contains(nics[i].Own, own) {
		t.Errorf("%s is not among red0's own addresses: %+v", own, nics[i])
	}
	if slices.ContainsFunc(nics, func(n NIC) bool { return isPort(n.Name) }) {
		t.Errorf("links of our own are among the NICs: %+v", nics)
	}
	r.node.Bridge("br-ext", "red0")
	if err := r.node.Link.AddrDel(r.node.Get("red0"), parseAddr(t, "192.168.100.10/24")); err != nil {
		t.Fatal(err)
	}
	r.node.Address("br-ext", "192.168.100.10/24")
	if nics, err = r.kernel.NICs(r.holding()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "red0"} {
		found, err := Find(nics, Provider{Address: floating, Interface: name})
		if err != nil || found.Interface != "br-ext" {
			t.Errorf("bridged, looked for by %q: have %+v, %v; want br-ext", name, found, err)
		}
	}
	if _, err := Find(nics, Provider{Address: netip.MustParseAddr("198.51.100.1")}); !errors.Is(err, ErrNoNIC) {
		t.Errorf("have %v, want ErrNoNIC", err)
	}
}

// TestOwnAddresses: what is the node's, and what only stands on one of its links.
func TestOwnAddresses(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, name := range []string{"pod0", "uplink0"} {
		if err := r.node.Link.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-peer"}); err != nil {
			t.Fatal(err)
		}
		r.node.Up(name)
	}
	r.node.Address("pod0", "10.244.1.1/32", "fd24::1/128")
	r.node.Address("uplink0", "172.30.0.10/24", "172.30.0.99/32") // the second as of keepalived
	nics, err := r.kernel.NICs(r.holding())
	if err != nil {
		t.Fatal(err)
	}
	own := map[string][]netip.Addr{}
	for _, nic := range nics {
		own[nic.Name] = nic.Own
		slices.SortFunc(nic.Own, netip.Addr.Compare)
	}
	if got := own["pod0"]; len(got) > 0 {
		t.Errorf("a pod's gateway is among the node's own addresses: %v", got)
	}
	want := []netip.Addr{netip.MustParseAddr("172.30.0.10"), netip.MustParseAddr("172.30.0.99")}
	if diff := cmp.Diff(want, own["uplink0"], compareNet); diff != "" {
		t.Errorf("of an uplink (-want +got):\n%s", diff)
	}
	// There is no dummy link on every kernel: kube-proxy's has the addresses of services.
	for kind, stands := range map[string]bool{"dummy": true, "veth": true, "device": false, "bridge": false, "bond": false, "vlan": false} {
		if got := standsIn(kind, nil); got != stands {
			t.Errorf("a %s without a network stands for something else: %t, want %t", kind, got, stands)
		}
		if standsIn(kind, prefixes("192.168.100.0/24")) {
			t.Errorf("the addresses of a %s on a network are not the node's", kind)
		}
	}
}
