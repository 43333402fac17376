package bench

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"floatip.io/floatip"
	"floatip.io/floatip/nat"
	"floatip.io/floatip/nat/node/fastpath"
	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/test/lab"
)

// path is one way from a client on a provider LAN to a guest. All of them cross the same kind of LAN, node and pod with a
// bridge; they differ in how the node reaches the pod, and in what the pod translates.
type path struct {
	name    string
	client  *lab.Namespace
	vm      *lab.VM
	address [2]string // what the client calls, IPv4 and IPv6
}

// Names of the paths. The first is the limit beside which the others are shown.
const (
	plainRouting = "plain routing"
	masquerade   = "masquerade"        // on a node without floatip
	withoutBrNF  = "without bridge-nf" // the same, and br_netfilter does not work in the pod
	bridged      = "CNI bridge"        // masquerade, the pod behind a bridge of the node, where br_netfilter works too
	beside       = "beside"            // masquerade on a node with floating addresses: what floatip costs the others
	floatingIP   = "floating IP"
	walled       = "1000 entries" // a floating address behind a firewall of that many
	slow         = "ordinary way" // a floating address without the fast path
)

// newPaths makes a cloud with floating addresses and one without, and one VM for each path.
func newPaths(b *testing.B) []path {
	b.Helper()
	bare, c := lab.NewBareCloud(b), lab.NewCloud(b)
	plain := bare.AddVM(b, 1)
	paths := []path{{plainRouting, bare.Host, plain, routePlainly(b, bare, plain)}}
	for n, p := range []struct {
		name  string
		cloud *lab.Cloud
	}{{masquerade, bare}, {withoutBrNF, bare}, {beside, c}, {bridged, bare}} {
		paths = append(paths, masqueraded(b, p.cloud, p.name, p.cloud.AddVM(b, n+2)))
	}
	bare.BridgePod(b, paths[4].vm)
	if bridgeNetfilter(paths[2]) != "absent" {
		paths[2].vm.Pod.Sysctl(b, "net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0")
	}
	floating, closed, ordinary := c.AddVM(b, 6), c.AddVM(b, 7), c.AddVM(b, 8)
	plug(b, c, []*lab.VM{floating, closed}, ordinary)
	for vm, firewall := range map[*lab.VM]*floatip.Firewall{floating: nil, closed: manyEntries(), ordinary: nil} {
		vm.KubeVirt(b)
		install(b, vm, firewall)
	}
	return append(paths,
		path{floatingIP, c.Host, floating, [2]string{floating.Floating4, floating.Floating6}},
		path{walled, c.Host, closed, [2]string{closed.Floating4, closed.Floating6}},
		path{slow, c.Host, ordinary, [2]string{ordinary.Floating4, ordinary.Floating6}})
}

// masqueraded is the path to vm by its pod's address, through KubeVirt's own table.
func masqueraded(b *testing.B, c *lab.Cloud, name string, vm *lab.VM) path {
	b.Helper()
	vm.KubeVirt(b)
	c.Host.IP(b, "route add "+vm.Pod4+" via "+lab.Node4, "-6 route add "+vm.Pod6+" via "+lab.Node6)
	return path{name, c.Host, vm, [2]string{vm.Pod4, vm.Pod6}}
}

// plug makes the legs of the VMs as the node agent does, by its own code. Those of ordinary are not on the fast path.
func plug(b *testing.B, c *lab.Cloud, vms []*lab.VM, ordinary ...*lab.VM) {
	b.Helper()
	network := func(prefix, gateway string) leg.Network {
		return leg.Network{
			Prefix: netip.MustParsePrefix(prefix), Gateway: netip.MustParseAddr(gateway), Interface: "eth1", MTU: 1500,
		}
	}
	config := leg.Config{Networks: []leg.Network{
		network("192.168.64.0/18", "192.168.100.1"), network("2001:db8:100::/64", "2001:db8:100::1"),
	}}
	for _, pods := range lab.Pods {
		config.ClusterNetworks = append(config.ClusterNetworks, netip.MustParsePrefix(pods))
	}
	kernel, err := leg.Open(open(b, c.Node), leg.DefaultSysctls)
	if err != nil {
		b.Fatal(err)
	}
	defer kernel.Close()
	holding, err := kernel.Holding()
	if err != nil {
		b.Fatal(err)
	}
	for _, vm := range slices.Concat(vms, ordinary) {
		addresses, uid := []netip.Addr{netip.MustParseAddr(vm.Floating4), netip.MustParseAddr(vm.Floating6)}, vm.Pod4
		pod := open(b, vm.Pod)
		if _, err := kernel.Plug(&holding, uid, pod); err != nil {
			b.Fatal(err)
		}
		if _, err := leg.ApplyPod(pod, leg.DefaultSysctls, leg.Pod{UID: uid, Addresses: addresses, MTU: 1500}); err != nil {
			b.Fatal(err)
		}
		config.Legs = append(config.Legs, leg.Leg{Pod: uid, Addresses: addresses})
	}
	if _, err := kernel.ApplyTo(holding, config); err != nil {
		b.Fatal(err)
	}
	config.Legs = config.Legs[:len(vms)]
	if _, err := fastpath.Open(open(b, c.Node), leg.DefaultSysctls).Apply(config, holding.Links); err != nil {
		b.Fatal(err)
	}
}

