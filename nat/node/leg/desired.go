package leg

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// surroundings is what the desired state depends on besides the Config.
type surroundings struct {
	backTables map[netip.Prefix]int // tables in use
	// present are the ports that exist. What hangs on a missing one waits until it is plugged.
	present map[string]bool
	// forceForwarding6: the kernel can forward IPv6 per interface (net.ipv6.conf.*.force_forwarding, Linux 6.17).
	forceForwarding6 bool
	guards           *guardTexts
}

// desired says what the kernel shall hold for c. It decides everything and touches nothing.
func desired(c Config, sur surroundings) (state, error) {
	networks := c.used()
	s := state{
		ports: map[string]port{}, guards: map[string]string{}, sources: map[string][]netip.Addr{}, rules: map[rule]struct{}{}, routes: map[routeKey]route{},
		neighbours: map[neighbour]mac{}, proxies: map[proxy]struct{}{}, sysctls: map[string]string{},
	}
	if len(networks) == 0 {
		return s, nil
	}
	back, err := assignBack(networks, sur.backTables)
	if err != nil {
		return s, err
	}
	for _, n := range networks {
		s.addNetwork(n, back[n.Prefix], c.ClusterNetworks, sur)
		s.addAcross(rule{From: n.Prefix}, n, back)
	}
	for _, a := range c.Left {
		s.addLate(a, c, back)
	}
	for _, h := range c.Hops {
		n, _ := c.NetworkOf(h.Address)
		s.addMark(n, back)
		s.addHop(h, n, back[n.Prefix])
	}
	if len(c.Legs) > 0 {
		s.guards[theTable] = ""
	}
	for _, l := range c.Legs {
		if sur.present[PortName(l.Pod)] {
			s.addLeg(l, c, back, sur)
		}
	}
	return s, nil
}

// addNetwork makes the rules, the way back and the settings of the NIC. Nothing in it grows with the number of
// addresses.
func (s *state) addNetwork(n Network, back int, cluster []netip.Prefix, sur surroundings) {
	v6 := n.Prefix.Addr().Is6()
	for _, in := range []string{"lo", n.Interface} { // "lo" is what the node itself sends
		s.rules[rule{Priority: ruleOthers, V6: v6, In: in, Goto: ruleActive, Table: tableNone}] = struct{}{}
	}
	s.rules[rule{Priority: ruleBack, V6: v6, From: n.Prefix, Table: back}] = struct{}{}
	s.rules[rule{Priority: ruleActive, V6: v6, To: n.Prefix, Table: back, Hosts: true}] = struct{}{}
	for _, c := range cluster {
		if c.Addr().Is6() == v6 {
			s.routes[routeKey{back, c}] = route{Kind: unix.RTN_THROW}
		}
	}
	if n.Gateway.IsValid() {
		everything := netip.PrefixFrom(anyAddress(v6), 0)
		s.routes[routeKey{back, everything}] = route{Kind: unix.RTN_UNICAST, Dev: n.Interface, Via: n.Gateway}
	}
	s.routes[routeKey{back, n.Prefix}] = route{Kind: unix.RTN_UNICAST, Dev: n.Interface}
	s.addNICSysctls(n.Interface, v6, sur)
	if n.Bare {
		s.sysctls["ipv4/neigh/"+n.Interface+"/app_solicit"] = "1"
	}
}

// addAcross leads the packets that of picks, those of n, to addresses that this node has of the other networks. To the
// rest of those they go by the way back of n.
func (s *state) addAcross(of rule, n Network, back map[netip.Prefix]int) {
	of.Priority, of.V6, of.Hosts = ruleAcross, n.Prefix.Addr().Is6(), true
	for other, table := range back {
		if other != n.Prefix && other.Addr().Is6() == of.V6 {
			of.To, of.Table = other, table
			s.rules[of] = struct{}{}
		}
	}
}

