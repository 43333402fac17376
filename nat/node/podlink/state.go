package podlink

import (
	"cmp"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"floatip.io/floatip"
	"floatip.io/floatip/nat"
	"floatip.io/floatip/nat/node/leg"
)

// Names of sets and maps.
const (
	setAddresses  = "addresses"   // floating addresses
	setAdmitted   = "admitted"    // pod's address . source . protocol . port: who may open what
	setCluster    = "cluster"     // networks that keep the pod's address
	setExits      = "exits"       // links by which a floating address may leave
	setIn         = "counted_in"  // translated floating addresses, with a counter: admitted towards the guest
	setLinks      = "links"       // links of the pods
	setNetworks   = "networks"    // provider networks
	setOpen       = "open_to_all" // translated floating addresses that everybody may call
	setOut        = "counted_out" // translated floating addresses, with a counter: sent by the guest
	setOwn        = "own"         // pod's address . its floating address: a guest that calls itself
	setPods       = "pods"        // link . pod's address of translated pods
	setRefused    = "refused"     // translated floating addresses, with a counter: not admitted
	setSenders    = "senders"     // link . floating address that may be sent from there
	setTranslated = "translated"  // floating addresses that the node translates
	mapFrom       = "floating_of" // link . pod's address : floating address
	mapTo         = "pod_of"      // floating address : pod's address
)

// slotSets are the members of the networks with a mark: floating addresses, and links with pods' addresses.
func slotSets(mark uint32) (floating, pods string) {
	n := string('0' + byte(mark>>12))
	return "addresses" + n, "pods" + n
}

// slots are the marks that networks can have.
func slots() []uint32 { return []uint32{0x1000, 0x2000, 0x3000} }

// declaration is what a set is.
type declaration struct {
	Key                          nftables.SetDatatype
	Value                        nftables.SetDatatype // of a map
	Map, Interval, Concat, Count bool
}

// element is one element of one set, comparable. Keys and values are bytes in network order.
type element struct {
	Set, Key string
	Last     string // the last key of a range of concatenated fields
	End      bool   // the first key after an interval
}

// table is what one table shall hold, or holds. The zero table is none.
type table struct {
	// Rules is the text of all chains; "" stands for no table.
	Rules    string
	Elements map[element]string // to the value of a map's element
}

// layout is what of a table depends on nothing but the family.
type layout struct {
	v6     bool
	table  *nftables.Table
	size   uint32 // of an address, bytes
	sets   map[string]declaration
	chains []chain
}

const tableName = "floatip"

func newLayout(v6 bool) layout {
	l := layout{v6: v6, table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4}, size: 4}
	address := nftables.TypeIPAddr
	if v6 {
		l.table.Family, l.size, address = nftables.TableFamilyIPv6, 16, nftables.TypeIP6Addr
	}
	sender := nftables.MustConcatSetType(nftables.TypeIFName, address)
	entry := nftables.MustConcatSetType(address, address, nftables.TypeInetProto, nftables.TypeInetService)
	l.sets = map[string]declaration{
		setAddresses: {Key: address}, setOpen: {Key: address}, setTranslated: {Key: address},
		setIn: {Key: address, Count: true}, setOut: {Key: address, Count: true}, setRefused: {Key: address, Count: true},
		setOwn:      {Key: nftables.MustConcatSetType(address, address), Concat: true},
		setAdmitted: {Key: entry, Interval: true, Concat: true},
		setCluster:  {Key: address, Interval: true}, setNetworks: {Key: address, Interval: true},
		setExits: {Key: nftables.TypeIFName}, setLinks: {Key: nftables.TypeIFName},
		setPods: {Key: sender, Concat: true}, setSenders: {Key: sender, Concat: true},
		mapTo:   {Key: address, Value: address, Map: true},
		mapFrom: {Key: sender, Value: address, Map: true, Concat: true},
	}
	for _, mark := range slots() {
		floating, pods := slotSets(mark)
		l.sets[floating], l.sets[pods] = declaration{Key: address}, declaration{Key: sender, Concat: true}
	}
	l.chains = l.rules()
	return l
}

func layouts() []layout { return []layout{newLayout(false), newLayout(true)} }

