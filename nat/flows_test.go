package nat

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"floatip.io/floatip"
	"floatip.io/floatip/test/lab"
)

const (
	patience = 30 * time.Second       // for an answer that must come
	silence  = 400 * time.Millisecond // for one that must not
)

// podNAT is the description that the webhook would write for vm.
func podNAT(vm *lab.VM) floatip.PodNAT {
	binding := func(floating, fixed, gateway, network string) floatip.Binding {
		return floatip.Binding{
			Floating: netip.MustParseAddr(floating), Fixed: netip.MustParseAddr(fixed),
			Gateway: netip.MustParseAddr(gateway), GuestNetwork: netip.MustParsePrefix(network), Ports: ports(vm.Ports),
		}
	}
	p := floatip.PodNAT{
		Version: floatip.PodNATVersion, Owner: floatip.Owner{Namespace: "shop", Name: "web", UID: "4711"},
		Interface: vm.Shape.Bridge(),
		Bindings: []floatip.Binding{
			binding(vm.Floating4, vm.Shape.Guest4, vm.Shape.Router4, vm.Shape.Network4),
			binding(vm.Floating6, vm.Shape.Guest6, vm.Shape.Router6, vm.Shape.Network6),
		},
		ClusterNetworks: []netip.Prefix{
			netip.MustParsePrefix(lab.Node4 + "/32"), netip.MustParsePrefix(lab.Node6 + "/128"),
		},
	}
	for _, pods := range lab.Pods {
		p.ClusterNetworks = append(p.ClusterNetworks, netip.MustParsePrefix(pods))
	}
	return p
}

func ports(list []lab.Port) (out []floatip.Port) {
	for _, p := range list {
		name := map[string]string{"tcp": "TCP", "udp": "UDP"}[p.Protocol]
		out = append(out, floatip.Port{Protocol: name, Number: uint16(p.Number), Last: uint16(p.Last)})
	}
	return out
}

// flow is one line of a flow table.
type flow struct {
	from, to string // a place of the cloud; to may be a floating address: "vm1's"
	protocol string
	port     int
	seenAs   string // "" for silence
}

// world is a cloud with names for its places.
type world struct {
	*lab.Cloud
	vms    map[string]*lab.VM
	places map[string]*lab.Namespace
	names  map[string][2]string // address of each place and name, IPv4 and IPv6
}

// newPlugged is a world with one VM that has KubeVirt's rules and its leg, and what writes into its pod.
func newPlugged(t *testing.T) (*world, *lab.VM, *Kernel) {
	t.Helper()
	w := newWorld(t, map[string][]lab.Port{"vm1": nil})
	vm := w.vms["vm1"]
	vm.KubeVirt(t)
	vm.PlugLeg(t)
	return w, vm, openKernel(t, vm.Pod)
}

func newWorld(t *testing.T, vms map[string][]lab.Port) *world {
	t.Helper()
	c := lab.NewCloud(t)
	w := &world{Cloud: c, vms: map[string]*lab.VM{}}
	w.places = map[string]*lab.Namespace{"host": c.Host, "outside": c.Outside, "node": c.Node, "peer": c.Peer}
	w.names = map[string][2]string{
		"host": {lab.Host4, lab.Host6}, "outside": {lab.Outside4, lab.Outside6}, "node": {lab.Node4, lab.Node6},
		"peer": {lab.Peer4, lab.Peer6},
	}
	for _, ns := range w.places {
		ns.Serve(t, 22, 80)
	}
	n := 0
	for _, name := range []string{"vm1", "vm2"} {
		ports, ok := vms[name]
		if n++; !ok {
			continue
		}
		w.add(t, name, c.AddVM(t, n, ports...))
	}
	return w
}

func (w *world) add(t *testing.T, name string, vm *lab.VM) {
	vm.Guest.Serve(t, 22, 53, 80, 5060, 7777)
	w.vms[name], w.places[name] = vm, vm.Guest
	w.names[name+"'s"] = [2]string{vm.Floating4, vm.Floating6}
	w.names[name+"'s pod"] = [2]string{vm.Pod4, vm.Pod6}
}

func (w *world) address(t *testing.T, name string, family int) string {
	t.Helper()
	pair, ok := w.names[name]
	if !ok {
		t.Fatalf("no place %q", name)
	}
	return pair[family]
}

// check walks a flow table, once in IPv4 and once in IPv6.
func (w *world) check(t *testing.T, flows []flow) {
	t.Helper()
	for family := range familyNames {
		w.checkFamily(t, flows, family)
	}
}

