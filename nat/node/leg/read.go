package leg

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/netns"
)

// again repeats a dump that the kernel says was disturbed by a change (NLM_F_DUMP_INTR). Under steady change the last
// answer is an error, and the next reconciliation tries again.
func again[T any](dump func() ([]T, error)) ([]T, error) {
	for range 9 {
		if list, err := dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return dump()
}

var families = []int{unix.AF_INET, unix.AF_INET6}

// read returns what is ours in the kernel of the node.
func (n *Node) read() (state, error) {
	s := state{
		ports: map[string]port{}, rules: map[rule]struct{}{}, routes: map[routeKey]route{},
		neighbours: map[netip.Addr]mac{}, fdb: map[mac]string{}, proxies: map[proxy]struct{}{},
		sysctls: map[string]string{},
	}
	links, err := again(n.netlink.LinkList)
	if err != nil {
		return s, fmt.Errorf("list links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	steps := []func() error{
		func() error { return n.readLinks(&s, links) },
		func() error { return readRules(n.netlink, &s, ourRule) },
		func() error { return readRoutes(n.netlink, &s, names, ourTable) },
		func() error { return n.readNeighbours(&s, links) },
		func() error { return n.readProxies(&s, names) },
		func() error { return n.readGuard(&s.guard) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (n *Node) readLinks(s *state, links []netlink.Link) error {
	var settings map[int]port
	for _, l := range links {
		a := l.Attrs()
		if b, ok := l.(*netlink.Bridge); ok && a.Name == Bridge {
			s.bridge = bridgeIsRight(b)
		}
		if l.Type() != "veth" || !isPort(a.Name) {
			continue
		}
		if settings == nil {
			var err error
			if settings, err = n.portSettings(); err != nil {
				return err
			}
		}
		p := settings[a.Index]
		p.Up, p.MTU = a.Flags&net.FlagUp != 0, a.MTU
		p.Enslaved = a.MasterIndex != 0 && isBridge(links, a.MasterIndex)
		s.ports[a.Name] = p
	}
	return nil
}

func isBridge(links []netlink.Link, index int) bool {
	for _, l := range links {
		if l.Attrs().Index == index {
			return l.Attrs().Name == Bridge
		}
	}
	return false
}

func bridgeIsRight(b *netlink.Bridge) bool {
	return b.Flags&net.FlagUp != 0 && b.HardwareAddr.String() == net.HardwareAddr(bridgeMAC[:]).String() &&
		b.AgeingTime != nil && *b.AgeingTime == 0 && b.MulticastSnooping != nil && !*b.MulticastSnooping
}

// portSettings returns the settings of all bridge ports of the node by index. The library's reader leaves out the
// flooding of multicast and broadcast.
func (n *Node) portSettings() (map[int]port, error) {
	settings := map[int]port{}
	err := netns.Do(n.ns, func() error {
		messages, err := again(func() ([][]byte, error) {
			req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
			req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
			return req.Execute(unix.NETLINK_ROUTE, 0)
		})
		if err != nil {
			return fmt.Errorf("list bridge ports: %w", err)
		}
		for _, m := range messages {
			if err := parsePort(m, settings); err != nil {
				return fmt.Errorf("list bridge ports: %w", err)
			}
		}
		return nil
	})
	return settings, err
}

func parsePort(message []byte, into map[int]port) error {
	header := nl.DeserializeIfInfomsg(message)
	attrs, err := nl.ParseRouteAttr(message[header.Len():])
	if err != nil {
		return err
	}
	for _, attr := range attrs {
		if attr.Attr.Type != unix.IFLA_PROTINFO|unix.NLA_F_NESTED {
			continue
		}
		flags, err := nl.ParseRouteAttr(attr.Value)
		if err != nil {
			return err
		}
		var p port
		for _, f := range flags {
			on := len(f.Value) == 1 && f.Value[0] != 0
			switch f.Attr.Type {
			case nl.IFLA_BRPORT_ISOLATED:
				p.Isolated = on
			case nl.IFLA_BRPORT_LEARNING:
				p.Learning = on
			case nl.IFLA_BRPORT_UNICAST_FLOOD:
				p.Flood = on
			case nl.IFLA_BRPORT_MCAST_FLOOD:
				p.McastFlood = on
			case nl.IFLA_BRPORT_BCAST_FLOOD:
				p.BcastFlood = on
			}
		}
		into[int(header.Index)] = p
	}
	return nil
}

// OurTable reports whether the routing table is one of this package: 7100 to 7199 belong to nobody else.
func OurTable(table int) bool { return table >= tableActive && table <= tableLast }

func ourTable(r netlink.Route) bool { return OurTable(r.Table) }

func ourRule(r netlink.Rule) bool { return OurTable(r.Table) }

func readRules(h *netlink.Handle, s *state, ours func(netlink.Rule) bool) error {
	for _, family := range families {
		rules, err := again(func() ([]netlink.Rule, error) { return h.RuleList(family) })
		if err != nil {
			return fmt.Errorf("list rules: %w", err)
		}
		for _, r := range rules {
			if ours(r) {
				found := rule{
					Priority: r.Priority, V6: family == unix.AF_INET6, In: r.IifName, From: prefixOf(r.Src),
					To: prefixOf(r.Dst), Mark: r.Mark, Table: r.Table,
				}
				if r.Mask != nil && *r.Mask != math.MaxUint32 {
					found.Mask = *r.Mask
				}
				s.rules[found] = struct{}{}
			}
		}
	}
	return nil
}

func readRoutes(h *netlink.Handle, s *state, names map[int]string, ours func(netlink.Route) bool) error {
	for _, family := range families {
		all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
		routes, err := again(func() ([]netlink.Route, error) {
			return h.RouteListFiltered(family, all, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if !ours(r) {
				continue
			}
			to := prefixOf(r.Dst)
			if !to.IsValid() {
				to = netip.PrefixFrom(anyAddress(family == unix.AF_INET6), 0)
			}
			via, _ := netip.AddrFromSlice(r.Gw)
			found := route{Kind: r.Type, Dev: names[r.LinkIndex], Via: via.Unmap()}
			if r.Type != unix.RTN_UNICAST {
				found.Dev = "" // the kernel shows "lo" for IPv6
			}
			s.routes[routeKey{r.Table, to}] = found
		}
	}
	return nil
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones)
}

// readNeighbours reads the static entries of the bridge: addresses, and which port an Ethernet address is behind.
func (n *Node) readNeighbours(s *state, links []netlink.Link) error {
	bridge, ports := 0, map[int]string{}
	for _, l := range links {
		switch a := l.Attrs(); {
		case a.Name == Bridge:
			bridge = a.Index
		case isPort(a.Name):
			ports[a.Index] = a.Name
		}
	}
	if bridge == 0 {
		return nil
	}
	for _, family := range families {
		list, err := again(func() ([]netlink.Neigh, error) { return n.netlink.NeighList(bridge, family) })
		if err != nil {
			return fmt.Errorf("list neighbours of %s: %w", Bridge, err)
		}
		for _, e := range list {
			if a, ok := netip.AddrFromSlice(e.IP); ok && e.State == netlink.NUD_PERMANENT && len(e.HardwareAddr) == 6 {
				s.neighbours[a.Unmap()] = mac(e.HardwareAddr)
			}
		}
	}
	entries, err := again(func() ([]netlink.Neigh, error) { return n.netlink.NeighList(0, unix.AF_BRIDGE) })
	if err != nil {
		return fmt.Errorf("list forwarding entries of %s: %w", Bridge, err)
	}
	for _, e := range entries {
		if len(e.HardwareAddr) == 6 && mac(e.HardwareAddr) == bridgeMAC && e.LinkIndex == bridge {
			s.fdb[bridgeMAC] = Bridge
		}
		static := e.State&netlink.NUD_NOARP != 0
		if name, ok := ports[e.LinkIndex]; ok && static && e.MasterIndex == bridge && len(e.HardwareAddr) == 6 {
			s.fdb[mac(e.HardwareAddr)] = name
		}
	}
	return nil
}

// readProxies takes the proxied addresses that have a route of ours: others belong to somebody else. That is why a
// proxy entry is always removed before the route.
func (n *Node) readProxies(s *state, names map[int]string) error {
	ours := s.addresses()
	for _, family := range families {
		list, err := again(func() ([]netlink.Neigh, error) { return n.netlink.NeighProxyList(0, family) })
		if err != nil {
			return fmt.Errorf("list proxied neighbours: %w", err)
		}
		for _, e := range list {
			a, _ := netip.AddrFromSlice(e.IP)
			if _, ok := ours[a.Unmap()]; ok {
				s.proxies[proxy{names[e.LinkIndex], a.Unmap()}] = struct{}{}
			}
		}
	}
	return nil
}
