package fastpath

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/nat/node/nftrule"
)

// state is what the table shall hold, or holds. The zero state is no table.
type state struct {
	chains map[string]string  // the rules of each as text
	legs   map[netip.Addr]int // addresses of this node, with the number of the link that leads to the pod
	there  bool               // the table exists
	// damaged: somebody has changed the addresses of one set and not of the other.
	damaged bool
}

// surroundings are the numbers of the node's links, by name.
type surroundings map[string]int

// plan is the desired state with the rules that its texts stand for.
type plan struct {
	state
	rules map[string][]nftrule.Rule
	// at is the links at whose ingress the chains stand that nobody leads to.
	at map[string]string
}

// desired says what the table shall hold for c. It decides everything and touches nothing.
func desired(c leg.Config, links surroundings) plan {
	p := plan{
		state{chains: map[string]string{}, legs: map[netip.Addr]int{}}, map[string][]nftrule.Rule{}, map[string]string{},
	}
	families := map[string]map[bool]bool{} // by NIC, true is IPv6
	for _, l := range c.Legs {
		port := leg.PortName(l.Pod)
		number, plugged := links[port]
		if !plugged {
			continue
		}
		var from []nftrule.Rule
		for _, a := range usable(c, l) {
			n := network(c, a)
			nic, present := links[n.Interface]
			if !present {
				continue
			}
			w := way{familyOf(a), n.Prefix, n.Gateway, nic, ofFamily(c.ClusterNetworks, a)}
			p.add(w.shared())
			p.add(w.chains())
			p.legs[a] = number
			from = append(from, onLeg(a, w))
			if families[n.Interface] == nil {
				families[n.Interface] = map[bool]bool{}
			}
			families[n.Interface][a.Is6()] = true
		}
		if len(from) > 0 {
			p.addAt(port, number, from)
		}
	}
	// Addresses that are reached by the CNI's link make no flows, so that nothing is ever forwarded to them. They are known as
	// addresses of this node.
	for _, h := range c.Hops {
		if number, present := links[h.Link]; present && !h.Staged && len(p.legs) > 0 && p.has(familyOf(h.Address)) {
			p.legs[h.Address] = number
		}
	}
	for nic, has := range families {
		var list []family
		for _, f := range []family{ipv4, ipv6} {
			if has[f.size == ipv6.size] {
				list = append(list, f)
			}
		}
		p.addAt(nic, links[nic], onNIC(list))
	}
	return p
}

func (p plan) add(chains []nftrule.Chain) {
	for _, c := range chains {
		p.put(c.Name, c.Rules)
	}
}

// addAt adds the chain at the ingress of a link. Its name has the number of the link: where a link is made anew, an old
// kernel forgets the chain, and another one keeps it without the link.
func (p plan) addAt(link string, number int, rules []nftrule.Rule) {
	name := fmt.Sprintf("%s_%d", link, number)
	p.put(name, rules)
	p.at[name] = link
}

func (p plan) put(name string, rules []nftrule.Rule) {
	if _, known := p.chains[name]; known {
		return
	}
	text := ""
	for _, r := range rules {
		text += r.Canonical() + "\n"
	}
	p.chains[name], p.rules[name] = text, rules
}

// usable are the addresses whose packets may pass: those that are in use, on this node now. A leg must take whatever the NIC
// does, since nobody would be told of a packet that is too large.
func usable(c leg.Config, l leg.Leg) (list []netip.Addr) {
	if l.Staged || l.Left {
		return nil
	}
	mtu := 0
	for _, a := range l.Addresses {
		switch n := network(c, a); {
		case n.MTU == 0 || mtu != 0 && mtu != n.MTU:
			return nil
		default:
			mtu = n.MTU
		}
	}
	for _, a := range l.Addresses {
		if !slices.Contains(l.Idle, a) {
			list = append(list, a)
		}
	}
	return list
}

func network(c leg.Config, a netip.Addr) leg.Network {
	i := slices.IndexFunc(c.Networks, func(n leg.Network) bool { return n.Prefix.Contains(a) })
	if i < 0 {
		return leg.Network{}
	}
	return c.Networks[i]
}

func ofFamily(networks []netip.Prefix, a netip.Addr) (list []netip.Prefix) {
	for _, n := range networks {
		if n.Addr().Is6() == a.Is6() {
			list = append(list, n)
		}
	}
	return list
}

// changes is what turns one state into another.
type changes struct {
	write, remove []string     // chains
	put, take     []netip.Addr // addresses; one with another leg is both
}

func difference(want, have state) (c changes) {
	for name, w := range want.chains {
		if old, there := have.chains[name]; !there || old != w {
			c.write = append(c.write, name)
		}
	}
	for name := range have.chains {
		if _, wanted := want.chains[name]; !wanted {
			c.remove = append(c.remove, name)
		}
	}
	slices.Sort(c.write)
	slices.Sort(c.remove)
	c.take = gone(want, have)
	for a, link := range want.legs {
		if old, there := have.legs[a]; !there || old != link {
			c.put = append(c.put, a)
		}
	}
	slices.SortFunc(c.put, netip.Addr.Compare)
	return c
}

// gone are the addresses that are no more, or have another leg.
func gone(want, have state) (list []netip.Addr) {
	for a, link := range have.legs {
		if now, wanted := want.legs[a]; !wanted || now != link {
			list = append(list, a)
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

func (c changes) empty() bool {
	return len(c.write)+len(c.remove)+len(c.put)+len(c.take) == 0
}

// has reports whether the state has addresses of the family.
func (s state) has(f family) bool {
	return slices.ContainsFunc(slices.Collect(maps.Keys(s.legs)), func(a netip.Addr) bool { return familyOf(a).size == f.size })
}