// addStaged lets the LAN, and nobody else, see the addresses that are about to move here. The rule is there only then: it
// costs every packet a look into a table.
func (s *state) addStaged(n Network) {
	s.rules[rule{
		Priority: ruleStaged, V6: n.Prefix.Addr().Is6(), In: n.Interface, To: n.Prefix, Table: tableStaged,
	}] = struct{}{}
}

// addLate lets packets pass that come for an address whose guest has left. They leave by the NIC that they came by, and a
// strict rp_filter then looks for the way back to their sender as if the address had sent by that NIC
// (__mkroute_input in net/ipv4/route.c), where ruleOthers leads everybody past the pool's gateway: senders beyond it would
// be refused. IPv6 has no such filter.
func (s *state) addLate(a netip.Addr, c Config, back map[netip.Prefix]int) {
	if n, ok := c.NetworkOf(a); ok && a.Is4() {
		from := netip.PrefixFrom(a, a.BitLen())
		s.rules[rule{Priority: ruleLate, In: n.Interface, From: from, Table: back[n.Prefix]}] = struct{}{}
	}
}

func anyAddress(v6 bool) netip.Addr {
	if v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// addPortSysctls: a strict rp_filter finds every source, since "from POOL" makes the reverse look-up take the forward
// way. The port listens to no router.
func (s *state) addPortSysctls(name string, v6 bool, sur surroundings) {
	if !v6 {
		s.sysctls["ipv4/conf/"+name+"/forwarding"] = "1"
		s.sysctls["ipv4/conf/"+name+"/rp_filter"] = "1"
		return
	}
	s.sysctls["ipv6/conf/"+name+"/accept_ra"] = "0"
	if sur.forceForwarding6 {
		s.sysctls["ipv6/conf/"+name+"/force_forwarding"] = "1"
	}
}

// addNICSysctls: by default the kernel answers for a proxied address only after up to 0.8 s (proxy_delay,
// Documentation/networking/ip-sysctl.rst). proxy_arp stays off: it would answer for everything.
func (s *state) addNICSysctls(nic string, v6 bool, sur surroundings) {
	if !v6 {
		s.sysctls["ipv4/conf/"+nic+"/forwarding"] = "1"
		s.sysctls["ipv4/neigh/"+nic+"/proxy_delay"] = "0"
		return
	}
	s.sysctls["ipv6/neigh/"+nic+"/proxy_delay"] = "0"
	s.sysctls["ipv6/conf/"+nic+"/proxy_ndp"] = "1"
	if sur.forceForwarding6 {
		s.sysctls["ipv6/conf/"+nic+"/force_forwarding"] = "1"
	}
}

// addLeg makes what one pod needs. Every kind of entry is found by a hash or a trie in the kernel.
func (s *state) addLeg(l Leg, c Config, back map[netip.Prefix]int, sur surroundings) {
	name, ether := PortName(l.Pod), podMAC(l.Pod)
	mtu := 0
	var sources []netip.Addr
	for _, a := range l.Addresses {
		n, _ := c.NetworkOf(a)
		if n.MTU > 0 && (mtu == 0 || n.MTU < mtu) {
			mtu = n.MTU
		}
		if slices.Contains(l.Idle, a) {
			continue
		}
		s.neighbours[neighbour{name, a}] = ether
		sources = append(sources, a)
		s.addPortSysctls(name, a.Is6(), sur)
		if l.Left {
			continue
		}
		table := back[n.Prefix]
		if l.Staged {
			table = tableStaged
			s.addStaged(n)
		}
		s.routes[routeKey{table, netip.PrefixFrom(a, a.BitLen())}] = route{Kind: unix.RTN_UNICAST, Dev: name}
		if !l.Staged && !slices.Contains(l.Silent, a) {
			s.proxies[proxy{n.Interface, a}] = struct{}{}
		}
	}
	s.ports[name] = plugged(mtu)
	s.sources[name] = sources
	s.guards[name] = sur.guards.of(sources)
}
