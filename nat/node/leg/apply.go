package leg

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/netns"
)

// Report says what an Apply has changed.
type Report struct {
	// Changes has one line per change. It is empty when the kernel held all before.
	Changes []string
	// Withdrawn are the addresses that had a route before and have none now.
	Withdrawn []netip.Addr
}

func (r *Report) changed(format string, args ...any) {
	r.Changes = append(r.Changes, fmt.Sprintf(format, args...))
}

// Apply makes the kernel of the node hold what c says, and nothing else of ours. Legs that are not plugged (see Plug)
// are left out until they are. Connection tracking forgets addresses that are withdrawn.
//
// What is there already is not touched, so a second Apply changes nothing and an agent that starts anew interrupts
// nothing. The order is that of a safe withdrawal, and of make before break:
//
//	stop answering → routes of addresses that left → all that is new → old rules and ways back → connection tracking →
//	old neighbours → old legs → bridge
//
// After an error the rest is still tried where it does not depend on what failed; the errors are joined.
func (n *Node) Apply(c Config) (Report, error) {
	var r Report
	if err := c.Validate(); err != nil {
		return r, err
	}
	have, err := n.read()
	if err != nil {
		return r, err
	}
	want, err := desired(c, n.surroundings(have))
	if err != nil {
		return r, err
	}
	if have.sysctls, err = n.sysctls.read(sortedKeys(want.sysctls)); err != nil {
		return r, fmt.Errorf("read settings: %w", err)
	}
	a := application{node: n, want: want, have: have, report: &r}
	err = errors.Join(a.stopAnswering(), a.removeAddressRoutes(), a.add(), a.remove())
	if v6 := n.checkForwarding6(want); v6 != nil {
		err = errors.Join(err, v6)
	}
	return r, err
}

func (n *Node) surroundings(have state) surroundings {
	present := map[string]bool{}
	for name := range have.ports {
		present[name] = true
	}
	_, err := os.Stat(filepath.Join(n.sysctls.dir, "ipv6/conf/all/force_forwarding"))
	return surroundings{backTables: have.backTables(), present: present, forceForwarding6: err == nil}
}

// checkForwarding6 does not switch forwarding on for all interfaces: that would make the node ignore the routers it has
// its own routes from (accept_ra, Documentation/networking/ip-sysctl.rst).
func (n *Node) checkForwarding6(want state) error {
	if _, v6 := want.rules[firstRule6(want)]; !v6 {
		return nil
	}
	values, err := n.sysctls.read([]string{"ipv6/conf/all/forwarding", "ipv6/conf/all/force_forwarding"})
	if err != nil {
		return err
	}
	if _, forced := values["ipv6/conf/all/force_forwarding"]; !forced && values["ipv6/conf/all/forwarding"] == "0" {
		return ErrNoForwarding6
	}
	return nil
}

func firstRule6(s state) rule {
	for r := range s.rules {
		if r.V6 {
			return r
		}
	}
	return rule{}
}

// application is one Apply on its way.
type application struct {
	node       *Node
	want, have state
	report     *Report
}

func (a application) stopAnswering() error {
	var errs []error
	for _, p := range diff(a.want.proxies, a.have.proxies).Remove {
		errs = append(errs, a.proxy(p, false))
	}
	return errors.Join(errs...)
}

func (a application) removeAddressRoutes() error {
	var errs []error
	for _, k := range diff(a.want.routes, a.have.routes).Remove {
		if k.Table == tableActive || k.Table == tableStaged {
			errs = append(errs, a.route(k, false))
		}
	}
	return errors.Join(errs...)
}

