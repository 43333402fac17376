package leg

import (
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Holding is what a node holds at a moment.
type Holding struct {
	// Answered are the addresses for which the kernel answers without any agent, by NIC.
	Answered map[string][]netip.Addr
	// Ports are the names of the legs' ends on the node.
	Ports map[string]bool
	// Active and Staged are the addresses whose packets are led to a pod, with the way to it: PortName or HopName.
	Active, Staged map[netip.Addr]string
	// Networks are the provider networks that have rules. Their MTU is not known.
	Networks []Network
	// Links are the numbers of all links of the node, by name.
	Links map[string]int

	answered map[netip.Addr]bool // all of Answered
	links    []netlink.Link
	state    state
	// outdated: state is not what the node holds now.
	outdated bool
}

// Answers reports whether the kernel answers for a.
func (h Holding) Answers(a netip.Addr) bool { return h.answered[a] }

// Holding reads what the node holds.
func (n *Node) Holding() (Holding, error) {
	have, links, err := n.read()
	h := Holding{
		Answered: map[string][]netip.Addr{}, Ports: map[string]bool{}, Active: map[netip.Addr]string{}, Staged: map[netip.Addr]string{},
		Networks: have.networks(), Links: map[string]int{}, answered: map[netip.Addr]bool{}, links: links, state: have,
	}
	for _, l := range links {
		h.Links[l.Attrs().Name] = l.Attrs().Index
	}
	for p := range have.proxies {
		h.Answered[p.Dev] = append(h.Answered[p.Dev], p.Address)
		h.answered[p.Address] = true
	}
	for name := range have.ports {
		h.Ports[name] = true
	}
	for k, r := range have.routes {
		port := r.Dev
		if r.Via.IsValid() {
			port = HopName(r.Via)
		}
		switch {
		case !k.ofAddress(r):
		case k.Table == tableStaged:
			h.Staged[k.To.Addr()] = port
		default:
			h.Active[k.To.Addr()] = port
		}
	}
	return h, err
}

// plugged takes in that Plug has made a leg: it is up, and its guard lets nothing in.
func (h *Holding) plugged(l netlink.Link) {
	name := l.Attrs().Name
	h.Ports[name], h.Links[name] = true, l.Attrs().Index
	h.state.ports[name] = port{Up: true, Ether: etherOf(l), MTU: l.Attrs().MTU}
	h.state.guards[theTable], h.state.guards[name] = "", new(guardTexts).of(nil)
}
