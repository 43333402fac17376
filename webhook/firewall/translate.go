package firewall

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"floatip.io/floatip"
)

// Default is what a pool says about VMs without an allow list.
type Default string

// The defaults that a pool can have. The empty one is DefaultAllow; an unknown one denies.
const (
	DefaultAllow Default = "Allow"
	DefaultDeny  Default = "Deny"
)

// Input is everything that has a say in what passes the leg of one pod.
type Input struct {
	// Labels are those of the virt-launcher pod; KubeVirt copies them from the VM's template.
	Labels map[string]string
	// Policies are the NetworkPolicies of the pod's namespace. They are not changed.
	Policies []*networkingv1.NetworkPolicy
	// NamedPorts are those of the pod that lead to the guest: the ports of the VM's interface, which KubeVirt lists at the
	// compute container (containerPortsFromVMI in pkg/virt-controller/services/rendercontainer.go).
	NamedPorts []corev1.ContainerPort
	// Ports are those that the VM lists on its interface, ranges among them. An empty list admits every port and protocol.
	Ports []floatip.Port
	// Allow is the VM's allow list (AllowOf), nil when it has none.
	Allow *AllowList
	// Defaults are those of the pools, for a VM without an allow list.
	Defaults Defaults
}

// Defaults has the default of the pool that the VM's address of each family comes from. Without an address of a family
// it does not matter.
type Defaults struct{ IPv4, IPv6 Default }

// Translate returns what may pass the leg of the pod. A connection from outside is admitted when the policies, the
// VM's ports, and its allow list or else the pool's default all admit it; one of the guest to the outside when the
// policies do. The result depends on the meaning of the input alone, not on the order of anything in it, so that a
// caller can compare it with what it wrote before.
//
// A direction that needs more entries than fit is closed and reported as TooLarge. All problems are sorted.
func Translate(in Input) (floatip.Firewall, []Problem) {
	selecting := slices.Clone(in.Policies)
	selecting = slices.DeleteFunc(selecting, func(p *networkingv1.NetworkPolicy) bool { return !Selects(p, in.Labels) })

	if len(selecting) == 0 && in.open() {
		everything := floatip.Admitted{Everything: true}
		return floatip.Firewall{Ingress: everything, Egress: everything}, nil
	}
	egress := reader{direction: networkingv1.PolicyTypeEgress}
	out := egress.admitted(selecting)
	ingress := reader{direction: networkingv1.PolicyTypeIngress, named: in.NamedPorts}
	inwards := ingress.admitted(selecting, in.allowed(), listed(in.Ports))
	return floatip.Firewall{Ingress: inwards, Egress: out}, sorted(slices.Concat(ingress.problems, egress.problems))
}

// open reports whether nothing but policies could restrict the pod. Most pods are open, and are found to be without the
// work that sets of addresses and ports make.
func (in Input) open() bool {
	return in.Allow == nil && in.Defaults.IPv4.allows() && in.Defaults.IPv6.allows() && len(in.Ports) == 0
}

// admitted returns what the policies and every one of the others admit.
func (r *reader) admitted(selecting []*networkingv1.NetworkPolicy, others ...[]floatip.Entry) floatip.Admitted {
	list, isolated, err := r.policies(selecting)
	if !isolated {
		list = everything()
	}
	for _, other := range others {
		if err != nil {
			break
		}
		list, err = intersect(list, other)
	}
	if err != nil {
		r.problem(place{field: string(r.direction)}, TooLarge, "%v; nothing new is admitted until the set is smaller", err)
		return floatip.Admitted{}
	}
	return newAdmitted(list)
}

// allowed returns what the allow list admits, or the defaults of the pools in its place.
func (in Input) allowed() (list []floatip.Entry) {
	if in.Allow != nil {
		return in.Allow.entries
	}
	for _, e := range everything() {
		if in.Defaults.of(e.Addresses.First).allows() {
			list = append(list, e)
		}
	}
	return list
}

func (d Defaults) of(a netip.Addr) Default {
	if a.Is4() {
		return d.IPv4
	}
	return d.IPv6
}

func (d Default) allows() bool { return d == DefaultAllow || d == "" }

// listed returns what the port list of the VM's interface admits: its ports from everywhere, and echo requests, of
// which a list of TCP and UDP ports says nothing.
func listed(ports []floatip.Port) (list []floatip.Entry) {
	if len(ports) == 0 {
		return everything()
	}
	for _, from := range everything() {
		from.Protocol = floatip.ProtocolICMP
		list = append(list, from)
		for _, p := range ports {
			protocol, ok := protocols[corev1.Protocol(p.Protocol)]
			if !ok {
				continue // PodNAT.Validate refuses it; here it must not become ProtocolAny
			}
			from.Protocol, from.Ports = protocol, p.Range()
			list = append(list, from)
		}
	}
	return list
}
