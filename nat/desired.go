package nat

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"floatip.io/floatip"
)

// local are the networks that never leave by the leg whatever the cluster looks like: link-local addresses, among them
// those of node-local DNS caches and of metadata services (RFC 3927, RFC 4291 section 2.5.6), and multicast (RFC 5771,
// RFC 4291 section 2.7).
var local = map[nftables.TableFamily][]netip.Prefix{
	nftables.TableFamilyIPv4: {
		netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/4"),
		netip.MustParsePrefix("255.255.255.255/32"),
	},
	nftables.TableFamilyIPv6: {netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8")},
}

// LocalNetworks returns the networks of one family that never leave by a floating address: link-local and multicast.
func LocalNetworks(v6 bool) []netip.Prefix {
	if v6 {
		return local[nftables.TableFamilyIPv6]
	}
	return local[nftables.TableFamilyIPv4]
}

// Desired returns what the kernel shall hold for p, which must be valid. A family without a binding gets nothing, and
// neither does a pod whose addresses are translated elsewhere.
func Desired(p floatip.PodNAT) (t Tables) {
	if !p.Delivery.InPod() {
		return t
	}
	for _, b := range p.Bindings {
		i := 0
		if b.Floating.Is6() {
			i = 1
		}
		t[i] = newBinding(p, b).table()
	}
	return t
}

// binding is one floating address with all that its rules need.
type binding struct {
	family
	floatip.Binding
	bridge   string // the guest's
	link     string // by which packets of the floating address come and go
	routed   bool   // the link is the CNI's, which carries other packets too
	cluster  []netip.Prefix
	firewall floatip.Firewall
}

// open is the firewall of a pod that nobody restricts.
var open = floatip.Firewall{Ingress: floatip.Admitted{Everything: true}, Egress: floatip.Admitted{Everything: true}}

// firewallOf returns the firewall of p.
func firewallOf(p floatip.PodNAT) floatip.Firewall {
	if p.Firewall == nil {
		return open
	}
	return *p.Firewall
}

func newBinding(p floatip.PodNAT, b floatip.Binding) binding {
	f := familyOf(b.Floating)
	cluster := append([]netip.Prefix{b.GuestNetwork}, local[f.id]...)
	for _, n := range p.ClusterNetworks {
		if n.Addr().Is4() == b.Floating.Is4() {
			cluster = append(cluster, n)
		}
	}
	made := binding{
		family: f, Binding: b, bridge: p.Interface, link: LegInterface, cluster: cluster, firewall: firewallOf(p),
	}
	if p.Delivery == floatip.DeliveryRouted {
		// KubeVirt names the bridge after the pod's interface (pkg/network/link/names.go).
		made.link, made.routed = strings.TrimPrefix(p.Interface, "k6t-"), true
	}
	return made
}

func (b binding) table() Table {
	t := Table{Counters: b.counters(), Sets: b.sets(), Chains: b.chains()}
	slices.Sort(t.Counters)
	slices.SortFunc(t.Sets, func(x, y Set) int { return strings.Compare(x.Name, y.Name) })
	slices.SortFunc(t.Chains, func(x, y Chain) int { return strings.Compare(x.Name, y.Name) })
	return t
}

// counter returns the name of a counter of the floating address. nft reads no colon in a name.
func (b binding) counter(kind string) string { return counterName(kind, b.Floating) }

func counterName(kind string, floating netip.Addr) string {
	return kind + strings.ReplaceAll(floating.String(), ":", "-")
}

func (b binding) counters() []string {
	return []string{b.counter(counterIn), b.counter(counterOut), b.counter(counterRefused), b.counter(counterGuarded)}
}

func (b binding) sets() []Set {
	sets := []Set{
		{Name: setCluster, Type: b.addressType.Name, Interval: true, Elements: Intervals(b.cluster)},
		{Name: setLinks, Type: nftables.TypeIFName.Name, Elements: keys(link(b.link), link(b.bridge))},
	}
	if len(b.Ports) > 0 {
		sets = append(sets, portSet(b.Ports))
	}
	if !b.firewall.Ingress.Everything {
		sets = append(sets, b.entrySet(setIngress, b.firewall.Ingress))
	}
	if !b.firewall.Egress.Everything {
		sets = append(sets, b.entrySet(setEgress, b.firewall.Egress))
	}
	return sets
}

// portType is the key of setPorts.
var portType = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)

// entrySet returns the set of one direction: address outside, protocol, port of the destination.
func (b binding) entrySet(name string, a floatip.Admitted) Set {
	set := Set{Name: name, Type: b.entryType().Name, Interval: true}
	for _, e := range a.Family(b.Floating.Is4()) {
		first, last := e.L4Protocols()
		set.Elements = append(set.Elements, Element{
			Key:  entryKey(e.Addresses.First, first, e.Ports.First),
			Last: entryKey(e.Addresses.Last, last, e.Ports.Last),
		})
	}
	slices.SortFunc(set.Elements, compareElements)
	return set
}

// entryKey pads protocol and port to a register of 4 bytes each.
func entryKey(address netip.Addr, protocol byte, port uint16) string {
	key := append(address.AsSlice(), protocol, 0, 0, 0)
	return string(append(binary.BigEndian.AppendUint16(key, port), 0, 0))
}

// portSet returns the VM's port list as a set. Only a range makes it one of intervals; a list of single ports is a hash
// table, as sidecars of releases without ranges write it.
func portSet(list []floatip.Port) Set {
	list = floatip.DisjointPorts(list)
	set := Set{Name: setPorts, Type: portType.Name}
	set.Interval = slices.ContainsFunc(list, func(p floatip.Port) bool { return !p.Single() })
	for _, p := range list {
		e := Element{Key: portKey(p.Protocol, p.Range().First)}
		if set.Interval {
			e.Last = portKey(p.Protocol, p.Range().Last)
		}
		set.Elements = append(set.Elements, e)
	}
	slices.SortFunc(set.Elements, compareElements)
	return set
}

// portKey pads protocol and port to a register of 4 bytes each.
func portKey(protocol string, port uint16) string {
	key := make([]byte, 8)
	key[0] = protocolNumber(protocol)
	binary.BigEndian.PutUint16(key[4:], port)
	return string(key)
}

func protocolNumber(name string) byte {
	if name == "UDP" {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

// keys returns sorted elements.
func keys(raw ...[]byte) (out []Element) {
	for _, k := range raw {
		out = append(out, Element{Key: string(k)})
	}
	slices.SortFunc(out, compareElements)
	return slices.Compact(out)
}

func compareElements(a, b Element) int {
	return cmp.Or(strings.Compare(a.Key, b.Key), strings.Compare(a.Last, b.Last))
}
