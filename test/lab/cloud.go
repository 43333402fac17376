package lab

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// Cloud is a provider network with one node of a cluster:
//
//	Outside 203.0.113.9 ── Gateway .1 ──┬── Host 192.168.100.9          LAN 192.168.100.0/24, 2001:db8:100::/64
//	                                    └── Node 192.168.100.11 ──┬── Peer 100.0.0.9                   a pod
//	                                                              └── VM: Pod 100.0.0.5 ── Guest 10.0.2.2
//
// The node routes to its pods by host routes, checks sources strictly, and lets a pod use no other address on its
// eth0, as CNIs with spoofing protection do. Floating addresses come to a VM's pod by a leg of its own.
type Cloud struct {
	Host, Outside, Gateway, Node, Peer *Namespace
}

// Addresses of the Cloud.
const (
	Host4, Host6       = "192.168.100.9", "2001:db8:100::9"
	Outside4, Outside6 = "203.0.113.9", "2001:db8:f::9"
	Node4, Node6       = "192.168.100.11", "2001:db8:100::11"
	Peer4, Peer6       = "100.0.0.9", "fd00:100::9"
	Guest4, Guest6     = "10.0.2.2", "fd10:0:2::2"
	Router4, Router6   = "10.0.2.1", "fd10:0:2::1" // the guest's gateway
)

// Pods are the networks that all pods of the Cloud are in.
var Pods = []string{"100.0.0.0/16", "fd00:100::/56"}

// NewCloud makes everything but VMs.
func NewCloud(t testing.TB) *Cloud {
	t.Helper()
	c := NewBareCloud(t)
	c.pools(t)
	return c
}

// NewBareCloud makes a Cloud whose node knows nothing of floating addresses. Taking the rules away again would not do: a
// kernel that once had a rule of somebody's looks into one table after the other ever after (fib_has_custom_rules).
func NewBareCloud(t testing.TB) *Cloud {
	t.Helper()
	c := &Cloud{
		Host: New(t, "host"), Outside: New(t, "outside"), Gateway: New(t, "gateway"), Node: New(t, "node"), Peer: New(t, "peer"),
	}
	c.lan(t)
	c.node(t)
	c.attachPod(t, c.Peer, "peer", "eth0", Peer4, Peer6)
	for _, ns := range []*Namespace{c.Host, c.Outside, c.Gateway, c.Peer} {
		ns.Settle(t)
	}
	return c
}

