package firewall

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"floatip.io/floatip"
)

// Selects reports whether policy selects a pod of its namespace with those labels. A selector that cannot be read
// selects every pod, so that those it was meant for are isolated; its rules admit nothing then.
func Selects(policy *networkingv1.NetworkPolicy, podLabels map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(&policy.Spec.PodSelector)
	return err != nil || selector.Matches(labels.Set(podLabels))
}

// isolates reports whether policy isolates the pods that it selects in the direction. Without policyTypes every policy
// isolates ingress, and one with egress rules egress too (comment at NetworkPolicySpec in k8s.io/api/networking/v1).
func isolates(policy *networkingv1.NetworkPolicy, direction networkingv1.PolicyType) bool {
	if len(policy.Spec.PolicyTypes) > 0 {
		return slices.Contains(policy.Spec.PolicyTypes, direction)
	}
	return direction == networkingv1.PolicyTypeIngress || len(policy.Spec.Egress) > 0
}

// rule is an ingress or an egress rule: the two differ in the name of their peers only.
type rule struct {
	peers     []networkingv1.NetworkPolicyPeer
	peersName string
	ports     []networkingv1.NetworkPolicyPort
}

func rulesOf(policy *networkingv1.NetworkPolicy, direction networkingv1.PolicyType) (rules []rule) {
	if direction == networkingv1.PolicyTypeIngress {
		for _, r := range policy.Spec.Ingress {
			rules = append(rules, rule{r.From, "from", r.Ports})
		}
		return rules
	}
	for _, r := range policy.Spec.Egress {
		rules = append(rules, rule{r.To, "to", r.Ports})
	}
	return rules
}

// reader collects what the policies of a pod admit in one direction.
type reader struct {
	direction networkingv1.PolicyType
	named     []corev1.ContainerPort // the pod's
	entries   []floatip.Entry
	problems  []Problem
}

// maxCollected bounds the products of peers and ports that are held at once, about 6 MiB. Many are equal or inside
// others.
const maxCollected = 1 << 16

// policies returns the normal form of all that the policies admit together, and false when none of them isolates the
// pod, which admits everything.
func (r *reader) policies(list []*networkingv1.NetworkPolicy) (normal []floatip.Entry, isolated bool, err error) {
	for _, policy := range list {
		if !isolates(policy, r.direction) {
			continue
		}
		isolated = true
		if err := r.policy(policy); err != nil {
			return nil, true, err
		}
	}
	normal, err = normalise(r.entries)
	return normal, isolated, err
}

func (r *reader) policy(policy *networkingv1.NetworkPolicy) error {
	at := place{policy: policy.Namespace + "/" + policy.Name, field: "spec.podSelector"}
	if _, err := metav1.LabelSelectorAsSelector(&policy.Spec.PodSelector); err != nil {
		r.problem(at, Malformed, "%v; the policy isolates every pod and admits nothing", err)
		return nil
	}
	at.field = "spec.ingress"
	if r.direction == networkingv1.PolicyTypeEgress {
		at.field = "spec.egress"
	}
	for i, rule := range rulesOf(policy, r.direction) {
		addresses := r.peers(rule, at.index(i))
		if len(addresses) == 0 {
			continue // its peers are pods: what its ports would admit does not matter
		}
		services := r.ports(rule.ports, at.index(i).child("ports"))
		if len(r.entries)+len(addresses)*len(services) > maxCollected {
			return fmt.Errorf("%w: more than %d pairs of them in the policies", errTooMany, maxCollected)
		}
		for _, a := range addresses {
			for _, s := range services {
				r.entries = append(r.entries, floatip.Entry{Addresses: a, Protocol: s.protocol, Ports: s.ports})
			}
		}
	}
	return nil
}

// place is where in a policy something stands.
type place struct{ policy, field string }

func (p place) index(i int) place       { return place{p.policy, fmt.Sprintf("%s[%d]", p.field, i)} }
func (p place) child(name string) place { return place{p.policy, p.field + "." + name} }

func (r *reader) problem(at place, reason Reason, format string, args ...any) {
	r.problems = append(r.problems, Problem{reason, at.policy, at.field, fmt.Sprintf(format, args...)})
}
