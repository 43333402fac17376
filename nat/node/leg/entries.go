package leg

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/netns"
)

func (a application) setNeighbour(n neighbour) error {
	ether := a.want.neighbours[n]
	link, err := a.node.netlink.LinkByName(n.Dev)
	if err == nil {
		err = a.node.netlink.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: n.Address.AsSlice(), HardwareAddr: ether[:],
		})
	}
	if err != nil {
		return fmt.Errorf("neighbour %s on %s: %w", n.Address, n.Dev, err)
	}
	a.report.changed("neighbour %s at %s", n.Address, net.HardwareAddr(ether[:]))
	return nil
}

func (a application) removeNeighbour(n neighbour) error {
	link, err := a.node.link(n.Dev)
	if err != nil || link == nil {
		return err
	}
	err = a.node.netlink.NeighDel(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: n.Address.AsSlice()})
	return a.removed(err, "neighbour %s", n.Address)
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
	if r.Hosts {
		if err := a.node.addHostsRule(r); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%s: %w", r, err)
		}
		a.report.changed("%s", r)
		return nil
	}
	return addRule(a.node.netlink, r, a.report)
}

// addHostsRule is for what the library leaves out of rules for tables above 255, up to v1.3.1.
func (n *Node) addHostsRule(r rule) error {
	h := nl.NewRtMsg()
	h.Family, h.Table, h.Protocol, h.Scope, h.Type = uint8(r.netlink().Family), unix.RT_TABLE_UNSPEC, 0, 0, nl.FR_ACT_TO_TBL
	attributes := []*nl.RtAttr{
		nl.NewRtAttr(nl.FRA_PRIORITY, nl.Uint32Attr(uint32(r.Priority))),
		nl.NewRtAttr(nl.FRA_TABLE, nl.Uint32Attr(uint32(r.Table))),
		nl.NewRtAttr(nl.FRA_SUPPRESS_PREFIXLEN, nl.Uint32Attr(uint32(r.shorter()))),
		nl.NewRtAttr(nl.FRA_PROTOCOL, nl.Uint8Attr(protocol)),
	}
	if r.From.IsValid() {
		h.Src_len = uint8(r.From.Bits())
		attributes = append(attributes, nl.NewRtAttr(nl.FRA_SRC, r.From.Addr().AsSlice()))
	}
	if r.To.IsValid() {
		h.Dst_len = uint8(r.To.Bits())
		attributes = append(attributes, nl.NewRtAttr(nl.FRA_DST, r.To.Addr().AsSlice()))
	}
	if r.Mask != 0 {
		attributes = append(attributes, nl.NewRtAttr(nl.FRA_FWMARK, nl.Uint32Attr(r.Mark)),
			nl.NewRtAttr(nl.FRA_FWMASK, nl.Uint32Attr(r.Mask)))
	}
	return netns.Do(n.ns, func() error {
		req := nl.NewNetlinkRequest(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
		req.AddData(h)
		for _, attribute := range attributes {
			req.AddData(attribute)
		}
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
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
	if r.Mask != 0 {
		nr.Mask = &r.Mask
	}
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
	if r.Goto != 0 {
		nr.Goto = r.Goto
	}

	return nr
}

// removed reports a removal. That something is gone already is fine: the kernel removes much by itself when a link
// goes.
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
