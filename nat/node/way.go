package node

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/handover"
	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/nat/node/podlink"
)

// What a delivery asks of a round is in this file:
//
//	           session  way to the pod               translates  guest seen by
//	Leg        yes      leg.Leg, plugged by us       sidecar     the pod's kernel
//	Routed     yes      leg.Hop by the CNI's link    sidecar     the pod's kernel
//	NodeNAT    no       leg.Hop by the CNI's link    podlink     KubeVirt

// hops says whether packets of the pod travel by the CNI's link.
func (pp *podPlan) hops() bool { return pp.grant.Delivery != floatip.DeliveryLeg }

// onNode says whether this node translates for the pod.
func (pp *podPlan) onNode() bool { return !pp.grant.Delivery.InPod() }

// inUse says whether the node leads packets of an address to the pod. Where it translates it has no use for a pod
// that a guest may come to: connections do not survive, since the pod's address is another one.
func (pp *podPlan) inUse(a netip.Addr) bool {
	return pp.usable[a] && (pp.mode == Active || pp.mode == Staged && !pp.onNode())
}

// way names the way of an address to the pod as leg.Holding does.
func (g Grant) way(a netip.Addr) string {
	if g.Delivery == floatip.DeliveryLeg {
		return leg.PortName(g.Pod.UID)
	}
	return leg.HopName(g.Pod.ip(a.Is6()))
}

// held reports whether the kernel holds what an earlier round made for the pod.
func held(g Grant, holding leg.Holding) bool {
	if g.Delivery == floatip.DeliveryLeg {
		return holding.Ports[leg.PortName(g.Pod.UID)]
	}
	return slices.ContainsFunc(g.Addresses, func(a netip.Addr) bool {
		return holding.Active[a] == g.way(a) || holding.Staged[a] == g.way(a)
	})
}

// errNoPodIP: the kubelet has not said which addresses the pod has.
var errNoPodIP = errors.New("the pod has no address yet")

// reach makes the way to the pod, or finds the one that the CNI made.
func (a *Agent) reach(pp *podPlan, holding *leg.Holding, networks []leg.Network) error {
	if pp.hops() && pp.mode != Left {
		if err := a.findHops(pp, networks); err != nil {
			return err
		}
	}
	if pp.onNode() {
		return nil
	}
	now, wanted := time.Now(), fmt.Sprint(pp.grant.Delivery, pp.grant.Addresses, pp.mtu)
	if pp.plugged && pp.session.isChecked(wanted, now) {
		return nil
	}
	err := pp.session.inNamespace(func(ns *os.File) error { return a.plugPod(pp, holding, ns) })
	if err == nil {
		pp.session.setChecked(wanted, now)
	}
	return err
}

// findHops finds the node's link to the pod for each address. A link that was there a moment ago, and is not now
// because the CNI makes its routes anew, is no reason to withdraw: the last one known counts.
func (a *Agent) findHops(pp *podPlan, networks []leg.Network) error {
	nics := map[string]bool{}
	for _, n := range networks {
		nics[n.Interface] = true
	}
	for _, address := range pp.grant.Addresses {
		ip := pp.grant.Pod.ip(address.Is6())
		if !ip.IsValid() {
			return fmt.Errorf("%s: %w", address, errNoPodIP)
		}
		name, err := a.kernel.LinkTo(ip, nics)
		key := linkKey{pp.grant.Pod.UID, ip}
		switch {
		case err == nil:
			a.links[key] = name
		case a.links[key] != "" && errors.Is(err, leg.ErrNoWay):
			name = a.links[key]
		default:
			return err
		}
		pp.ways[address] = leg.Hop{Address: address, Pod: ip, Link: name}
	}
	return nil
}

// linkKey is a pod's address.
type linkKey struct {
	pod string // UID
	ip  netip.Addr
}

// forgetLinks drops what is known of pods that are granted nothing any more.
func (a *Agent) forgetLinks(d Decision) {
	granted := map[string]bool{}
	for _, g := range d.Grants {
		granted[g.Pod.UID] = true
	}
	for key := range a.links {
		if !granted[key.pod] {
			delete(a.links, key)
		}
	}
}

// ip returns the pod's own address of a family.
func (p Pod) ip(v6 bool) netip.Addr {
	if v6 {
		return p.IPv6
	}
	return p.IPv4
}

