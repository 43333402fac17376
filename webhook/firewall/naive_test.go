package firewall

import (
	"net"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	netutils "k8s.io/utils/net"

	"floatip.io/floatip"
)

// What follows judges one packet by reading the policies sentence by sentence, as the comments in
// k8s.io/api/networking/v1 have them. It shares no code with the translation that it checks.

type naivePacket struct {
	outside  netip.Addr
	protocol floatip.Protocol
	port     uint16
}

func naiveIngress(in Input, p naivePacket) bool {
	return naivePolicies(in, p, true) && naiveAllow(in, p) && naivePorts(in.Ports, p)
}

func naiveEgress(in Input, p naivePacket) bool { return naivePolicies(in, p, false) }

func naivePorts(list []floatip.Port, p naivePacket) bool {
	if len(list) == 0 || p.protocol == floatip.ProtocolICMP {
		return true
	}
	for _, port := range list {
		if port.Number <= p.port && p.port <= max(port.Number, port.Last) && (port.Protocol == "TCP" && p.protocol == floatip.ProtocolTCP ||
			port.Protocol == "UDP" && p.protocol == floatip.ProtocolUDP) {
			return true
		}
	}
	return false
}

func naiveAllow(in Input, p naivePacket) bool {
	if in.Allow == nil {
		if p.outside.Is4() {
			return in.Defaults.IPv4 != DefaultDeny
		}
		return in.Defaults.IPv6 != DefaultDeny
	}
	for _, e := range in.Allow.entries {
		if e.Addresses.Contains(p.outside) && e.Ports.Contains(p.port) &&
			(e.Protocol == p.protocol || e.Protocol == floatip.ProtocolAny) {
			return true
		}
	}
	return false
}

// naivePolicies: a pod that no policy isolates accepts everything; an isolated one what some policy admits.
func naivePolicies(in Input, p naivePacket, ingress bool) bool {
	isolated := false
	for _, policy := range in.Policies {
		readable, selects := naiveSelects(policy.Spec.PodSelector, in.Labels)
		if readable && !selects || !naiveIsolates(policy.Spec, ingress) {
			continue
		}
		isolated = true
		if readable && naiveAdmits(policy.Spec, in.NamedPorts, p, ingress) {
			return true
		}
	}
	return !isolated
}

func naiveIsolates(spec networkingv1.NetworkPolicySpec, ingress bool) bool {
	types := spec.PolicyTypes
	if len(types) == 0 {
		types = []networkingv1.PolicyType{"Ingress"}
		if len(spec.Egress) > 0 {
			types = append(types, "Egress")
		}
	}
	if ingress {
		return slices.Contains(types, "Ingress")
	}
	return slices.Contains(types, "Egress")
}

func naiveAdmits(spec networkingv1.NetworkPolicySpec, named []corev1.ContainerPort, p naivePacket, ingress bool) bool {
	if ingress {
		for _, r := range spec.Ingress {
			if naivePeers(r.From, p) && naivePortList(r.Ports, named, p) {
				return true
			}
		}
		return false
	}
	for _, r := range spec.Egress {
		if naivePeers(r.To, p) && naivePortList(r.Ports, nil, p) {
			return true
		}
	}
	return false
}

func naivePeers(peers []networkingv1.NetworkPolicyPeer, p naivePacket) bool {
	for _, peer := range peers {
		if peer.IPBlock != nil && peer.PodSelector == nil && peer.NamespaceSelector == nil && naiveBlock(*peer.IPBlock, p) {
			return true
		}
	}
	return len(peers) == 0
}

func naiveBlock(block networkingv1.IPBlock, p naivePacket) bool {
	ip := net.IP(p.outside.AsSlice())
	_, network, err := netutils.ParseCIDRSloppy(block.CIDR)
	if err != nil {
		return false
	}
	inside := network.Contains(ip)
	for _, text := range block.Except {
		_, except, err := netutils.ParseCIDRSloppy(text)
		if err != nil || except.Contains(ip) {
			inside = false
		}
	}
	return inside
}

func naivePortList(list []networkingv1.NetworkPolicyPort, named []corev1.ContainerPort, p naivePacket) bool {
	for _, port := range list {
		if naivePort(port, named, p) {
			return true
		}
	}
	return len(list) == 0
}

func naivePort(port networkingv1.NetworkPolicyPort, named []corev1.ContainerPort, p naivePacket) bool {
	want := corev1.ProtocolTCP
	if port.Protocol != nil {
		want = *port.Protocol
	}
	have := map[floatip.Protocol]corev1.Protocol{6: "TCP", 17: "UDP", 132: "SCTP"}[p.protocol]
	if have == "" || have != want {
		return false
	}
	switch {
	case port.Port == nil:
		return port.EndPort == nil
	case port.Port.Type == intstr.String:
		for _, c := range named {
			protocol := c.Protocol
			if protocol == "" {
				protocol = "TCP"
			}
			if c.Name == port.Port.StrVal && protocol == have && int32(p.port) == c.ContainerPort {
				return port.EndPort == nil && p.port != 0
			}
		}
		return false
	case port.EndPort == nil:
		return p.port != 0 && int32(p.port) == port.Port.IntVal
	}
	return port.Port.IntVal > 0 && *port.EndPort < 65536 &&
		port.Port.IntVal <= int32(p.port) && int32(p.port) <= *port.EndPort
}

// naiveSelects also says whether the selector can be read at all.
func naiveSelects(s metav1.LabelSelector, labels map[string]string) (readable, selects bool) {
	for key, value := range s.MatchLabels {
		if have, ok := labels[key]; !ok || have != value {
			return true, false
		}
	}
	for _, e := range s.MatchExpressions {
		have, ok := labels[e.Key]
		listed := slices.Contains(e.Values, have)
		var matches bool
		switch e.Operator {
		case metav1.LabelSelectorOpIn:
			matches = ok && listed
		case metav1.LabelSelectorOpNotIn:
			matches = !ok || !listed
		case metav1.LabelSelectorOpExists:
			matches = ok
		case metav1.LabelSelectorOpDoesNotExist:
			matches = !ok
		default:
			return false, false
		}
		if !matches {
			return true, false
		}
	}
	return true, true
}
