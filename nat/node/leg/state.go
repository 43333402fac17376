package leg

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// state is what the kernel of the node holds, or shall hold, of ours. Everything in it is comparable, so that the
// difference of two states needs no special cases.
type state struct {
	ports      map[string]port         // the node's ends of the legs
	guards     map[string]string       // the guard's rules for each port, as text
	sources    map[string][]netip.Addr // what guards lets in, in a desired state
	rules      map[rule]struct{}
	routes     map[routeKey]route
	neighbours map[neighbour]mac // permanent entries on the ports
	proxies    map[proxy]struct{}
	sysctls    map[string]string // path below /proc/sys/net to value
	older      older             // never wanted
}

// port is the node's end of a leg with all settings that matter.
type port struct {
	Up, Enslaved bool // Enslaved: somebody put it into a bridge
	Ether        mac
	MTU          int
}

// plugged is how every port shall be.
func plugged(mtu int) port { return port{Up: true, Ether: nodeMAC, MTU: mtu} }

type rule struct {
	Priority int
	V6       bool
	In       string       // "" is any interface
	From, To netip.Prefix // the zero Prefix is any
	Mark     uint32
	Mask     uint32 // 0 is all bits
	Goto     int    // the priority of another rule; 0 looks into Table
	Table    int
	Hosts    bool // of Table only routes of single addresses count
}

func (r rule) String() string {
	s := fmt.Sprintf("rule %d:", r.Priority)
	if r.In != "" {
		s += " iif " + r.In
	}
	if r.From.IsValid() {
		s += " from " + r.From.String()
	}
	if r.To.IsValid() {
		s += " to " + r.To.String()
	}
	if r.Mark != 0 {
		s += fmt.Sprintf(" fwmark %#x", r.Mark)
	}
	if r.Mask != 0 {
		s += fmt.Sprintf("/%#x", r.Mask)
	}
	if r.Goto != 0 {
		return fmt.Sprintf("%s goto %d", s, r.Goto)
	}
	if r.Hosts {
		return fmt.Sprintf("%s lookup %d suppress_prefixlength %d", s, r.Table, r.shorter())
	}
	return fmt.Sprintf("%s lookup %d", s, r.Table)
}

// shorter is the longest prefix length, in bits, that is not that of a single address.
func (r rule) shorter() int {
	if r.V6 {
		return 127
	}
	return 31
}

type routeKey struct {
	Table int
	To    netip.Prefix
}

type route struct {
	Kind int // RTN_UNICAST, RTN_THROW, RTN_BLACKHOLE
	Dev  string
	Via  netip.Addr // onlink, if valid
}

// ofAddress reports whether r is the way to a floating address: by a leg or by a pod's own address.
func (k routeKey) ofAddress(r route) bool {
	return k.To.IsSingleIP() && r.Kind == unix.RTN_UNICAST && (isPort(r.Dev) || r.Via.IsValid())
}

type neighbour struct {
	Dev     string
	Address netip.Addr
}

type proxy struct {
	Dev     string
	Address netip.Addr
}

// change is one difference between two maps. Remove holds keys that only the old one has; Put holds keys that are new
// or have another value. Both are sorted, so that logs and failures are stable.
type change[K comparable] struct{ Put, Remove []K }

func diff[K comparable, V comparable](want, have map[K]V) change[K] {
	var c change[K]
	for k, v := range want {
		if old, ok := have[k]; !ok || old != v {
			c.Put = append(c.Put, k)
		}
	}
	for k := range have {
		if _, ok := want[k]; !ok {
			c.Remove = append(c.Remove, k)
		}
	}
	byText := func(a, b K) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) }
	slices.SortFunc(c.Put, byText)
	slices.SortFunc(c.Remove, byText)
	return c
}

// addresses returns the floating addresses that have a route of ours, active or staged.
func (s state) addresses() map[netip.Addr]struct{} {
	found := map[netip.Addr]struct{}{}
	for k, r := range s.routes {
		if k.ofAddress(r) {
			found[k.To.Addr()] = struct{}{}
		}
	}
	return found
}

// backTables returns which table belongs to which network.
func (s state) backTables() map[netip.Prefix]int {
	tables := map[netip.Prefix]int{}
	for r := range s.rules {
		if r.From.IsValid() && !r.Hosts { // earlier versions had it at another preference
			tables[r.From] = r.Table
		}
	}
	return tables
}

// networks returns the provider networks that the rules and the ways back describe.
func (s state) networks() []Network {
	var found []Network
	back := s.backTables()
	type slot struct {
		v6    bool
		table int
	}
	marked := map[slot]uint32{}
	for r := range s.rules {
		if r.Priority == ruleMarked && r.Mark != 0 {
			marked[slot{r.V6, r.Table}] = r.Mark
		}
	}
	for prefix, table := range back {
		v6 := prefix.Addr().Is6()
		everything := netip.PrefixFrom(anyAddress(v6), 0)
		found = append(found, Network{
			Prefix: prefix, Gateway: s.routes[routeKey{table, everything}].Via,
			Interface: s.routes[routeKey{table, prefix}].Dev, Mark: marked[slot{v6, table}],
		})
	}
	slices.SortFunc(found, func(a, b Network) int { return cmp.Compare(a.Prefix.String(), b.Prefix.String()) })
	return found
}

// assignBack gives each network a table. Networks keep what they have, since a table in use cannot be
// exchanged without losing packets in between. Tables are per family: IPv4 and IPv6 may use one number.
func assignBack(networks []Network, have map[netip.Prefix]int) (map[netip.Prefix]int, error) {
	type slot struct {
		v6    bool
		table int
	}
	tables, taken := map[netip.Prefix]int{}, map[slot]bool{}
	for _, n := range networks {
		if t, ok := have[n.Prefix]; ok && !taken[slot{n.Prefix.Addr().Is6(), t}] {
			tables[n.Prefix] = t
			taken[slot{n.Prefix.Addr().Is6(), t}] = true
		}
	}
	candidates := append([]int{tableBack}, slices.Collect(func(yield func(int) bool) {
		for t := tableMore; t <= tableLast && yield(t); t++ {
		}
	})...)
	for _, n := range networks {
		if _, ok := tables[n.Prefix]; ok {
			continue
		}
		i := slices.IndexFunc(candidates, func(t int) bool { return !taken[slot{n.Prefix.Addr().Is6(), t}] })
		if i < 0 {
			return nil, fmt.Errorf("provider network %s: %w", n.Prefix, ErrTooManyNetworks)
		}
		tables[n.Prefix] = candidates[i]
		taken[slot{n.Prefix.Addr().Is6(), candidates[i]}] = true
	}
	return tables, nil
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