// add makes all that is new. The bridge comes first and the proxies last: nobody is told of an address that has no way.
func (a application) add() error {
	if err := a.addBridge(); err != nil {
		return err
	}
	errs := []error{a.addSysctls()}
	// The guard stands before a port is up.
	if err := a.node.applyGuard(a.want.guard, a.have.guard, a.report.changed); err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, name := range diff(a.want.ports, a.have.ports).Put {
		errs = append(errs, a.setPort(name))
	}
	for _, ether := range diff(a.want.fdb, a.have.fdb).Put {
		errs = append(errs, a.setForwarding(ether))
	}
	for _, address := range diff(a.want.neighbours, a.have.neighbours).Put {
		errs = append(errs, a.setNeighbour(address))
	}
	for _, k := range backFirst(diff(a.want.routes, a.have.routes).Put) {
		errs = append(errs, a.route(k, true))
	}
	for _, r := range diff(a.want.rules, a.have.rules).Put {
		errs = append(errs, a.rule(r, true))
	}
	for _, p := range diff(a.want.proxies, a.have.proxies).Put {
		errs = append(errs, a.proxy(p, true))
	}
	return errors.Join(errs...)
}

// backFirst puts the throw routes, then the rest of the ways back, before the routes of addresses.
func backFirst(keys []routeKey) []routeKey {
	slices.SortStableFunc(keys, func(x, y routeKey) int { return order(x) - order(y) })
	return keys
}

func order(k routeKey) int {
	if k.Table == tableActive || k.Table == tableStaged {
		return 1
	}
	return 0
}

func (a application) remove() error {
	var errs []error
	for _, r := range diff(a.want.rules, a.have.rules).Remove {
		errs = append(errs, a.rule(r, false))
	}
	for _, k := range diff(a.want.routes, a.have.routes).Remove {
		if k.Table != tableActive && k.Table != tableStaged {
			errs = append(errs, a.route(k, false))
		}
	}
	gone := diff(a.want.addresses(), a.have.addresses()).Remove
	a.report.Withdrawn = gone
	errs = append(errs, forget(a.node.netlink, gone))
	for _, address := range diff(a.want.neighbours, a.have.neighbours).Remove {
		errs = append(errs, a.removeNeighbour(address))
	}
	for _, ether := range diff(a.want.fdb, a.have.fdb).Remove {
		errs = append(errs, a.removeForwarding(ether))
	}
	for _, name := range diff(a.want.ports, a.have.ports).Remove {
		errs = append(errs, a.removeLink(name))
	}
	if !a.want.bridge {
		errs = append(errs, a.removeLink(Bridge))
	}
	return errors.Join(errs...)
}

func (a application) addBridge() error {
	if !a.want.bridge || a.have.bridge {
		return nil
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = Bridge, bridgeMAC[:]
	var ageing uint32
	var snooping bool
	bridge := &netlink.Bridge{LinkAttrs: attrs, AgeingTime: &ageing, MulticastSnooping: &snooping}
	old, err := a.node.link(Bridge)
	if err != nil {
		return err
	}
	if old == nil {
		err = a.node.netlink.LinkAdd(bridge)
	} else {
		bridge.Index = old.Attrs().Index
		err = errors.Join(a.node.netlink.LinkModify(bridge), a.node.netlink.LinkSetHardwareAddr(old, bridgeMAC[:]))
	}
	if err == nil {
		err = a.node.netlink.LinkSetUp(bridge)
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", Bridge, err)
	}
	a.report.changed("bridge %s", Bridge)
	return nil
}

func (a application) addSysctls() error {
	var errs []error
	for _, path := range diff(a.want.sysctls, a.have.sysctls).Put {
		if err := a.node.sysctls.write(path, a.want.sysctls[path]); err != nil {
			errs = append(errs, fmt.Errorf("set %s to %s: %w", path, a.want.sysctls[path], err))
			continue
		}
		a.report.changed("sysctl %s=%s", path, a.want.sysctls[path])
	}
	return errors.Join(errs...)
}

// setPort enslaves the node's end of a leg, with all its settings made before it carries a frame.
func (a application) setPort(name string) error {
	p := a.want.ports[name]
	bridge, err := a.node.netlink.LinkByName(Bridge)
	if err != nil {
		return fmt.Errorf("port %s: %w", name, err)
	}
	link, err := a.node.netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("port %s: %w", name, err)
	}
	steps := []func() error{
		func() error { return a.node.netlink.LinkSetMaster(link, bridge) },
		func() error { return a.node.setPortFlags(link.Attrs().Index, p) },
		func() error { return a.node.netlink.LinkSetUp(link) },
	}
	if p.MTU > 0 && link.Attrs().MTU != p.MTU {
		steps = append(steps, func() error { return a.node.netlink.LinkSetMTU(link, p.MTU) })
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("port %s: %w", name, err)
		}
	}
	a.report.changed("port %s", name)
	return nil
}

