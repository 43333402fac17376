package nodetest

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Addresses of the World.
const (
	Pool        = "192.168.100.0/24"
	Gateway     = "192.168.100.1"
	NodeAddress = "192.168.100.10"
	LANHost     = "192.168.100.200"
	Beyond      = "203.0.113.9" // behind the gateway
	Peer        = "201.0.0.254" // in the cluster
	GuestFixed  = "10.0.2.2"

	Pool6    = "2001:db8:100::/64"
	Gateway6 = "2001:db8:100::1"
	LANHost6 = "2001:db8:100::200"
	Beyond6  = "2001:db8:bad::9"
	Peer6    = "fd20::254"

	GuestFixed6 = "fd10:0:2::2"
)

// ClusterNetworks of the World: pods, nodes.
var ClusterNetworks = []string{"100.0.0.0/16", "201.0.0.0/24", "fd30::/64", "fd20::/64"}

// World is one provider LAN with hosts, and the cluster's side.
type World struct {
	t                  testing.TB
	LAN, Host, Cluster *Namespace
	nodes              int
}

// Node is a node of the World.
type Node struct {
	*Namespace
	world  *World
	number string // the last byte of its addresses
}

// Pod is a pod with a guest behind a bridge, as KubeVirt's masquerade binding makes it.
type Pod struct {
	*Namespace
	Guest *Namespace
	IP    string
}

// NewWorld makes the LAN, the host on it (which is also the gateway and the host beyond it), and the cluster.
func NewWorld(t testing.TB) *World {
	t.Helper()
	w := &World{t: t, LAN: NewNamespace(t), Host: NewNamespace(t), Cluster: NewNamespace(t)}
	w.LAN.Cable("host", w.Host, "eth0")
	w.LAN.Bridge("br", "host")
	w.Host.Address("eth0", Gateway+"/24", LANHost+"/24", Gateway6+"/64", LANHost6+"/64")
	w.Host.Address("lo", Beyond+"/32", Beyond6+"/128")
	w.Cluster.Bridge("green")
	w.Cluster.Address("green", Peer+"/24", Peer6+"/64")
	return w
}

// AddNode connects a node with its red NIC to the LAN and with its green one to the cluster. Both filter by reverse
// path strictly. number is the last byte of the node's addresses.
func (w *World) AddNode(number string) *Node {
	w.t.Helper()
	n := &Node{Namespace: NewNamespace(w.t), world: w}
	w.LAN.Cable("n"+number, n.Namespace, "red0")
	w.LAN.Enslave("br", "n"+number)
	n.Cable("green0", w.Cluster, "g"+number)
	n.Address("red0", "192.168.100."+number+"/24", "2001:db8:100::"+number+"/64")
	n.Address("green0", "201.0.0."+number+"/24", "fd20::"+number+"/64")
	w.Cluster.Enslave("green", "g"+number)
	n.Route("0.0.0.0/0", Peer, "green0")
	if w.nodes++; w.nodes == 1 {
		// The cluster knows the way to the pods and the pool by the first node; pods of others have routes of their own.
		w.Cluster.Route("100.0.0.0/16", "201.0.0."+number, "green")
		w.Cluster.Route("192.168.100.0/24", "201.0.0."+number, "green")
		w.Cluster.Route("fd30::/64", "fd20::"+number, "green")
		w.Cluster.Route(Pool6, "fd20::"+number, "green")
	}
	n.number = number
	n.Sysctl("ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1", "ipv4/conf/all/rp_filter=1",
		"ipv4/conf/red0/rp_filter=1", "ipv4/conf/green0/rp_filter=1")
	n.settle(Gateway)
	n.settle(Gateway6)
	n.settle(Peer)
	n.settle(Peer6)
	return n
}

// AddPod makes a pod with the address, routed to it, and with a guest.
func (n *Node) AddPod(name, address string) *Pod {
	n.t.Helper()
	p := n.AddWaitingPod(name, address)
	p.Guest = NewNamespace(n.t)
	// The guest's NIC is a bridge, so that its cable can be exchanged for one to another pod.
	p.Guest.Bridge("eth0")
	if err := p.Guest.Link.LinkSetHardwareAddr(p.Guest.Get("eth0"), guestMAC(address)); err != nil {
		n.t.Fatalf("address of the guest: %v", err)
	}
	p.plugGuest()
	p.Guest.Address("eth0", GuestFixed+"/24", "fd10:0:2::2/120")
	p.Guest.Route("0.0.0.0/0", "10.0.2.1", "eth0")
	p.Guest.Route("::/0", "fd10:0:2::1", "eth0")
	p.Guest.settle("10.0.2.1")
	p.Guest.settle("fd10:0:2::1")
	return p
}

