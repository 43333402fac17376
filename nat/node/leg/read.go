package leg

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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

// families are those that the kernel has. With ipv6.disable=1 on its command line it has no IPv6: it knows no rules of it, and
// answers a question for routes of it with all others (rtnetlink_rcv_msg in net/core/rtnetlink.c).
var families = kernelFamilies()

func kernelFamilies() []int {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return []int{unix.AF_INET}
	}
	unix.Close(fd)
	return []int{unix.AF_INET, unix.AF_INET6}
}

// read returns what is ours in the kernel of the node, and all links.
func (n *Node) read() (state, []netlink.Link, error) {
	s := state{
		ports: map[string]port{}, guards: map[string]string{}, rules: map[rule]struct{}{}, routes: map[routeKey]route{},
		neighbours: map[neighbour]mac{}, proxies: map[proxy]struct{}{}, sysctls: map[string]string{}, older: older{},
	}
	links, err := again(n.netlink.LinkList)
	if err != nil {
		return s, nil, fmt.Errorf("list links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	readPorts(&s, links)
	steps := []func() error{
		func() error { return readRules(n.netlink, &s, ourRule) },
		func() error { return readRoutes(n.netlink, &s, names, ourTable) },
		func() error { return n.readNeighbours(&s, names) },
		func() error { return n.readProxies(&s, names) },
		func() error { return n.readGuards(s.guards) },
		func() error { return n.readOlder(s.older, links) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return s, links, err
		}
	}
	return s, links, nil
}

func readPorts(s *state, links []netlink.Link) {
	for _, l := range links {
		if a := l.Attrs(); l.Type() == "veth" && isPort(a.Name) {
			s.ports[a.Name] = port{Up: a.Flags&net.FlagUp != 0, Enslaved: a.MasterIndex != 0, Ether: etherOf(l), MTU: a.MTU}
		}
	}
}

// OurTable reports whether the routing table is one of this package: 7100 to 7199 belong to nobody else.
func OurTable(table int) bool { return table >= tableFirst && table <= tableNone }

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
					To: prefixOf(r.Dst), Mark: r.Mark, Goto: max(r.Goto, 0), Table: r.Table,
				}
				found.Hosts = r.SuppressPrefixlen == found.shorter()
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

// readNeighbours reads the permanent entries of the ports.
func (n *Node) readNeighbours(s *state, names map[int]string) error {
	for _, family := range families {
		list, err := again(func() ([]netlink.Neigh, error) { return n.netlink.NeighList(0, family) })
		if err != nil {
			return fmt.Errorf("list neighbours: %w", err)
		}
		for _, e := range list {
			a, ok := netip.AddrFromSlice(e.IP)
			if ok && isPort(names[e.LinkIndex]) && e.State == netlink.NUD_PERMANENT && len(e.HardwareAddr) == 6 {
				s.neighbours[neighbour{names[e.LinkIndex], a.Unmap()}] = mac(e.HardwareAddr)
			}
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