func (n *Node) setPortFlags(index int, p port) error {
	return netns.Do(n.ns, func() error {
		req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
		header := nl.NewIfInfomsg(unix.AF_BRIDGE)
		header.Index = int32(index)
		req.AddData(header)
		info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
		for kind, on := range map[int]bool{
			nl.IFLA_BRPORT_ISOLATED: p.Isolated, nl.IFLA_BRPORT_LEARNING: p.Learning,
			nl.IFLA_BRPORT_UNICAST_FLOOD: p.Flood, nl.IFLA_BRPORT_MCAST_FLOOD: p.McastFlood,
			nl.IFLA_BRPORT_BCAST_FLOOD: p.BcastFlood,
		} {
			var value byte
			if on {
				value = 1
			}
			info.AddRtAttr(kind, []byte{value})
		}
		req.AddData(info)
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}

func (a application) setForwarding(ether mac) error {
	name, state, flags := a.want.fdb[ether], netlink.NUD_NOARP, netlink.NTF_MASTER
	if ether == bridgeMAC {
		state, flags = netlink.NUD_PERMANENT, netlink.NTF_SELF
	}
	link, err := a.node.netlink.LinkByName(name)
	if err == nil {
		err = a.node.netlink.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, State: state, Flags: flags, HardwareAddr: ether[:],
		})
	}
	if err != nil {
		return fmt.Errorf("forwarding entry %s on %s: %w", net.HardwareAddr(ether[:]), name, err)
	}
	a.report.changed("fdb %s on %s", net.HardwareAddr(ether[:]), name)
	return nil
}

func (a application) removeForwarding(ether mac) error {
	name := a.have.fdb[ether]
	if ether == bridgeMAC {
		return nil // goes with the bridge
	}
	link, err := a.node.link(name)
	if err != nil || link == nil {
		return err
	}
	err = a.node.netlink.NeighDel(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, HardwareAddr: ether[:],
	})
	return a.removed(err, "forwarding entry %s on %s", net.HardwareAddr(ether[:]), name)
}

func (a application) setNeighbour(address netip.Addr) error {
	ether := a.want.neighbours[address]
	bridge, err := a.node.netlink.LinkByName(Bridge)
	if err == nil {
		err = a.node.netlink.NeighSet(&netlink.Neigh{
			LinkIndex: bridge.Attrs().Index, State: netlink.NUD_PERMANENT, IP: address.AsSlice(), HardwareAddr: ether[:],
		})
	}
	if err != nil {
		return fmt.Errorf("neighbour %s on %s: %w", address, Bridge, err)
	}
	a.report.changed("neighbour %s at %s", address, net.HardwareAddr(ether[:]))
	return nil
}

func (a application) removeNeighbour(address netip.Addr) error {
	bridge, err := a.node.link(Bridge)
	if err != nil || bridge == nil {
		return err
	}
	err = a.node.netlink.NeighDel(&netlink.Neigh{LinkIndex: bridge.Attrs().Index, IP: address.AsSlice()})
	return a.removed(err, "neighbour %s", address)
}

