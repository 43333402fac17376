package fastpath

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

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

// reached is an address of this node, and the number of the link that leads to it. Without a port it is reached by the CNI's
// link.
type reached struct {
	address netip.Addr
	number  int
	port    string // the leg's end on the node
	network leg.Network
	nic     int // the number of the network's link
}

type reachedList []reached

// ways are the addresses that the table knows. Those that are reached by the CNI's link make no flows, so that nothing is ever
// forwarded to them; they are known as addresses of this node, where legs have some of their family.
func ways(c leg.Config, links surroundings) (list reachedList) {
	families := map[family]bool{}
	for _, l := range c.Legs {
		port := leg.PortName(l.Pod)
		number, plugged := links[port]
		if !plugged {
			continue
		}
		for _, a := range usable(c, l) {
			n, _ := c.NetworkOf(a)
			if nic, present := links[n.Interface]; present {
				list = append(list, reached{a, number, port, n, nic})
				families[familyOf(a)] = true
			}
		}
	}
	for _, h := range c.Hops {
		if number, present := links[h.Link]; present && !h.Staged && families[familyOf(h.Address)] {
			list = append(list, reached{address: h.Address, number: number})
		}
	}
	return list
}

func (l reachedList) legs() map[netip.Addr]int {
	legs := map[netip.Addr]int{}
	for _, r := range l {
		legs[r.address] = r.number
	}
	return legs
}

// Extends reports whether everything that the fast path of old lets pass passes that of c too, and by the same way.
func Extends(c, old leg.Config) bool {
	type passage struct {
		pod     string
		network leg.Network
	}
	passages := func(c leg.Config) map[netip.Addr]passage {
		all := map[netip.Addr]passage{}
		for _, l := range c.Legs {
			for _, a := range usable(c, l) {
				n, _ := c.NetworkOf(a)
				all[a] = passage{l.Pod, n}
			}
		}
		return all
	}
	now, before := passages(c), passages(old)
	for a, p := range before {
		if now[a] != p {
			return false
		}
	}
	return len(before) == 0 || slices.Equal(c.ClusterNetworks, old.ClusterNetworks)
}

// blueprint is a plan and all that it was made from. A plan has the rules of each leg, and most of the time it is the one
// before.
type blueprint struct {
	list    reachedList
	cluster []netip.Prefix
	plan    plan
}

// desired says what the table shall hold for c.
func (b *blueprint) desired(c leg.Config, links surroundings) plan {
	list := ways(c, links)
	if b.plan.chains == nil || !slices.Equal(list, b.list) || !slices.Equal(c.ClusterNetworks, b.cluster) {
		*b = blueprint{list, slices.Clone(c.ClusterNetworks), planned(list, c.ClusterNetworks)}
	}
	return b.plan
}

// planned says what the table shall hold for the ways of addresses. It decides everything and touches nothing.
func planned(list reachedList, cluster []netip.Prefix) plan {
	p := plan{state{chains: map[string]string{}, legs: list.legs()}, map[string][]nftrule.Rule{}, map[string]string{}}
	nics, ports := map[string][]family{}, map[string][]nftrule.Rule{}
	networks, numbers := map[netip.Prefix]way{}, map[string]int{}
	for _, r := range list {
		if r.port == "" {
			continue
		}
		n, f := r.network, familyOf(r.address)
		w, known := networks[n.Prefix]
		if !known {
			w = way{f, n.Prefix, n.Gateway, r.nic, ofFamily(cluster, r.address)}
			networks[n.Prefix] = w
			p.add(w.chains())
		}
		if !slices.Contains(nics[n.Interface], f) {
			nics[n.Interface] = append(nics[n.Interface], f)
			p.add(f.shared())
		}
		numbers[r.port], numbers[n.Interface] = r.number, r.nic
		ports[r.port] = append(ports[r.port], onLeg(r.address, w))
	}
	for port, rules := range ports {
		p.addAt(port, numbers[port], rules)
	}
	for nic, families := range nics {
		slices.SortFunc(families, func(a, b family) int { return strings.Compare(a.name, b.name) })
		p.addAt(nic, numbers[nic], onNIC(families))
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
		switch n, _ := c.NetworkOf(a); {
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
	for a := range s.legs {
		if familyOf(a) == f {
			return true
		}
	}
	return false
}
