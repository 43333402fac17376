package leg

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Hop is the way of a floating address to a pod by the CNI's own link: what deliveries other than the leg use. Rules
// and marks that go with it are those of package podlink.
type Hop struct {
	// Address is the floating address, Pod the pod's own of the same family.
	Address, Pod netip.Addr
	// Link is the node's link by which it reaches Pod.
	Link string
	// Staged and Silent as for a Leg.
	Staged, Silent bool
}

// HopName is the way to the pod with this address, where Holding names ways.
func HopName(pod netip.Addr) string { return "via " + pod.String() }

// MarkMask are the bits of a packet's mark on the node that are floatip's. Of the bits that others document, kube-proxy
// has 0xc000, Calico 0xffff0000, Cilium 0x0f00 (and 0xf000 with IPsec), OVN-Kubernetes 0x03f0, Antrea 0x80ff0000 and
// 0xff, the AWS CNI 0x80.
const MarkMask uint32 = 0x3000

// marks are the values that networks get, one for each of a family.
var marks = []uint32{0x1000, 0x2000, 0x3000}

// AssignMarks gives each network a mark of its own. It keeps those that inUse has, since connections pass by them. When
// the marks are used up, the rest of the networks have none.
func AssignMarks(networks, inUse []Network) []Network {
	out := slices.Clone(networks)
	taken := func(v6 bool, mark uint32) bool {
		return slices.ContainsFunc(out, func(n Network) bool { return n.Prefix.Addr().Is6() == v6 && n.Mark == mark })
	}
	for i := range out {
		out[i].Mark = 0
	}
	for i, n := range out {
		for _, o := range inUse {
			if o.Prefix == n.Prefix && o.Mark != 0 && !taken(n.Prefix.Addr().Is6(), o.Mark) {
				out[i].Mark = o.Mark
			}
		}
	}
	for i, n := range out {
		if out[i].Mark != 0 {
			continue
		}
		if free := slices.IndexFunc(marks, func(m uint32) bool { return !taken(n.Prefix.Addr().Is6(), m) }); free >= 0 {
			out[i].Mark = marks[free]
		}
	}
	return out
}

// addHop makes what one address needs: its route, and a proxy entry, which the kernel heeds only for an address with a
// route. The pod's own address leaves the way back to the main table: marked packets to the pod look there first.
func (s *state) addHop(h Hop, n Network, back int) {
	table := back
	if h.Staged {
		table = tableStaged
		s.addStaged(n)
	}
	s.routes[routeKey{table, netip.PrefixFrom(h.Address, h.Address.BitLen())}] = route{
		Kind: unix.RTN_UNICAST, Dev: h.Link, Via: h.Pod,
	}
	s.routes[routeKey{back, netip.PrefixFrom(h.Pod, h.Pod.BitLen())}] = route{Kind: unix.RTN_THROW}
	if !h.Staged && !h.Silent {
		s.proxies[proxy{n.Interface, h.Address}] = struct{}{}
	}
}

// addMark leads marked packets of the network by its way back. The NIC's reverse-path filter has to look at the mark
// (src_valid_mark): what arrives there for a pod was addressed to its floating address, and goes back by this NIC.
func (s *state) addMark(n Network, back map[netip.Prefix]int) {
	v6 := n.Prefix.Addr().Is6()
	s.rules[rule{Priority: ruleMarked, V6: v6, Mark: n.Mark, Mask: MarkMask, Table: back[n.Prefix]}] = struct{}{}
	s.addAcross(rule{Mark: n.Mark, Mask: MarkMask}, n, back)
	if !v6 {
		s.sysctls["ipv4/conf/"+n.Interface+"/src_valid_mark"] = "1"
	}
}

var (
	// ErrNoWay: the CNI has not made a route to the pod yet.
	ErrNoWay   = errors.New("the node has no route to the pod")
	errBadLink = errors.New("no link of a pod")
)

// LinkTo returns the link by which the node reaches a pod's address, as the CNI made it. An address that is the node's
// own, or reached by a provider NIC in nics or by a leg, is none of a pod: somebody invented it.
func (n *Node) LinkTo(pod netip.Addr, nics map[string]bool) (string, error) {
	routes, err := n.netlink.RouteGet(net.IP(pod.AsSlice()))
	if err != nil || len(routes) == 0 {
		return "", fmt.Errorf("%w %s yet", ErrNoWay, pod)
	}
	r := routes[0]
	link, err := n.netlink.LinkByIndex(r.LinkIndex)
	if err != nil {
		return "", fmt.Errorf("link to pod %s: %w", pod, err)
	}
	name := link.Attrs().Name
	if r.Type != unix.RTN_UNICAST || link.Attrs().Flags&net.FlagLoopback != 0 || isPort(name) || nics[name] {
		return "", fmt.Errorf("the route to %s leads by %s, which is %w", pod, name, errBadLink)
	}
	return name, nil
}
