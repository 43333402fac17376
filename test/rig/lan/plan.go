package lan

import (
	"fmt"
	"net/netip"
)

// The networks of the rig. The documentation prefixes are those of RFC 5737 and RFC 3849.
var (
	Green     = netip.MustParsePrefix("201.0.0.0/24")
	Green6    = netip.MustParsePrefix("2001:db8:201::/64")
	Provider  = netip.MustParsePrefix("192.168.100.0/24")
	Provider6 = netip.MustParsePrefix("2001:db8:100::/64")
	Outside   = netip.MustParsePrefix("203.0.113.0/24")
	Outside6  = netip.MustParsePrefix("2001:db8:203::/64")
	Pods      = netip.MustParsePrefix("100.0.0.0/16")
	Pods6     = netip.MustParsePrefix("fd00:100::/48")
	Services  = netip.MustParsePrefix("10.96.0.0/12")
)

// Where the API server listens, on node-1, and the service address that pods know it by.
var (
	APIServer         = netip.MustParseAddrPort("201.0.0.1:6443")
	KubernetesService = netip.MustParseAddrPort("10.96.0.1:443")
)

// Names of the network interfaces in a node.
const (
	GreenInterface    = "eth0"
	ProviderInterface = "eth1"
)

// MaxNodes follows from the host parts of the nodes' provider addresses, .11 to .49, below the pool of the demo.
const MaxNodes = 39

// Host is a namespace that plays one machine.
type Host struct {
	// Namespace is the path of its network namespace.
	Namespace string     `json:"namespace"`
	Address   netip.Addr `json:"address"`
	Address6  netip.Addr `json:"address6"`
}

// Node is a machine of the cluster. Its Host addresses are those on the green network.
type Node struct {
	Host
	// Name is the name of the Node object, node-1 onward.
	Name string `json:"name"`
	// Provider addresses are those on the provider network.
	Provider  netip.Addr `json:"provider"`
	Provider6 netip.Addr `json:"provider6"`
	// PodNetwork is the part of Pods that this node gives to its pods.
	PodNetwork  netip.Prefix `json:"podNetwork"`
	PodNetwork6 netip.Prefix `json:"podNetwork6"`
}

// port is one plug of a machine into a switch.
type port struct {
	bridge    string
	host      string // the namespace's path
	name      string // of the interface in the host
	addresses []netip.Prefix
}

// node returns the i-th node, counted from 1.
func (l *LAN) node(i int) Node {
	name := fmt.Sprintf("node-%d", i)
	return Node{
		Host:        Host{l.namespace(name), at(Green, i), at(Green6, i)},
		Name:        name,
		Provider:    at(Provider, 10+i),
		Provider6:   at(Provider6, 10+i),
		PodNetwork:  netip.PrefixFrom(at(Pods, i<<8), 24),
		PodNetwork6: netip.PrefixFrom(at(Pods6, i<<16), 112),
	}
}

// at returns the n-th address of a network.
func at(network netip.Prefix, n int) netip.Addr {
	raw := network.Masked().Addr().AsSlice()
	for i := len(raw) - 1; n > 0; i-- {
		n += int(raw[i])
		raw[i], n = byte(n), n>>8
	}
	address, _ := netip.AddrFromSlice(raw)
	return address
}

// in returns a with the prefix length of its network, as it is configured on an interface.
func in(a netip.Addr, network netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(a, network.Bits())
}
