package bench

import (
	"net/netip"
	"testing"

	"floatip.io/floatip"
	"floatip.io/floatip/nat"
	"floatip.io/floatip/test/lab"
)

// path is one way from the client on the provider LAN to a guest. All of them cross the same LAN, the same node and a pod
// with a bridge; they differ in how the node reaches the pod, and in what the pod translates.
type path struct {
	name    string
	vm      *lab.VM
	address [2]string // what the client calls, IPv4 and IPv6
}

// Names of the paths. The first is the limit beside which the others are shown.
const (
	plainRouting = "plain routing"
	masquerade   = "masquerade"
	floatingIP   = "floating IP"
	walled       = "with 1000 entries" // a floating address behind a firewall of that many
)

// newPaths makes a cloud with one VM for each path.
func newPaths(b *testing.B) (*lab.Cloud, []path) {
	b.Helper()
	c := lab.NewCloud(b)
	plain, masqueraded, floating, closed := c.AddVM(b, 1), c.AddVM(b, 2), c.AddVM(b, 3), c.AddVM(b, 4)
	routed := routePlainly(b, c, plain)
	masqueraded.KubeVirt(b)
	for option, pod := range map[string]string{"": masqueraded.Pod4, "-6 ": masqueraded.Pod6} {
		node := map[string]string{"": lab.Node4, "-6 ": lab.Node6}[option]
		c.Host.IP(b, option+"route add "+pod+" via "+node)
	}
	for vm, firewall := range map[*lab.VM]*floatip.Firewall{floating: nil, closed: manyEntries()} {
		vm.KubeVirt(b)
		vm.PlugLeg(b)
		install(b, vm, firewall)
	}
	return c, []path{
		{plainRouting, plain, routed},
		{masquerade, masqueraded, [2]string{masqueraded.Pod4, masqueraded.Pod6}},
		{floatingIP, floating, [2]string{floating.Floating4, floating.Floating6}},
		{walled, closed, [2]string{closed.Floating4, closed.Floating6}},
	}
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

// install writes floatip's rules into the pod of vm, both families.
func install(b *testing.B, vm *lab.VM, firewall *floatip.Firewall) {
	b.Helper()
	binding := func(floating, fixed, gateway, network string) floatip.Binding {
		return floatip.Binding{
			Floating: netip.MustParseAddr(floating), Fixed: netip.MustParseAddr(fixed),
			Gateway: netip.MustParseAddr(gateway), GuestNetwork: netip.MustParsePrefix(network),
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
