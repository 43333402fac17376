package firewall

import (
	"cmp"
	"slices"
)

// Reason names a kind of Problem, in the form that conditions and events want.
type Reason string

// What can be wrong, the last three with what callers of Translate read. Each but the last makes the firewall tighter than
// its text, never wider.
const (
	// TooLarge closes a direction: it needs more entries than fit into a pod.
	TooLarge Reason = "FirewallTooLarge"
	// Malformed is a part of a policy that the API does not define. The part admits nothing.
	Malformed Reason = "NetworkPolicyMalformed"
	// UnknownPort is a named port that no container of the pod, and so no interface of the VM, has. It admits nothing.
	UnknownPort Reason = "NetworkPolicyPortUnknown"
	// AllowMalformed is an allow list that cannot be read. It admits nobody.
	AllowMalformed Reason = "AllowListMalformed"
	// UnknownPool is an address whose pool is not there to say its default, which is taken for DefaultDeny.
	UnknownPool Reason = "FloatingIPPoolUnknown"
	// AllowNotEnforced is an allow list of a VM whose addresses somebody delivers who does not know it.
	AllowNotEnforced Reason = "AllowListNotEnforced"
)

// Problem is something in the input that Translate could not turn into what its author may have meant.
type Problem struct {
	Reason Reason
	// Policy is the namespace and name of the policy, "default/web", or empty when all of them together are meant.
	Policy string
	// Field is the path in the policy, "spec.ingress[0].ports[1].port", or the direction when Policy is empty.
	Field string
	// Detail says what is wrong and what follows.
	Detail string
}

// Error returns the sentence for a condition or an event.
func (p Problem) Error() string {
	where := p.Field
	if p.Policy != "" {
		where = "NetworkPolicy " + p.Policy + ": " + p.Field
	}
	return where + ": " + p.Detail
}

// sorted returns the problems in an order that does not depend on that of the policies, so that conditions do not
// flap.
func sorted(problems []Problem) []Problem {
	slices.SortFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Field, b.Field), cmp.Compare(a.Detail, b.Detail))
	})
	return slices.Compact(problems)
}
