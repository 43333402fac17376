package firewall

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"floatip.io/floatip"
)

// service is a protocol with a range of its ports.
type service struct {
	protocol floatip.Protocol
	ports    floatip.PortRange
}

// ports returns what the port list of a rule speaks of. An empty list is every protocol and port, ICMP among them.
func (r *reader) ports(list []networkingv1.NetworkPolicyPort, at place) (services []service) {
	if len(list) == 0 {
		return []service{{floatip.ProtocolAny, floatip.AllPorts()}}
	}
	for i, p := range list {
		services = append(services, r.port(p, at.index(i))...)
	}
	return services
}

func (r *reader) port(p networkingv1.NetworkPolicyPort, at place) []service {
	name := corev1.ProtocolTCP // the API's default
	if p.Protocol != nil {
		name = *p.Protocol
	}
	protocol, ok := protocols[name]
	switch {
	case !ok:
		r.problem(at.child("protocol"), Malformed, "%q is not TCP, UDP or SCTP; the port admits nothing", name)
		return nil
	case p.Port == nil && p.EndPort == nil:
		return []service{{protocol, floatip.AllPorts()}}
	case p.Port != nil && p.Port.Type == intstr.String && p.EndPort == nil:
		return r.namedPort(name, p.Port.StrVal, at.child("port"))
	case p.EndPort != nil && (p.Port == nil || p.Port.Type == intstr.String):
		r.problem(at.child("endPort"), Malformed, "there is no port with a number to start from; the port admits nothing")
		return nil
	}
	first, last := p.Port.IntVal, p.Port.IntVal
	if p.EndPort != nil {
		last = *p.EndPort
	}
	if first < 1 || last < first || last > 65535 {
		r.problem(at, Malformed, "%d to %d is no range of ports; it admits nothing", first, last)
		return nil
	}
	return []service{{protocol, floatip.PortRange{First: uint16(first), Last: uint16(last)}}}
}

var protocols = map[corev1.Protocol]floatip.Protocol{
	corev1.ProtocolTCP:  floatip.ProtocolTCP,
	corev1.ProtocolUDP:  floatip.ProtocolUDP,
	corev1.ProtocolSCTP: floatip.ProtocolSCTP,
}

// namedPort looks the name up in the pod that traffic goes to. For egress that is a host outside, which has no names.
func (r *reader) namedPort(protocol corev1.Protocol, name string, at place) (services []service) {
	if r.direction == networkingv1.PolicyTypeEgress {
		r.problem(at, UnknownPort, "hosts outside the cluster have no port named %q; it admits nothing there", name)
		return nil
	}
	for _, p := range r.named {
		if p.Name == name && protocolOf(p) == protocol && p.ContainerPort >= 1 && p.ContainerPort <= 65535 {
			port := uint16(p.ContainerPort)
			services = append(services, service{protocols[protocol], floatip.PortRange{First: port, Last: port}})
		}
	}
	if len(services) == 0 {
		r.problem(at, UnknownPort, "the pod has no %s port named %q; it admits nothing", protocol, name)
	}
	return services
}

func protocolOf(p corev1.ContainerPort) corev1.Protocol {
	if p.Protocol == "" {
		return corev1.ProtocolTCP
	}
	return p.Protocol
}