func (c *Cloud) lan(t testing.TB) {
	t.Helper()
	c.Gateway.IP(t, "link add lan type bridge", "link set lan up",
		"addr add 192.168.100.1/24 dev lan", "-6 addr add 2001:db8:100::1/64 dev lan nodad")
	c.Gateway.Sysctl(t, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	for _, n := range []struct {
		ns     *Namespace
		device string
	}{{c.Host, "eth0"}, {c.Node, "eth1"}} {
		Connect(t, c.Gateway, "to-"+n.ns.name, n.ns, n.device)
		c.Gateway.IP(t, fmt.Sprintf("link set to-%s master lan", n.ns.name))
	}
	c.Host.IP(t, "addr add "+Host4+"/24 dev eth0", "route add default via 192.168.100.1",
		"-6 addr add "+Host6+"/64 dev eth0 nodad", "-6 route add default via 2001:db8:100::1")
	Connect(t, c.Gateway, "wan", c.Outside, "eth0")
	c.Gateway.IP(t, "addr add 203.0.113.1/24 dev wan", "-6 addr add 2001:db8:f::1/64 dev wan nodad")
	c.Outside.IP(t, "addr add "+Outside4+"/24 dev eth0", "route add default via 203.0.113.1",
		"-6 addr add "+Outside6+"/64 dev eth0 nodad", "-6 route add default via 2001:db8:f::1")
}

func (c *Cloud) node(t testing.TB) {
	t.Helper()
	c.Node.Sysctl(t, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1",
		"net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1")
	c.Node.IP(t, "addr add "+Node4+"/24 dev eth1", "-6 addr add "+Node6+"/64 dev eth1 nodad")
	c.cni(t)
	c.Node.IP(t, "route add default via 192.168.100.1", "-6 route add default via 2001:db8:100::1")
}

// pools makes what the node agent makes once per pool.
func (c *Cloud) pools(t testing.TB) {
	t.Helper()
	c.Node.Sysctl(t, "net.ipv4.neigh.eth1.proxy_delay=0", "net.ipv6.neigh.eth1.proxy_delay=0", "net.ipv6.conf.eth1.proxy_ndp=1")
	for _, f := range []struct{ option, pool, gateway, shorter string }{
		{"", "192.168.100.0/24", "192.168.100.1", "31"}, {"-6 ", "2001:db8:100::/64", "2001:db8:100::1", "127"},
	} {
		c.Node.IP(t, f.option+"rule add pref 5004 to "+f.pool+" lookup 7101 suppress_prefixlength "+f.shorter,
			f.option+"rule add pref 5002 iif lo goto 5004", f.option+"rule add pref 5002 iif eth1 goto 5004",
			f.option+"rule add pref 5003 from "+f.pool+" lookup 7101",
			f.option+"route add "+f.pool+" dev eth1 table 7101",
			f.option+"route add default via "+f.gateway+" dev eth1 table 7101")
	}
	c.Node.IP(t, "route add throw 100.0.0.0/16 table 7101", "-6 route add throw fd00:100::/56 table 7101")
}

// attachPod connects a pod as a routing CNI with spoofing protection does.
func (c *Cloud) attachPod(t testing.TB, pod *Namespace, name, link, pod4, pod6 string) {
	t.Helper()
	device := "cni-" + name
	Connect(t, c.Node, device, pod, link)
	c.Node.Sysctl(t, "net.ipv4.conf."+device+".proxy_arp=1", "net.ipv4.neigh."+device+".proxy_delay=0")
	c.Node.IP(t, "route add "+pod4+" dev "+device, "-6 addr add fe80::1/64 dev "+device+" nodad",
		"-6 route add "+pod6+" dev "+device)
	pod.IP(t, "addr add "+pod4+"/32 dev "+link, "route add 169.254.1.1 dev "+link, "route add default via 169.254.1.1",
		"-6 addr add "+pod6+"/128 dev "+link+" nodad", "-6 route add default via fe80::1 dev "+link)
	c.Node.NFT(t, fmt.Sprintf(`
add element inet cni pods { %[1]s }
add element inet cni own4 { %[1]s . %[2]s }
add element inet cni own6 { %[1]s . %[3]s }`, device, pod4, pod6))
}

// cni makes what a node has of network plugin and kube-proxy, in sets so that it costs the same for any number of pods.
// Pods have no route outside the cluster: as with most CNIs, the node masquerades them. Like kube-proxy's, the chain of
// forwarded packets looks at their state (KUBE-FORWARD in pkg/proxy/iptables/proxier.go).
func (c *Cloud) cni(t testing.TB) {
	t.Helper()
	c.Node.NFT(t, `
table inet cni {
	set pods { type ifname; }
	set own4 { type ifname . ipv4_addr; }
	set own6 { type ifname . ipv6_addr; }
	chain from { type filter hook prerouting priority raw;
		iifname . ip saddr @own4 accept
		iifname . ip6 saddr @own6 accept
		iifname @pods ip6 saddr { fe80::/10, :: } accept
		iifname @pods counter drop
	}
	chain to { type filter hook postrouting priority 300;
		oifname . ip daddr @own4 accept
		oifname . ip6 daddr @own6 accept
		oifname @pods ip6 daddr { fe80::/10, ff00::/8 } accept
		oifname @pods counter drop
	}
	chain forward { type filter hook forward priority filter;
		ct state invalid counter drop
		ct state established,related accept
	}
	chain outside { type nat hook postrouting priority srcnat;
		oifname eth1 ip saddr 100.0.0.0/16 masquerade
		oifname eth1 ip6 saddr fd00:100::/56 masquerade
	}
}`)
}

// BridgePod makes the VM's pod a port of the node's bridge cni0 in place of a routed link, as CNI's plugin "bridge" does and
// those that call it. Where br_netfilter is loaded, it works on this bridge too.
func (c *Cloud) BridgePod(t testing.TB, vm *VM) {
	t.Helper()
	port := "cni-" + vm.name
	c.Node.IP(t, "link add cni0 type bridge", "link set cni0 up", "-6 addr del fe80::1/64 dev "+port,
		"-6 addr add fe80::1/64 dev cni0 nodad", "link set "+port+" master cni0",
		"route replace "+vm.Pod4+" dev cni0", "-6 route replace "+vm.Pod6+" dev cni0")
	c.Node.Sysctl(t, "net.ipv4.conf.cni0.proxy_arp=1", "net.ipv4.neigh.cni0.proxy_delay=0")
	c.Node.NFT(t, fmt.Sprintf(`
add element inet cni pods { cni0 }
add element inet cni own4 { cni0 . %s }
add element inet cni own6 { cni0 . %s }`, vm.Pod4, vm.Pod6))
	c.Node.Settle(t)
}

// VM is a guest behind a virt-launcher pod.
type VM struct {
	Pod, Guest         *Namespace
	Pod4, Pod6         string
	Floating4          string
	Floating6          string
	Ports              []Port
	Shape              Shape
	cloud              *Cloud
	name, nodeEnd, mac string
}

// Shape is what a VirtualMachineInstance may choose of its pod's network.
type Shape struct {
	Link            string // the pod's, by the CNI; the guest's bridge is named after it
	Guest4, Router4 string
	Guest6, Router6 string
	// Network4 and Network6 are what guest and router are in.
	Network4, Network6 string
}

// Ordinary is the shape of a VM whose owner has not chosen any.
var Ordinary = Shape{
	Link: "eth0", Guest4: Guest4, Router4: Router4, Network4: "10.0.2.0/24",
	Guest6: Guest6, Router6: Router6, Network6: "fd10:0:2::/120",
}

// Bridge is the name that KubeVirt gives to the guest's bridge (pkg/network/link/names.go).
func (s Shape) Bridge() string { return "k6t-" + s.Link }

// AddVM makes pod and guest number n, 1 to 9, without any nft rule and without a leg. The guest gets its traffic through
// the pod's bridge k6t-eth0.
func (c *Cloud) AddVM(t testing.TB, n int, ports ...Port) *VM {
	t.Helper()
	return c.AddVMOf(t, n, Ordinary, ports...)
}

// AddVMOf is AddVM for a VM of another shape.
func (c *Cloud) AddVMOf(t testing.TB, n int, s Shape, ports ...Port) *VM {
	t.Helper()
	vm := &VM{
		cloud: c, name: fmt.Sprintf("vm%d", n), Ports: ports, Shape: s,
		Pod4: fmt.Sprintf("100.0.1.%d", n), Pod6: fmt.Sprintf("fd00:100::1:%d", n),
		Floating4: fmt.Sprintf("192.168.100.5%d", n), Floating6: fmt.Sprintf("2001:db8:100::5%d", n),
		nodeEnd: fmt.Sprintf("fip%d", n), mac: fmt.Sprintf("02:f1:00:00:01:0%d", n),
	}
	vm.Pod, vm.Guest = New(t, "pod-"+vm.name), New(t, "guest-"+vm.name)
	c.attachPod(t, vm.Pod, vm.name, s.Link, vm.Pod4, vm.Pod6)
	vm.Pod.Sysctl(t, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1",
		"net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1")
	bridge := s.Bridge()
	vm.Pod.IP(t, "link add "+bridge+" address 02:00:00:00:00:00 type bridge stp_state 0", "link set "+bridge+" up",
		"addr add "+s.Router4+bits(s.Network4)+" dev "+bridge, "-6 addr add "+s.Router6+bits(s.Network6)+" dev "+bridge+" nodad")
	Connect(t, vm.Pod, "tap0", vm.Guest, "eth0")
	vm.Pod.IP(t, "link set tap0 master "+bridge)
	vm.Guest.IP(t, "addr add "+s.Guest4+bits(s.Network4)+" dev eth0", "route add default via "+s.Router4,
		"-6 addr add "+s.Guest6+bits(s.Network6)+" dev eth0 nodad", "-6 route add default via "+s.Router6)
	vm.Pod.Settle(t)
	vm.Guest.Settle(t)
	return vm
}

// bits returns the length of a network's prefix, with its slash.
func bits(network string) string { return network[strings.IndexByte(network, '/'):] }

// KubeVirt runs KubeVirt's nft commands in the pod, both families.
func (vm *VM) KubeVirt(t testing.TB) {
	t.Helper()
	for _, command := range vm.KubeVirtCommands() {
		vm.Pod.Run(t, "", "nft", command)
	}
}

// KubeVirtCommands are the arguments of KubeVirt's nft commands for this VM, IPv4 first.
func (vm *VM) KubeVirtCommands() []string {
	s := vm.Shape
	v4 := Masquerade{Family: "ip", PodInterface: s.Link, Bridge: s.Bridge(), Guest: s.Guest4, Gateway: s.Router4, Ports: vm.Ports}
	v6 := Masquerade{Family: "ip6", PodInterface: s.Link, Bridge: s.Bridge(), Guest: s.Guest6, Gateway: s.Router6, Ports: vm.Ports}
	return append(v4.Commands(), v6.Commands()...)
}

// PlugLeg makes what the node agent makes for the VM's floating addresses: the link, routes and rules on both sides.
func (vm *VM) PlugLeg(t testing.TB) {
	t.Helper()
	node, pod := vm.cloud.Node, vm.Pod
	node.IP(t, fmt.Sprintf("link add %s address 02:f1:00:00:00:01 type veth peer name fip0 address %s netns %s",
		vm.nodeEnd, vm.mac, pod.Path()), fmt.Sprintf("link set %s up", vm.nodeEnd))
	for _, f := range []struct{ option, floating, bits string }{{"", vm.Floating4, "/32"}, {"-6 ", vm.Floating6, "/128"}} {
		node.IP(t, f.option+fmt.Sprintf("neigh replace %s lladdr %s dev %s nud permanent", f.floating, vm.mac, vm.nodeEnd),
			f.option+"route replace "+f.floating+f.bits+" dev "+vm.nodeEnd+" table 7101",
			f.option+"neigh add proxy "+f.floating+" dev eth1")
	}
	vm.podSide(t)
	pod.Settle(t)
	node.Settle(t)
}

func (vm *VM) podSide(t testing.TB) {
	t.Helper()
	pod := vm.Pod
	if _, err := os.Stat("/proc/sys/net/bridge"); err == nil {
		pod.Sysctl(t, "net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0")
	}
	pod.Sysctl(t, "net.netfilter.nf_conntrack_tcp_loose=1", "net.ipv4.conf.fip0.rp_filter=2")
	pod.IP(t, "link set fip0 up", "addr add 169.254.77.2/32 dev fip0 scope link",
		"neigh replace 169.254.77.1 lladdr 02:f1:00:00:00:01 dev fip0 nud permanent",
		"rule add pref 77 fwmark 0x77 lookup 77", "route add default via 169.254.77.1 dev fip0 onlink table 77",
		"route add blackhole "+vm.Floating4+"/32",
		"-6 neigh replace fe80::77 lladdr 02:f1:00:00:00:01 dev fip0 nud permanent",
		"-6 rule add pref 77 fwmark 0x77 lookup 77", "-6 route add default via fe80::77 dev fip0 onlink table 77",
		"-6 route add blackhole "+vm.Floating6+"/128")
}
