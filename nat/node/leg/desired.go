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
}

// desired says what the kernel shall hold for c. It decides everything and touches nothing.
func desired(c Config, sur surroundings) (state, error) {
	networks := c.used()
	s := state{
		ports: map[string]port{}, rules: map[rule]struct{}{}, routes: map[routeKey]route{},
		neighbours: map[netip.Addr]mac{}, fdb: map[mac]string{}, proxies: map[proxy]struct{}{},
		sysctls: map[string]string{},
	}
	if len(networks) == 0 {
		return s, nil
	}
	back, err := assignBack(networks, sur.backTables)
	if err != nil {
		return s, err
	}
	s.bridge = len(c.Legs) > 0
	for _, n := range networks {
		s.addNetwork(n, back[n.Prefix], c.ClusterNetworks, sur)
	}
	for _, h := range c.Hops {
		n, _ := c.networkOf(h.Address)
		s.addMark(n, back[n.Prefix])
		s.addHop(h, n, back[n.Prefix])
	}
	if !s.bridge {
		return s, nil
	}
	// The kernel makes the entry of the bridge's own address, and loses it when somebody flushes the entries. Nothing
	// reaches the node then, since unknown addresses are not flooded.
	s.fdb[bridgeMAC] = Bridge
	s.addBridgeSysctls()
	s.guard.Ports, s.guard.Sources = map[string]struct{}{}, map[source]struct{}{}
	for _, l := range c.Legs {
		if sur.present[PortName(l.Pod)] {
			s.addLeg(l, c)
		}
	}
	return s, nil
}

// addNetwork makes the rules, the way back and the settings of the NIC. Nothing in it grows with the number of
// addresses.
func (s *state) addNetwork(n Network, back int, cluster []netip.Prefix, sur surroundings) {
	v6 := n.Prefix.Addr().Is6()
	s.rules[rule{Priority: ruleStaged, V6: v6, In: n.Interface, To: n.Prefix, Table: tableStaged}] = struct{}{}
	s.rules[rule{Priority: ruleActive, V6: v6, To: n.Prefix, Table: tableActive}] = struct{}{}
	s.rules[rule{Priority: ruleBack, V6: v6, In: Bridge, From: n.Prefix, Table: back}] = struct{}{}
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
}

func anyAddress(v6 bool) netip.Addr {
	if v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// addBridgeSysctls: packets between two legs enter and leave by the bridge, which is no reason for an ICMP redirect. A
// strict rp_filter finds every source, since "iif fip-br from POOL" makes the reverse look-up take the forward way. The
// bridge listens to no router.
func (s *state) addBridgeSysctls() {
	s.sysctls["ipv4/conf/"+Bridge+"/forwarding"] = "1"
	s.sysctls["ipv4/conf/"+Bridge+"/send_redirects"] = "0"
	s.sysctls["ipv4/conf/"+Bridge+"/rp_filter"] = "1"
	s.sysctls["ipv6/conf/"+Bridge+"/accept_ra"] = "0"
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
		if s.bridge {
			s.sysctls["ipv6/conf/"+Bridge+"/force_forwarding"] = "1"
		}
	}
}

// addLeg makes what one pod needs. Every kind of entry is found by a hash or a trie in the kernel.
func (s *state) addLeg(l Leg, c Config) {
	name, ether := PortName(l.Pod), podMAC(l.Pod)
	mtu := 0
	for _, a := range l.Addresses {
		n, _ := c.networkOf(a)
		if n.MTU > 0 && (mtu == 0 || n.MTU < mtu) {
			mtu = n.MTU
		}
		if slices.Contains(l.Idle, a) {
			continue
		}
		s.neighbours[a] = ether
		s.guard.Sources[source{name, a}] = struct{}{}
		if l.Left {
			continue
		}
		s.routes[routeKey{tableOf(l), netip.PrefixFrom(a, a.BitLen())}] = route{Kind: unix.RTN_UNICAST, Dev: Bridge}
		if !l.Staged && !slices.Contains(l.Silent, a) {
			s.proxies[proxy{n.Interface, a}] = struct{}{}
		}
	}
	s.ports[name] = plugged(mtu)
	s.fdb[ether] = name
	s.guard.Ports[name] = struct{}{}
}

func tableOf(l Leg) int {
	if l.Staged {
		return tableStaged
	}
	return tableActive
}
