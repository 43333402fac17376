package leg

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NIC is an interface of the node that may lead to a provider network.
type NIC struct {
	Name string
	// Master is the link that the interface is a port of (IFLA_MASTER), or "", and MasterKind what that is, for instance "bridge"
	// (IFLA_INFO_KIND). What a link stands on (IFLA_LINK), as a VLAN device on its trunk, says nothing about who gets its packets.
	Master, MasterKind string
	Up                 bool
	MTU                int
	// Networks are those of its addresses and of its routes without a gateway.
	Networks []netip.Prefix
	// Own are its addresses, where they are the node's: no link-local ones, none that turned out to be another host's
	// (RFC 4862 section 5.4), and none of a link that stands for something else (see standsIn).
	Own []netip.Addr
	// MAC is its Ethernet address, in the form of net.HardwareAddr.String.
	MAC string
}

// Provider says which provider network is looked for.
type Provider struct {
	// Address must lie in the network.
	Address netip.Addr
	// Networks and Gateways are what the administrator says about it, of both families. Without a network the one of
	// the NIC counts.
	Networks []netip.Prefix
	Gateways []netip.Addr
	// Interface is the name of the NIC, or "" for the one that is on the network.
	Interface string
}

// NICs lists the interfaces among the links of h, without loopback and without those of this package.
func (n *Node) NICs(h Holding) ([]NIC, error) {
	nics, kinds := nicsOf(h.links)
	if err := errors.Join(n.addAddresses(nics), n.addOnLink(nics)); err != nil {
		return nil, err
	}
	list := make([]NIC, 0, len(nics))
	for index, nic := range nics {
		if standsIn(kinds[index], nic.Networks) {
			nic.Own = nil
		}
		list = append(list, *nic)
	}
	slices.SortFunc(list, func(a, b NIC) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// nicsOf are those among links, and the kinds of all.
func nicsOf(links []netlink.Link) (nics map[int]*NIC, kinds map[int]string) {
	names := map[int]string{}
	nics, kinds = map[int]*NIC{}, map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		names[a.Index], kinds[a.Index] = a.Name, l.Type()
		if a.Flags&net.FlagLoopback == 0 && !isPort(a.Name) {
			nics[a.Index] = &NIC{Name: a.Name, Up: a.Flags&net.FlagUp != 0, MTU: a.MTU, MAC: a.HardwareAddr.String()}
		}
	}
	for _, l := range links {
		if nic, ok := nics[l.Attrs().Index]; ok {
			nic.Master, nic.MasterKind = names[l.Attrs().MasterIndex], kinds[l.Attrs().MasterIndex]
		}
	}
	return nics, kinds
}

// standsIn reports whether the addresses of a link without any network are not the node's: of a veth they are the pods'
// gateway (CNI's ptp, Cilium's cilium_host), of a dummy those of services (kube-proxy's kube-ipvs0, NodeLocal DNSCache).
func standsIn(kind string, networks []netip.Prefix) bool {
	return len(networks) == 0 && (kind == "veth" || kind == "dummy")
}

func (n *Node) addAddresses(nics map[int]*NIC) error {
	list, err := again(func() ([]netlink.Addr, error) { return n.netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range list {
		p := prefixOf(a.IPNet)
		nic, ok := nics[a.LinkIndex]
		if !ok || !p.IsValid() || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		if a.Flags&unix.IFA_F_DADFAILED == 0 {
			nic.Own = append(nic.Own, p.Addr())
		}
		if !p.IsSingleIP() {
			nic.Networks = append(nic.Networks, p.Masked())
		}
	}
	return nil
}

// addOnLink adds the routes of the main table that need no gateway.
func (n *Node) addOnLink(nics map[int]*NIC) error {
	for _, family := range families {
		filter := &netlink.Route{Table: unix.RT_TABLE_MAIN}
		list, err := again(func() ([]netlink.Route, error) {
			return n.netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range list {
			p := prefixOf(r.Dst)
			nic, ok := nics[r.LinkIndex]
			if ok && p.Bits() > 0 && !p.IsSingleIP() && r.Gw == nil && r.Type == unix.RTN_UNICAST &&
				!p.Addr().IsLinkLocalUnicast() && !slices.Contains(nic.Networks, p) {
				nic.Networks = append(nic.Networks, p)
			}
		}
	}
	return nil
}

// Find returns the network that p describes and the NIC that leads to it. A NIC that was put into a bridge leads to it
// by the bridge, and one that is down will come up. Its error is ErrNoNIC, with what is missing, or names the NICs
// among which it cannot choose.
func Find(nics []NIC, p Provider) (Network, error) {
	n := Network{}
	for _, prefix := range p.Networks {
		if prefix.Contains(p.Address) {
			n.Prefix = prefix.Masked()
		}
	}
	nic, err := choose(nics, p, n.Prefix)
	if err == nil {
		err = nic.hears()
	}
	if err != nil {
		return Network{}, err
	}
	if !n.Prefix.IsValid() {
		n.Prefix = longest(nic, p.Address)
	}
	if !n.Prefix.IsValid() {
		return Network{}, fmt.Errorf("%w: %s has no address near %s, and the pool names no network", ErrNoNIC, nic.Name,
			p.Address)
	}
	n.Interface, n.MTU = nic.Name, nic.MTU
	n.Bare = n.Prefix.Addr().Is4() && !slices.ContainsFunc(nic.Own, n.Prefix.Contains)
	for _, g := range p.Gateways {
		if n.Prefix.Contains(g) && !n.Gateway.IsValid() {
			n.Gateway = g
		}
	}
	return n, nil
}

func choose(nics []NIC, p Provider, prefix netip.Prefix) (NIC, error) {
	if p.Interface != "" {
		return named(nics, p.Interface)
	}
	var best []NIC
	bits := -1
	for _, nic := range nics {
		found := longest(nic, p.Address)
		if !found.IsValid() || prefix.IsValid() && found.Bits() < prefix.Bits() {
			continue // a wider network, for instance a route to everything private, is no sign of this one
		}
		switch {
		case found.Bits() > bits:
			best, bits = []NIC{nic}, found.Bits()
		case found.Bits() == bits:
			best = append(best, nic)
		}
	}
	switch len(best) {
	case 0:
		return NIC{}, fmt.Errorf("%w: none has an address or a route for %s", ErrNoNIC, p.Address)
	case 1:
		return best[0], nil
	}
	return NIC{}, fmt.Errorf("interfaces %s and %s are both on the network of %s: name one of them in the pool", best[0].Name,
		best[1].Name, p.Address)
}

func named(nics []NIC, name string) (NIC, error) {
	i := slices.IndexFunc(nics, func(n NIC) bool { return n.Name == name })
	if i < 0 {
		return NIC{}, fmt.Errorf("%w: it has no %s", ErrNoNIC, name)
	}
	switch nics[i].MasterKind {
	case "bridge", "bond", "team": // what comes in by the port is the master's
		return named(nics, nics[i].Master)
	}
	return nics[i], nil
}

// hears says why packets that come in by the interface never reach it, or not the routes of this package, nil where they do.
func (n NIC) hears() error {
	switch n.MasterKind {
	case "openvswitch": // its ports have one master, which is never up; an internal port has none (net/openvswitch/vport-netdev.c)
		return fmt.Errorf("%w: %s is a port of Open vSwitch, which takes its packets: name the internal port of its bridge in the pool",
			ErrNoNIC, n.Name)
	case "vrf": // its rule, l3mdev, comes before ours (Documentation/networking/vrf.rst)
		return fmt.Errorf("%w: %s is in the VRF %s, whose packets are led by its own table alone: take it out, or give the pool an "+
			"interface that is in none", ErrNoNIC, n.Name, n.Master)
	}
	return nil
}

// longest returns the narrowest network of nic that contains a.
func longest(nic NIC, a netip.Addr) netip.Prefix {
	var best netip.Prefix
	for _, p := range nic.Networks {
		if p.Contains(a) && (!best.IsValid() || p.Bits() > best.Bits()) {
			best = p
		}
	}
	return best
}

// Resolve tells the kernel of the namespace, nil for that of the process, which Ethernet address a host on the NIC has.
// It forgets that as it forgets what it has found by itself.
func Resolve(ns *os.File, nic string, host netip.Addr, mac net.HardwareAddr) error {
	handle, err := handleAt(ns)
	if err != nil {
		return fmt.Errorf("netlink socket: %w", err)
	}
	defer handle.Close()
	link, err := handle.LinkByName(nic)
	if err != nil {
		return err
	}
	return handle.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, State: netlink.NUD_REACHABLE, IP: host.AsSlice(), HardwareAddr: mac,
	})
}