// bridgeMAC is what KubeVirt gives to the bridge in every pod, so that a guest that migrates finds its gateway where it
// was (pkg/network/setup/netpod/masquerade).
var bridgeMAC = net.HardwareAddr{2, 0, 0, 0, 0, 0}

// AddWaitingPod makes a pod whose bridge has no guest yet: the target of a migration.
func (n *Node) AddWaitingPod(name, address string) *Pod {
	n.t.Helper()
	p := &Pod{Namespace: NewNamespace(n.t), IP: address}
	n.world.Cluster.Route(address+"/32", "201.0.0."+n.number, "green")
	n.world.Cluster.Route(podAddress6(address)+"/128", "fd20::"+n.number, "green")
	n.Cable("cali"+name, p.Namespace, "eth0")
	p.Address("eth0", address+"/32")
	p.Route("0.0.0.0/0", "169.254.1.1", "eth0")
	n.Route(address+"/32", "", "cali"+name)
	p.Address("eth0", podAddress6(address)+"/128")
	p.Sysctl("ipv6/conf/eth0/accept_dad=0")
	n.Address("cali"+name, "fe80::ca11/64")
	p.Route("::/0", "fe80::ca11", "eth0")
	n.Route(podAddress6(address)+"/128", "", "cali"+name)
	n.Sysctl("ipv4/conf/cali"+name+"/proxy_arp=1", "ipv4/neigh/cali"+name+"/proxy_delay=0")
	p.Bridge("k6t-eth0")
	if err := p.Link.LinkSetHardwareAddr(p.Get("k6t-eth0"), bridgeMAC); err != nil {
		n.t.Fatalf("address of the bridge: %v", err)
	}
	p.Address("k6t-eth0", "10.0.2.1/24", "fd10:0:2::1/120")
	p.Sysctl("ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1", "ipv4/conf/eth0/rp_filter=1", "ipv4/conf/all/rp_filter=1")
	n.settle(address)
	n.settle(podAddress6(address))
	return p
}

// guestMAC makes one of the pod's address.
func guestMAC(address string) net.HardwareAddr {
	a := netip.MustParseAddr(address).As4()
	return net.HardwareAddr{0x52, 0x54, a[0], a[1], a[2], a[3]}
}

// plugGuest lays a cable between the pod's bridge and the guest.
func (p *Pod) plugGuest() {
	p.Cable("tap0", p.Guest, p.guestPort())
	p.Enslave("k6t-eth0", "tap0")
	p.Guest.Enslave("eth0", p.guestPort())
}

func (p *Pod) guestPort() string { return "to" + p.IP[strings.LastIndex(p.IP, ".")+1:] }

// Receive moves the guest of another pod into this one, with its addresses and its open connections. The other pod keeps
// its end of the cable without a carrier, as a tap device stays there that qemu has closed; its bridge forgets the guest.
// Nothing is heard of the guest here before it speaks.
func (p *Pod) Receive(from *Pod) {
	p.t.Helper()
	p.Guest, from.Guest = from.Guest, nil
	if _, err := p.Link.LinkByName("tap0"); err == nil { // it was here before
		p.Guest.Enslave("eth0", p.guestPort())
	} else {
		p.plugGuest()
	}
	// A port passes nothing before the kernel's worker has noticed its carrier, up to a second later. Qemu opens the device
	// seconds before the guest comes.
	p.WaitUp("tap0")
	p.Guest.WaitUp(p.guestPort())
	p.Guest.Release(from.guestPort())
	p.Guest.Down(from.guestPort())
}

// Tap makes a tap device as KubeVirt does, which stays when it is closed, and opens it as qemu does. It is up once it is in a
// bridge. Each read and write is of one frame, behind a virtio_net_hdr.
func (n *Namespace) Tap(name string) *os.File {
	n.t.Helper()
	var tap *os.File
	n.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq(name)
		if err == nil {
			request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		if err == nil {
			err = unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
		}
		tap = os.NewFile(uintptr(fd), name)
		return err
	})
	n.t.Cleanup(func() { tap.Close() })
	return tap
}

// IP6 is the pod's IPv6 address.
func (p *Pod) IP6() string { return podAddress6(p.IP) }

// podAddress6 returns the IPv6 address of the pod with this IPv4 address: fd30::5 beside 100.0.0.5.
func podAddress6(address string) string {
	return "fd30::" + address[strings.LastIndex(address, ".")+1:]
}

// Listen makes a TCP listener inside the namespace, closed at the end of the test.
func (n *Namespace) Listen(address string) net.Listener {
	n.t.Helper()
	var l net.Listener
	n.Do(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	n.t.Cleanup(func() { l.Close() })
	return l
}