func (a application) proxy(p proxy, present bool) error {
	link, err := a.node.link(p.Dev)
	if err != nil {
		return err
	}
	if link == nil && !present {
		return nil // went with the NIC
	}
	if link == nil {
		return fmt.Errorf("proxy %s: no interface %s", p.Address, p.Dev)
	}
	entry := &netlink.Neigh{LinkIndex: link.Attrs().Index, Flags: netlink.NTF_PROXY, IP: p.Address.AsSlice()}
	if !present {
		return a.removed(a.node.netlink.NeighDel(entry), "proxy %s on %s", p.Address, p.Dev)
	}
	if err := a.node.netlink.NeighSet(entry); err != nil {
		return fmt.Errorf("proxy %s on %s: %w", p.Address, p.Dev, err)
	}
	a.report.changed("proxy %s on %s", p.Address, p.Dev)
	return nil
}

func (a application) route(k routeKey, present bool) error {
	if present {
		return addRoute(a.node.netlink, k, a.want.routes[k], a.report)
	}
	return a.removed(delRoute(a.node.netlink, k, a.have.routes[k]), "route %s in table %d", k.To, k.Table)
}

// delRoute asks for any scope: RT_SCOPE_NOWHERE (fib_table_delete in net/ipv4/fib_trie.c).
func delRoute(h *netlink.Handle, k routeKey, have route) error {
	return h.RouteDel(&netlink.Route{
		Table: k.Table, Dst: ipNet(k.To), Type: have.Kind, Family: familyOf(k.To.Addr()), Scope: netlink.SCOPE_NOWHERE,
	})
}

func addRoute(h *netlink.Handle, k routeKey, want route, report *Report) error {
	r := &netlink.Route{
		Table: k.Table, Dst: ipNet(k.To), Type: want.Kind, Protocol: protocol, Family: familyOf(k.To.Addr()),
	}
	if want.Dev != "" {
		link, err := h.LinkByName(want.Dev)
		if err != nil {
			return fmt.Errorf("route %s in table %d: %w", k.To, k.Table, err)
		}
		r.LinkIndex, r.Scope = link.Attrs().Index, netlink.SCOPE_LINK
	}
	if want.Via.IsValid() {
		// onlink: a NIC without an address in the network has no route to the router.
		r.Gw, r.Flags, r.Scope = want.Via.AsSlice(), int(netlink.FLAG_ONLINK), netlink.SCOPE_UNIVERSE
	}
	if k.To.Addr().Is6() {
		r.Scope = netlink.SCOPE_UNIVERSE // IPv6 has no scopes of routes
	}
	if err := h.RouteReplace(r); err != nil {
		return fmt.Errorf("route %s dev %q via %v in table %d: %w", k.To, want.Dev, want.Via, k.Table, err)
	}
	report.changed("route %s in table %d", k.To, k.Table)
	return nil
}

func (a application) rule(r rule, present bool) error {
	if !present {
		return a.removed(a.node.netlink.RuleDel(r.netlink()), "%s", r)
	}
	return addRule(a.node.netlink, r, a.report)
}

func addRule(h *netlink.Handle, r rule, report *Report) error {
	nr := r.netlink()
	nr.Protocol = protocol
	if err := h.RuleAdd(nr); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s: %w", r, err)
	}
	report.changed("%s", r)
	return nil
}

func (r rule) netlink() *netlink.Rule {
	nr := netlink.NewRule()
	nr.Priority, nr.Table, nr.Mark, nr.IifName = r.Priority, r.Table, r.Mark, r.In
	nr.Family = unix.AF_INET
	if r.V6 {
		nr.Family = unix.AF_INET6
	}
	if r.From.IsValid() {
		nr.Src = ipNet(r.From)
	}
	if r.To.IsValid() {
		nr.Dst = ipNet(r.To)
	}
	return nr
}

func (a application) removeLink(name string) error {
	link, err := a.node.link(name)
	if err != nil || link == nil {
		return err
	}
	return a.removed(a.node.netlink.LinkDel(link), "link %s", name)
}

// removed reports a removal. That something is gone already is fine: the kernel removes much by itself when a link goes.
func (a application) removed(err error, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return nil
	case err != nil:
		return fmt.Errorf("remove %s: %w", what, err)
	}
	a.report.changed("removed %s", what)
	return nil
}

func familyOf(a netip.Addr) int {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