// desired says what the table of the layout's family shall hold for c. It touches nothing.
func (l layout) desired(c Config) table {
	addresses := c.family(l.v6)
	if len(addresses) == 0 {
		return table{}
	}
	t := table{Rules: l.text(), Elements: map[element]string{}}
	put := func(set string, key []byte) { t.Elements[element{Set: set, Key: string(key)}] = "" }
	for _, name := range c.Exits {
		put(setExits, ifname(name))
	}
	interval := func(set string, networks []netip.Prefix) {
		for _, e := range nat.Intervals(networks) {
			t.Elements[element{Set: set, Key: e.Key, End: e.End}] = ""
		}
	}
	interval(setCluster, clusterOf(c.ClusterNetworks, l.v6))
	interval(setNetworks, ofFamily(c.Networks, l.v6))
	for _, a := range addresses {
		floating, sender := a.Floating.AsSlice(), senderKey(a.Link, a.Floating)
		ofNetwork, podsOfNetwork := slotSets(a.Mark & leg.MarkMask)
		put(setAddresses, floating)
		put(ofNetwork, floating)
		put(setExits, ifname(a.Link))
		put(setLinks, ifname(a.Link))
		if !a.Translate {
			put(setSenders, sender)
			continue
		}
		pod := senderKey(a.Link, a.Pod)
		put(setPods, pod)
		put(setOwn, slices.Concat(a.Pod.AsSlice(), floating))
		put(podsOfNetwork, pod)
		for _, set := range []string{setTranslated, setIn, setOut, setRefused} {
			put(set, floating)
		}
		t.Elements[element{Set: mapTo, Key: string(floating)}] = string(a.Pod.AsSlice())
		t.Elements[element{Set: mapFrom, Key: string(pod)}] = string(floating)
		l.admit(t, a)
	}
	return t
}

// admit makes the elements of who may open connections to a.
func (l layout) admit(t table, a Address) {
	if a.Ingress.Everything {
		t.Elements[element{Set: setOpen, Key: string(a.Floating.AsSlice())}] = ""
		return
	}
	for _, e := range a.Ingress.Family(!l.v6) {
		first, last := e.L4Protocols()
		t.Elements[element{
			Set:  setAdmitted,
			Key:  entryKey(a.Pod, e.Addresses.First, first, e.Ports.First),
			Last: entryKey(a.Pod, e.Addresses.Last, last, e.Ports.Last),
		}] = ""
	}
}

// clusterOf adds to the networks of a family those that never leave the cluster whatever it looks like.
func clusterOf(networks []netip.Prefix, v6 bool) []netip.Prefix {
	return append(ofFamily(networks, v6), nat.LocalNetworks(v6)...)
}

func ofFamily(networks []netip.Prefix, v6 bool) (of []netip.Prefix) {
	for _, n := range networks {
		if n.Addr().Is6() == v6 {
			of = append(of, n)
		}
	}
	return of
}

// ifname pads a name to IFNAMSIZ as the kernel compares it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func senderKey(link string, a netip.Addr) []byte { return append(ifname(link), a.AsSlice()...) }

// entryKey pads protocol and port to a register of 4 bytes each.
func entryKey(pod, from netip.Addr, protocol byte, port uint16) string {
	key := slices.Concat(pod.AsSlice(), from.AsSlice(), []byte{protocol, 0, 0, 0})
	return string(append(binary.BigEndian.AppendUint16(key, port), 0, 0))
}

// everyone is all addresses of the family of a.
func everyone(a netip.Addr) floatip.AddressRange {
	if a.Is4() {
		return floatip.AddressRange{
			First: netip.IPv4Unspecified(), Last: netip.AddrFrom4([4]byte{255, 255, 255, 255}),
		}
	}
	var last [16]byte
	for i := range last {
		last[i] = 0xff
	}
	return floatip.AddressRange{First: netip.IPv6Unspecified(), Last: netip.AddrFrom16(last)}
}

// change is what turns one table into another of the same rules.
type change struct{ Put, Remove []element }

// difference compares elements. One with another value is removed and put anew.
func difference(want, have table) (c change) {
	for e, value := range want.Elements {
		if old, ok := have.Elements[e]; !ok || old != value {
			c.Put = append(c.Put, e)
		}
	}
	for e, old := range have.Elements {
		if value, ok := want.Elements[e]; !ok || old != value {
			c.Remove = append(c.Remove, e)
		}
	}
	for _, list := range [][]element{c.Put, c.Remove} {
		slices.SortFunc(list, func(a, b element) int {
			return cmp.Or(cmp.Compare(a.Set, b.Set), cmp.Compare(a.Key, b.Key), cmp.Compare(a.Last, b.Last))
		})
	}
	return c
}

func (c change) empty() bool { return len(c.Put)+len(c.Remove) == 0 }

// translations returns the pod behind each translated address.
func (t table) translations() map[netip.Addr]netip.Addr {
	found := map[netip.Addr]netip.Addr{}
	for e, value := range t.Elements {
		if e.Set == mapTo {
			floating, _ := netip.AddrFromSlice([]byte(e.Key))
			pod, _ := netip.AddrFromSlice([]byte(value))
			found[floating] = pod
		}
	}
	return found
}

func sortedSets(m map[string]declaration) []string { return slices.Sorted(maps.Keys(m)) }