var familyNames = []string{"IPv4", "IPv6"}

func (w *world) checkFamily(t *testing.T, flows []flow, family int) {
	t.Helper()
	for _, f := range flows {
		t.Run(fmt.Sprintf("%s/%s to %s %s %d", familyNames[family], f.from, f.to, f.protocol, f.port), func(t *testing.T) {
			w.checkFlow(t, f, family)
		})
	}
}

func (w *world) checkFlow(t *testing.T, f flow, family int) {
	t.Helper()
	to := w.address(t, f.to, family)
	if f.seenAs == "" {
		if seen, err := w.places[f.from].Ask(f.protocol, to, f.port, 0, silence); err == nil {
			t.Fatalf("want silence, have an answer to %s", seen)
		}
		return
	}
	seen, err := w.places[f.from].Ask(f.protocol, to, f.port, 0, patience)
	if err != nil {
		t.Fatal(err)
	}
	if want := w.address(t, f.seenAs, family); f.protocol != "icmp" && seen.Addr().String() != want {
		t.Errorf("seen as %s, want %s", seen.Addr(), want)
	}
}

func TestFlows(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string][]lab.Port{"vm1": nil, "vm2": nil})
	for _, vm := range w.vms {
		vm.KubeVirt(t)
		vm.PlugLeg(t)
		if err := openKernel(t, vm.Pod).Apply(Desired(podNAT(vm))); err != nil {
			t.Fatal(err)
		}
	}
	var flows []flow
	for _, protocol := range []string{"tcp", "udp", "icmp"} {
		flows = append(flows,
			flow{"host", "vm1's", protocol, 22, "host"},
			flow{"outside", "vm1's", protocol, 80, "outside"},
			flow{"node", "vm1's", protocol, 22, "node"},
			flow{"peer", "vm1's", protocol, 22, "peer"},
			flow{"vm1", "host", protocol, 80, "vm1's"},
			flow{"vm1", "outside", protocol, 80, "vm1's"},
			flow{"vm1", "peer", protocol, 80, "vm1's pod"},
			flow{"vm1", "node", protocol, 80, "vm1's pod"},
			flow{"vm1", "vm1's", protocol, 80, "vm1's"},
			flow{"vm1", "vm2's", protocol, 80, "vm1's"},
			flow{"vm2", "vm1's", protocol, 80, "vm2's"},
			flow{"peer", "vm1's pod", protocol, 80, "peer"},
		)
	}
	w.check(t, flows)
}

// A VM that lists ports is reached at those and by ping. Other calls die without an answer and without going in circles,
// from everywhere, the guest itself included.
func TestListedPorts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string][]lab.Port{"vm1": {{Protocol: "tcp", Number: 22}, {Protocol: "udp", Number: 80}}, "vm2": nil})
	vm := w.vms["vm1"]
	for _, vm := range w.vms {
		vm.KubeVirt(t)
		vm.PlugLeg(t)
		if err := openKernel(t, vm.Pod).Apply(Desired(podNAT(vm))); err != nil {
			t.Fatal(err)
		}
	}
	w.check(t, []flow{
		{"host", "vm1's", "tcp", 22, "host"},
		{"outside", "vm1's", "tcp", 22, "outside"},
		{"node", "vm1's", "tcp", 22, "node"},
		{"peer", "vm1's", "udp", 80, "peer"},
		{"vm2", "vm1's", "tcp", 22, "vm2's"},
		{"vm1", "vm2's", "tcp", 80, "vm1's"},
		{"peer", "vm1's pod", "tcp", 22, "peer"},
		{"vm1", "node", "udp", 80, "vm1's pod"},
		{"host", "vm1's", "udp", 80, "host"},
		{"host", "vm1's", "icmp", 0, "host"},
		{"vm1", "vm1's", "tcp", 22, "vm1's"},
		{"vm1", "outside", "tcp", 80, "vm1's"},
		{"vm1", "outside", "udp", 22, "vm1's"},
		{"vm1", "peer", "tcp", 80, "vm1's pod"},
	})
	countCalls(t, w, vm)
	w.check(t, []flow{
		{"host", "vm1's", "tcp", 80, ""},
		{"host", "vm1's", "udp", 22, ""},
		{"outside", "vm1's", "tcp", 7777, ""},
		{"peer", "vm1's", "tcp", 80, ""},
		{"vm2", "vm1's", "udp", 22, ""},
		{"node", "vm1's", "tcp", 80, ""},
		{"vm1", "vm1's", "tcp", 80, ""},
	})
	// Per family: 6 calls by the leg, of one packet each; a SYN may be repeated once.
	if n := calls(t, w); n < 12 || n > 24 {
		t.Errorf("12 calls of unlisted ports made %d packets on the leg, want one or two for each", n)
	}
	countedRefusals(t, vm, 7)
}

