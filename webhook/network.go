package webhook

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"floatip.io/floatip"
	"floatip.io/floatip/webhook/kubevirt"
)

// Networks between pod and guest that KubeVirt takes when a VMI names none (pkg/virt-launcher/virtwrap/api/defaults.go).
var (
	defaultGuestIPv4 = netip.MustParsePrefix("10.0.2.0/24")
	defaultGuestIPv6 = netip.MustParsePrefix("fd10:0:2::/120")
)

// errNotMasquerade is the cause of every guest whose addresses cannot be translated in the pod.
var errNotMasquerade = errors.New("no interface with masquerade binding on the pod network")

// guest is what there is to translate to: the network between pod and guest for each family, and the ports that the
// VM lists on its interface, ranges among them.
type guest struct {
	ipv4, ipv6 netip.Prefix
	ports      []floatip.Port
	named      []corev1.ContainerPort // those of ports that have a name
}

// guestOf finds the masquerade interface on the pod network; KubeVirt allows at most one pod network
// (pkg/network/admitter). It returns errNotMasquerade for every other binding, and an error for a network or a port
// list that cannot be translated.
func guestOf(spec kubevirt.VMISpec) (guest, error) {
	for _, network := range spec.Networks {
		if network.Pod == nil {
			continue
		}
		for _, nic := range spec.Domain.Devices.Interfaces {
			if nic.Name == network.Name && nic.Masquerade != nil {
				return newGuest(*network.Pod, nic)
			}
		}
	}
	return guest{}, errNotMasquerade
}

func newGuest(network kubevirt.PodNetwork, nic kubevirt.Interface) (guest, error) {
	var g guest
	var err error
	if g.ipv4, err = guestNetwork(network.VMNetworkCIDR, defaultGuestIPv4); err != nil {
		return guest{}, fmt.Errorf("vmNetworkCIDR: %w", err)
	}
	if g.ipv6, err = guestNetwork(network.VMIPv6NetworkCIDR, defaultGuestIPv6); err != nil {
		return guest{}, fmt.Errorf("vmIPv6NetworkCIDR: %w", err)
	}
	if err := g.list(nic); err != nil {
		return guest{}, fmt.Errorf("interface %s: %w", nic.Name, err)
	}
	return g, nil
}

// guestNetwork parses a CIDR as KubeVirt does: the bits of the host are ignored (pkg/network/setup/netpod).
func guestNetwork(cidr string, otherwise netip.Prefix) (netip.Prefix, error) {
	if cidr == "" {
		return otherwise, nil
	}
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not a network: %w", cidr, err)
	}
	if p.Addr().Is4() != otherwise.Addr().Is4() {
		return netip.Prefix{}, fmt.Errorf("%q is of the other address family", cidr)
	}
	if p.Addr().BitLen()-p.Bits() < 2 {
		return netip.Prefix{}, fmt.Errorf("%q has no room for a gateway and a guest", cidr)
	}
	return p.Masked(), nil
}

// list takes the ports and the ranges of an interface. KubeVirt forwards both (setupNATByFamily in
// pkg/network/setup/netpod/masquerade), though its admission allows one of them at a time. An entry that is left out would
// make the list shorter than the VM's, or empty, which opens every port: so each must be one that can be forwarded.
func (g *guest) list(nic kubevirt.Interface) error {
	for _, p := range nic.Ports {
		port, err := forwarded(p)
		if err != nil {
			return err
		}
		g.ports = append(g.ports, port)
		if p.Name != "" {
			g.named = append(g.named, corev1.ContainerPort{
				Name: p.Name, Protocol: corev1.Protocol(port.Protocol), ContainerPort: int32(port.Number),
			})
		}
	}
	for i, r := range nic.PortRanges {
		port, err := forwardedRange(r)
		if err != nil {
			return fmt.Errorf("portRanges[%d].%w", i, err)
		}
		g.ports = append(g.ports, port)
	}
	return nil
}

func forwarded(p kubevirt.Port) (floatip.Port, error) {
	protocol := strings.ToUpper(p.Protocol)
	if protocol == "" {
		protocol = "TCP"
	}
	if protocol != "TCP" && protocol != "UDP" {
		return floatip.Port{}, fmt.Errorf("port %d: protocol %s cannot be forwarded", p.Port, p.Protocol)
	}
	if !isPort(p.Port) {
		return floatip.Port{}, fmt.Errorf("port %d is none", p.Port)
	}
	return floatip.Port{Protocol: protocol, Number: uint16(p.Port)}, nil
}

// forwardedRange wants what KubeVirt's admission wants (validateForwardPortRanges in pkg/network/admitter), but does not
// mind ranges that overlap. The error starts with the field.
func forwardedRange(r kubevirt.PortRange) (floatip.Port, error) {
	protocol := strings.ToUpper(r.Protocol)
	switch {
	case protocol != "TCP" && protocol != "UDP":
		return floatip.Port{}, fmt.Errorf("protocol: %q cannot be forwarded, want TCP or UDP", r.Protocol)
	case !isPort(r.Start):
		return floatip.Port{}, fmt.Errorf("start: %d is no port, want 1 to 65535", r.Start)
	case !isPort(r.End):
		return floatip.Port{}, fmt.Errorf("end: %d is no port, want 1 to 65535", r.End)
	case r.Start > r.End:
		return floatip.Port{}, fmt.Errorf("start: %d is greater than end %d", r.Start, r.End)
	case r.Start == r.End: // sidecars and agents of older releases know single ports
		return floatip.Port{Protocol: protocol, Number: uint16(r.Start)}, nil
	}
	return floatip.Port{Protocol: protocol, Number: uint16(r.Start), Last: uint16(r.End)}, nil
}

func isPort(n int32) bool { return n >= 1 && n <= math.MaxUint16 }

// bind pairs a floating address with the guest's fixed address of the same family: the pod has the first host of the
// network and the guest the second (KubeVirt pkg/network/setup/netpod).
func (g guest) bind(floating netip.Addr) floatip.Binding {
	network := g.ipv6
	if floating.Is4() {
		network = g.ipv4
	}
	gateway := network.Addr().Next()
	return floatip.Binding{
		Floating:     floating,
		Fixed:        gateway.Next(),
		Gateway:      gateway,
		GuestNetwork: network,
		Ports:        g.ports,
	}
}

// podNAT describes the translation for the pod of a VM that holds addresses, and what may pass; a nil firewall lets
// everything pass.
func podNAT(owner floatip.Owner, delivery floatip.Delivery, addresses []netip.Addr, g guest, cluster []netip.Prefix,
	passes *floatip.Firewall) (string, error) {
	nat := floatip.PodNAT{
		Version:         floatip.PodNATVersion,
		Owner:           owner,
		Interface:       floatip.DefaultGuestInterface,
		ClusterNetworks: cluster,
		Firewall:        passes,
	}
	if delivery != floatip.DeliveryLeg { // sidecars of older releases know no other, and no such field
		nat.Delivery = delivery
	}
	for _, a := range addresses {
		nat.Bindings = append(nat.Bindings, g.bind(a))
	}
	return nat.Encode()
}