// open returns the namespace as a file.
func open(b *testing.B, n *lab.Namespace) *os.File {
	b.Helper()
	f, err := os.Open(n.Path())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	return f
}

// routePlainly makes the guest reachable under addresses of its own, with connection tracking in the pod and no
// translation anywhere. The node's protection against spoofing would not let them pass, so it goes.
func routePlainly(b *testing.B, c *lab.Cloud, vm *lab.VM) [2]string {
	b.Helper()
	const guest4, guest6 = "100.0.2.1", "fd00:100::2:1"
	c.Host.IP(b, "route add "+guest4+" via "+lab.Node4, "-6 route add "+guest6+" via "+lab.Node6)
	c.Node.NFT(b, "delete element inet cni pods { cni-vm1 }")
	c.Node.IP(b, "route add "+guest4+" via "+vm.Pod4, "-6 route add "+guest6+" via "+vm.Pod6)
	vm.Pod.IP(b, "route add "+guest4+" dev k6t-eth0", "-6 route add "+guest6+" dev k6t-eth0")
	vm.Guest.IP(b, "addr add "+guest4+"/32 dev eth0", "-6 addr add "+guest6+"/128 dev eth0 nodad",
		"route replace default via "+lab.Router4+" src "+guest4,
		"-6 route replace default via "+lab.Router6+" src "+guest6)
	vm.Pod.NFT(b, "table inet track { chain forward { type filter hook forward priority 0; ct state established counter; }; }")
	return [2]string{guest4, guest6}
}

// manyEntries admits the client and 499 other hosts in each family.
func manyEntries() *floatip.Firewall {
	f := &floatip.Firewall{Egress: floatip.Admitted{Everything: true}}
	for _, client := range []string{lab.Host4, lab.Host6} {
		host := netip.MustParseAddr(client)
		for n := range 500 {
			if n > 0 {
				host = host.Next().Next() // neighbours would be one interval
			}
			entry, err := floatip.ParseEntry(host.String() + " any")
			if err != nil {
				panic("bench: " + err.Error())
			}
			f.Ingress.Entries = append(f.Ingress.Entries, entry)
		}
	}
	return f
}

// install writes floatip's rules into the pod of vm, both families, with its port list.
func install(b *testing.B, vm *lab.VM, firewall *floatip.Firewall) {
	b.Helper()
	var ports []floatip.Port
	for _, l := range vm.Ports {
		ports = append(ports, floatip.Port{
			Protocol: strings.ToUpper(l.Protocol), Number: uint16(l.Number), Last: uint16(l.Last),
		})
	}
	binding := func(floating, fixed, gateway, network string) floatip.Binding {
		return floatip.Binding{
			Floating: netip.MustParseAddr(floating), Fixed: netip.MustParseAddr(fixed),
			Gateway: netip.MustParseAddr(gateway), GuestNetwork: netip.MustParsePrefix(network), Ports: ports,
		}
	}
	p := floatip.PodNAT{
		Version: floatip.PodNATVersion, Owner: floatip.Owner{Namespace: "shop", Name: "web"},
		Interface: floatip.DefaultGuestInterface, Firewall: firewall,
		Bindings: []floatip.Binding{
			binding(vm.Floating4, lab.Guest4, lab.Router4, "10.0.2.0/24"),
			binding(vm.Floating6, lab.Guest6, lab.Router6, "fd10:0:2::/120"),
		},
	}
	for _, pods := range lab.Pods {
		p.ClusterNetworks = append(p.ClusterNetworks, netip.MustParsePrefix(pods))
	}
	kernel, err := nat.Open(nat.Config{NetNS: vm.Pod.FD()})
	if err != nil {
		b.Fatal(err)
	}
	defer kernel.Close()
	if err := kernel.Apply(nat.Desired(p)); err != nil {
		b.Fatal(err)
	}
}