// countedRefusals looks at what the pod counted: that many packets refused for each floating address, or more, traffic both
// ways, and nothing of a guest that lies about its address.
func countedRefusals(t *testing.T, vm *lab.VM, refused uint64) {
	t.Helper()
	counters, err := openKernel(t, vm.Pod).Counters()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range counters {
		if c.Refused.Packets < refused || c.In.Packets == 0 || c.Out.Packets == 0 || c.Guarded.Packets != 0 {
			t.Errorf("counters of %s: want %d or more refused, traffic both ways and none guarded, have %+v", c.Floating, refused, c)
		}
	}
}

// countCalls counts from now on what the node sends to the floating addresses of vm by the leg. Neighbour discovery is
// not among it: it is for other addresses.
func countCalls(t *testing.T, w *world, vm *lab.VM) {
	t.Helper()
	w.Node.NFT(t, fmt.Sprintf(`
table inet calls {
	counter calls { }
	chain out { type filter hook postrouting priority 300;
		oifname "fip*" ip daddr %s counter name calls
		oifname "fip*" ip6 daddr %s counter name calls
	}
}`, vm.Floating4, vm.Floating6))
}

func calls(t *testing.T, w *world) (n int) {
	t.Helper()
	listing := w.Node.Run(t, "", "nft", "list", "counter", "inet", "calls", "calls")
	_, figures, _ := strings.Cut(listing, "packets ")
	if _, err := fmt.Sscan(figures, &n); err != nil {
		t.Fatalf("%s: %v", listing, err)
	}
	return n
}

// NAT is one to one: addresses change, ports do not. Connections survive a migration because of that.
func TestPortsArePreserved(t *testing.T) { eachVariant(t, portsArePreserved) }

func portsArePreserved(t *testing.T, w *world, _ *lab.VM) {
	for family := range 2 {
		for i, f := range []flow{
			{"host", "vm1's", "tcp", 22, "host"}, {"vm1", "outside", "udp", 80, "vm1's"}, {"vm1", "vm1's", "tcp", 22, "vm1's"},
		} {
			port := 40000 + 10*family + i
			seen, err := w.places[f.from].Ask(f.protocol, w.address(t, f.to, family), f.port, port, patience)
			want := netip.AddrPortFrom(netip.MustParseAddr(w.address(t, f.seenAs, family)), uint16(port))
			if err != nil || seen != want {
				t.Errorf("%s to %s: want to be seen as %s, have %s, %v", f.from, f.to, want, seen, err)
			}
		}
	}
}

// eachVariant runs test with one VM whose rules stand, for each shape that the rules can have. Each has a world of its own,
// so they run side by side: most of their time the kernel takes to notice that links are up.
func eachVariant(t *testing.T, test func(t *testing.T, w *world, vm *lab.VM)) {
	t.Helper()
	t.Parallel()
	list := []lab.Port{{Protocol: "tcp", Number: 22}, {Protocol: "udp", Number: 80}, {Protocol: "udp", Number: 9999}}
	firewall := &floatip.Firewall{
		Ingress: admitted("0.0.0.0/0 tcp/22", "0.0.0.0/0 udp/80-9999", "::/0 tcp/22", "::/0 udp/80-9999"),
		Egress:  admitted("203.0.113.0/24 udp/80-9999", "2001:db8:f::/64 udp/80-9999"),
	}
	wide := []lab.Port{{Protocol: "tcp", Number: 22, Last: 79}, {Protocol: "udp", Number: 80, Last: 9999}}
	for name, variant := range map[string]struct {
		ports    []lab.Port
		firewall *floatip.Firewall
	}{
		"open": {nil, nil}, "ports": {list, nil}, "firewall": {nil, firewall}, "ports and firewall": {list, firewall},
		"port ranges": {wide, nil}, "port ranges and firewall": {wide, firewall},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, map[string][]lab.Port{"vm1": variant.ports})
			vm := w.vms["vm1"]
			vm.KubeVirt(t)
			vm.PlugLeg(t)
			p := podNAT(vm)
			p.Firewall = variant.firewall
			if err := openKernel(t, vm.Pod).Apply(Desired(p)); err != nil {
				t.Fatal(err)
			}
			test(t, w, vm)
		})
	}
}