// mark gives the networks of hops their packet marks. Addresses of a network that gets none have no way.
func (p *plan) mark(networks, inUse []leg.Network) []leg.Network {
	var marked, plain []leg.Network
	for _, n := range networks {
		if slices.ContainsFunc(p.pods, func(pp *podPlan) bool { return pp.hopsIn(n) }) {
			marked = append(marked, n)
		} else {
			plain = append(plain, n)
		}
	}
	marked = leg.AssignMarks(marked, inUse)
	for _, n := range marked {
		if n.Mark != 0 {
			continue
		}
		for _, pp := range p.pods {
			if pp.hopsIn(n) {
				maps.DeleteFunc(pp.ways, func(a netip.Addr, _ leg.Hop) bool { return n.Prefix.Contains(a) })
				pp.fail(fmt.Errorf("provider network %s: %w", n.Prefix, leg.ErrTooManyMarks))
			}
		}
	}
	return append(plain, marked...)
}

// hopsIn says whether the pod has an address of the network that goes by the CNI's link.
func (pp *podPlan) hopsIn(n leg.Network) bool {
	return slices.ContainsFunc(pp.grant.Addresses, func(a netip.Addr) bool {
		_, hops := pp.ways[a]
		return hops && n.Prefix.Contains(a)
	})
}

// podlink is the plan in the words of package podlink.
func (p plan) podlink(networks []leg.Network, cluster []netip.Prefix) podlink.Config {
	c := podlink.Config{ClusterNetworks: p.clusterNetworks(cluster)}
	for _, pp := range p.pods {
		if !pp.hops() {
			c.Exits = append(c.Exits, leg.PortName(pp.grant.Pod.UID))
		}
	}
	for _, n := range networks {
		c.Networks, c.Exits = append(c.Networks, n.Prefix), append(c.Exits, n.Interface)
	}
	slices.Sort(c.Exits)
	c.Exits = slices.Compact(c.Exits)
	for _, pp := range p.pods {
		for _, a := range pp.grant.Addresses {
			hop, found := pp.ways[a]
			if !found || !pp.inUse(a) {
				continue
			}
			c.Addresses = append(c.Addresses, podlink.Address{
				Floating: a, Pod: hop.Pod, Link: hop.Link, Mark: networkOf(networks, a).Mark,
				Translate: pp.onNode(), Ingress: podlink.Admitted(pp.grant.NAT, a),
			})
		}
	}
	return c
}

// counters are those of the addresses that this node translates.
func (a *Agent) counters(p plan) (list []handover.Counter, err error) {
	if !slices.ContainsFunc(p.pods, (*podPlan).onNode) {
		return nil, nil
	}
	counters, err := a.podlink.Counters()
	for _, c := range counters {
		list = append(list, handover.Counter{
			Floating: c.Floating, In: handover.Figure(c.In), Out: handover.Figure(c.Out), Refused: handover.Figure(c.Refused),
		})
	}
	return list, err
}

// natCondition says whether the rules for an address stand: in the pod by its sidecar, or on this node.
func (pp *podPlan) natCondition(address netip.Addr, failed error) Condition {
	switch {
	case !pp.onNode():
		return natCondition(address, pp.state, pp.err)
	case failed != nil:
		return Condition{Reason: "NotTranslated", Message: "this node has no rules for the address: " + failed.Error()}
	case pp.mode != Active:
		return Condition{Reason: "NotTranslated", Message: "the guest is not here"}
	case !pp.usable[address]:
		return Condition{Reason: "NotTranslated", Message: "another host may have the address"}
	}
	return Condition{True: true, Reason: "Translated", Message: fmt.Sprintf(
		"this node translates between %s and the pod's address %s", address, pp.ways[address].Pod)}
}

func (pp *podPlan) wayCondition(failed error) Condition {
	switch {
	case errors.Is(failed, errNoPodIP), errors.Is(failed, leg.ErrNoWay):
		return Condition{Reason: "WaitingForPod", Message: failed.Error()}
	case failed != nil || !pp.hops():
		return legCondition(failed)
	}
	return Condition{True: true, Reason: "Routed", Message: "routes and rules lead to the pod by the CNI's own link"}
}

// guestCondition: a node that translates sees no neighbour table of the pod. It believes KubeVirt.
func (pp *podPlan) guestCondition(address netip.Addr) Condition {
	switch {
	case !pp.onNode():
		return guestCondition(pp.guest[address], pp.grant.NAT, address)
	case pp.guest[address]:
		return Condition{True: true, Reason: "GuestRuns", Message: "KubeVirt says that the guest runs"}
	}
	return Condition{Reason: "GuestNotRunning", Message: "KubeVirt does not say yet that the guest runs"}
}
