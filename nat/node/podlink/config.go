package podlink

import (
	"net/netip"

	"floatip.io/floatip"
)

// Address is a floating address and the pod behind it.
type Address struct {
	// Floating is the address, Pod the pod's own of the same family.
	Floating, Pod netip.Addr
	// Link is the node's link to the pod: what the pod sends comes from there.
	Link string
	// Mark is that of the provider network (leg.AssignMarks).
	Mark uint32
	// Translate: the node translates between the two. Otherwise the pod does, and sends under its floating address.
	Translate bool
	// Ingress is what may be opened towards a translated address.
	Ingress floatip.Admitted
}

// Config is all that the node shall hold. The zero Config stands for nothing at all.
type Config struct {
	Addresses []Address
	// ClusterNetworks are those of pods, services and nodes: what a translated pod opens to them keeps its own address.
	ClusterNetworks []netip.Prefix
	// Networks are the provider networks.
	Networks []netip.Prefix
	// Exits are the links by which a floating address may leave besides those of Addresses: the provider NICs and the
	// legs.
	Exits []string
}

func (c Config) family(v6 bool) (addresses []Address) {
	for _, a := range c.Addresses {
		if a.Floating.Is6() == v6 {
			addresses = append(addresses, a)
		}
	}
	return addresses
}

// Admitted returns what a description admits to one address: its firewall, or else the VM's port list, of which the
// firewall is aware.
func Admitted(nat floatip.PodNAT, floating netip.Addr) floatip.Admitted {
	if nat.Firewall != nil {
		return nat.Firewall.Ingress
	}
	for _, b := range nat.Bindings {
		if b.Floating == floating && len(b.Ports) > 0 {
			return listed(b)
		}
	}
	return floatip.Admitted{Everything: true}
}

// listed admits the ports from everywhere, and ICMP, of which a list of TCP and UDP ports says nothing. No two entries
// overlap: the kernel would refuse them.
func listed(b floatip.Binding) (a floatip.Admitted) {
	from := everyone(b.Floating)
	add := func(protocol floatip.Protocol, ports floatip.PortRange) {
		a.Entries = append(a.Entries, floatip.Entry{Addresses: from, Protocol: protocol, Ports: ports})
	}
	add(floatip.ProtocolICMP, floatip.AllPorts())
	for _, p := range floatip.DisjointPorts(b.Ports) {
		protocol := floatip.ProtocolTCP
		if p.Protocol == "UDP" {
			protocol = floatip.ProtocolUDP
		}
		add(protocol, p.Range())
	}
	return a
}