// The rules may come before KubeVirt's commands, between any two, or after them.
func TestFlowsInWhateverOrderTheRulesCame(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		before int // of KubeVirt's commands
	}{{"before", 0}, {"halfway", 9}, {"after", 26}} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, map[string][]lab.Port{"vm1": nil})
			vm := w.vms["vm1"]
			commands := vm.KubeVirtCommands()
			runNFT(t, vm.Pod, commands[:tc.before])
			if err := openKernel(t, vm.Pod).Apply(Desired(podNAT(vm))); err != nil {
				t.Fatal(err)
			}
			runNFT(t, vm.Pod, commands[tc.before:])
			vm.PlugLeg(t)
			w.check(t, []flow{
				{"host", "vm1's", "tcp", 22, "host"},
				{"vm1", "outside", "tcp", 80, "vm1's"},
				{"vm1", "vm1's", "udp", 80, "vm1's"},
				{"vm1", "peer", "udp", 80, "vm1's pod"},
			})
		})
	}
}

// With br_netfilter at work in the pod, the frames of a guest that calls its own floating address are dropped by the
// bridge, which must not send a frame out of the port that it came in by. The node agent turns it off with the leg.
func TestOwnAddressNeedsBridgeNetfilterOff(t *testing.T) {
	if _, err := os.Stat("/proc/sys/net/bridge"); err != nil {
		if os.Getenv(lab.RootVariable) == "1" {
			t.Fatalf("this kernel has no br_netfilter, modprobe br_netfilter: %v", err)
		}
		t.Skipf("this kernel has no br_netfilter: %v", err)
	}
	eachVariant(t, func(t *testing.T, w *world, vm *lab.VM) {
		for value, seenAs := range map[string]string{"1": "", "0": "vm1's"} {
			vm.Pod.Sysctl(t, "net.bridge.bridge-nf-call-iptables="+value, "net.bridge.bridge-nf-call-ip6tables="+value)
			w.check(t, []flow{{"vm1", "vm1's", "udp", 80, seenAs}, {"host", "vm1's", "udp", 80, "host"}})
		}
	})
}

func runNFT(t *testing.T, ns *lab.Namespace, commands []string) {
	t.Helper()
	for _, c := range commands {
		ns.Run(t, "", "nft", c)
	}
}

// The firewall admits what its entries say, in both directions. Answers always pass, and the cluster and the guest's
// calls of itself are no business of the leg.
func TestFirewall(t *testing.T) {
	t.Parallel()
	w, vm, kernel := newPlugged(t)
	p := podNAT(vm)
	p.Firewall = &floatip.Firewall{
		Ingress: admitted("192.168.100.0/24 tcp/20-30", "203.0.113.9 icmp",
			"2001:db8:100::/64 tcp/20-30", "2001:db8:f::9 icmp"),
		Egress: admitted("192.168.100.9 any", "2001:db8:100::9 any"),
	}
	if err := kernel.Apply(Desired(p)); err != nil {
		t.Fatal(err)
	}
	w.check(t, []flow{
		{"host", "vm1's", "tcp", 22, "host"},
		{"host", "vm1's", "tcp", 80, ""},
		{"host", "vm1's", "udp", 22, ""},
		{"host", "vm1's", "icmp", 0, ""},
		{"outside", "vm1's", "tcp", 22, ""},
		{"outside", "vm1's", "icmp", 0, "outside"},
		{"vm1", "host", "tcp", 80, "vm1's"},
		{"vm1", "host", "udp", 22, "vm1's"},
		{"vm1", "outside", "tcp", 80, ""},
		{"vm1", "outside", "icmp", 0, ""},
		{"vm1", "vm1's", "tcp", 80, "vm1's"},
		{"vm1", "peer", "tcp", 80, "vm1's pod"},
	})
	p.Firewall = &floatip.Firewall{}
	if err := kernel.Apply(Desired(p)); err != nil {
		t.Fatal(err)
	}
	w.check(t, []flow{
		{"host", "vm1's", "tcp", 22, ""},
		{"vm1", "host", "tcp", 80, ""},
		{"vm1", "peer", "tcp", 80, "vm1's pod"},
	})
}
