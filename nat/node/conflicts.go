package node

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/announce"
)

// tests remembers for which pod an address was found free: it is tested once, when the pod begins to use it.
type tests map[netip.Addr]string

// usable decides whether an address may be used, from where it stands on the LAN. What the kernel answers for already,
// because an earlier agent found it free, and what comes along with a live migration is in use, and is not tested: a
// probe would only find the guest itself.
func (t tests) usable(g Grant, mode Mode, a netip.Addr, already bool, s announce.Standing) bool {
	switch {
	case mode != Active:
		return true // nothing is told to anybody
	case s.State == announce.Taken:
		delete(t, a)
		return false
	case t[a] == g.Pod.UID:
		return true
	case already || slices.Contains(g.InUse, a) || s.State == announce.Free:
		t[a] = g.Pod.UID
		return true
	}
	return false
}

// forget drops what no pod of d is granted.
func (t tests) forget(d Decision) {
	granted := map[netip.Addr]string{}
	for _, g := range d.Grants {
		for _, a := range g.Addresses {
			granted[a] = g.Pod.UID
		}
	}
	for a, pod := range t {
		if granted[a] != pod {
			delete(t, a)
		}
	}
}

// conflictCondition says whether somebody else has the address.
func conflictCondition(a netip.Addr, usable bool, s announce.Standing, nic string) Condition {
	switch {
	case s.State == announce.Taken:
		return Condition{Reason: floatip.ReasonAddressTaken, Message: fmt.Sprintf(
			"another host, %s on %s, has %s; it is not used here before that host gives it up", s.Rival, nic, a)}
	case s.State == announce.Contested:
		return Condition{Reason: floatip.ReasonAddressContested, Message: fmt.Sprintf(
			"another host, %s on %s, claims %s too; this node defends it", s.Rival, nic, a)}
	case !usable:
		return Condition{Reason: "Probing", Message: fmt.Sprintf("asking on %s whether another host has %s", nic, a)}
	}
	return Condition{True: true, Reason: "NoConflict", Message: "no other host on " + nic + " has the address"}
}

// peers knows the nodes by the Ethernet addresses of their provider NICs. Readers are on every packet's way.
type peers struct {
	byMAC atomic.Pointer[map[string]string]
}

func (p *peers) set(agents map[string]floatip.NodeAgent) {
	byMAC := map[string]string{}
	for name, agent := range agents {
		for _, mac := range agent.MACs {
			byMAC[mac] = name
		}
	}
	p.byMAC.Store(&byMAC)
}

// lookup returns the name of the node with this Ethernet address. Before the nodes are known everybody may be one: nobody
// is fought who may be where an address has moved while no agent ran here.
func (p *peers) lookup(mac net.HardwareAddr) (string, bool) {
	m := p.byMAC.Load()
	if m == nil {
		return "", true
	}
	name, ok := (*m)[mac.String()]
	return name, ok
}
