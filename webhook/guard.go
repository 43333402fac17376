package webhook

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"floatip.io/floatip"
	"floatip.io/floatip/webhook/firewall"
	"floatip.io/floatip/webhook/kubevirt"
)

// FirewallReader reads those who have a say in what may pass the leg of a pod.
type FirewallReader interface {
	// VMAnnotations returns the annotations of the VirtualMachine with the owner's name and UID, or a not-found error.
	VMAnnotations(ctx context.Context, owner floatip.Owner) (map[string]string, error)
	// NetworkPolicies returns all policies of a namespace. They must not be changed.
	NetworkPolicies(ctx context.Context, namespace string) ([]*networkingv1.NetworkPolicy, error)
	// FirewallDefault returns what a pool says about VMs without an allow list, or a not-found error.
	FirewallDefault(ctx context.Context, pool string) (firewall.Default, error)
}

// Guarded is a launcher pod that translates floating addresses.
type Guarded struct {
	// Owner is the VM that holds the addresses.
	Owner floatip.Owner
	// Delivery is that of the addresses. Where packets come under the pod's own address, the CNI enforces the
	// NetworkPolicies, and knows peers in the cluster by their labels: then they have no say here.
	Delivery floatip.Delivery
	// Pools has the pool of each address. An address of an unknown pool is closed unless the VM has an allow list.
	Pools map[netip.Addr]string
	// Labels are the pod's.
	Labels map[string]string
	// Spec is that of the pod's VMI.
	Spec kubevirt.VMISpec
	// Orphaned stands for the allow list of a VM that is gone while its guest runs on, as after a deletion with
	// --cascade=orphan. Without it such a guest is closed.
	Orphaned firewall.AllowList
}

// FirewallOf returns what may pass the leg of a pod, or nil when nobody restricts anything, and what of it could not be
// translated. An error is one of reading the cluster, or of a VMI whose binding cannot be translated.
func FirewallOf(ctx context.Context, cluster FirewallReader, pod Guarded) (
	*floatip.Firewall, []firewall.Problem, error,
) {
	g, err := guestOf(pod.Spec)
	if err != nil {
		return nil, nil, err
	}
	var policies []*networkingv1.NetworkPolicy
	if pod.Delivery.PastCNI() {
		if policies, err = cluster.NetworkPolicies(ctx, pod.Owner.Namespace); err != nil {
			return nil, nil, fmt.Errorf("NetworkPolicies of namespace %s: %w", pod.Owner.Namespace, err)
		}
	}
	allow, unread, err := allowListOf(ctx, cluster, pod)
	if err != nil {
		return nil, nil, err
	}
	if !pod.Delivery.OrDefault().OnNode() {
		return nil, notEnforced(allow, pod), nil
	}
	defaults, unknown, err := defaultsOf(ctx, cluster, pod.Pools)
	if err != nil {
		return nil, nil, err
	}
	passes, problems := firewall.Translate(firewall.Input{
		Labels: pod.Labels, Policies: policies, NamedPorts: g.named, Ports: g.ports, Allow: allow, Defaults: defaults,
	})
	problems = slices.Concat(unread, unknown, problems)
	if passes.Ingress.Everything && passes.Egress.Everything {
		return nil, problems, nil
	}
	return &passes, problems, nil
}

// notEnforced says that an allow list has no effect where neither pod nor node sees the packets.
func notEnforced(allow *firewall.AllowList, pod Guarded) []firewall.Problem {
	if allow == nil {
		return nil
	}
	return []firewall.Problem{{
		Reason: firewall.AllowNotEnforced, Field: annotationsPath.Key(floatip.AnnotationAllow).String(),
		Detail: fmt.Sprintf("addresses delivered by %s are not guarded by floatip: every host reaches the VM unless a "+
			"NetworkPolicy forbids it", pod.Delivery),
	}}
}

// allowListOf returns the VM's allow list, nil if it has none.
func allowListOf(ctx context.Context, cluster FirewallReader, pod Guarded) (
	*firewall.AllowList, []firewall.Problem, error,
) {
	annotations, err := cluster.VMAnnotations(ctx, pod.Owner)
	if apierrors.IsNotFound(err) {
		return &pod.Orphaned, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("annotations of VM %s: %w", pod.Owner, err)
	}
	list, err := firewall.AllowOf(annotations)
	if err != nil {
		return list, []firewall.Problem{{
			Reason: firewall.AllowMalformed, Field: annotationsPath.Key(floatip.AnnotationAllow).String(),
			Detail: err.Error() + "; nobody is admitted from outside",
		}}, nil
	}
	return list, nil, nil
}

// defaultsOf returns the default of the pool of each family. A family without an address follows the other one, so that
// what is written is as short as it can be.
func defaultsOf(ctx context.Context, cluster FirewallReader, pools map[netip.Addr]string) (
	defaults firewall.Defaults, problems []firewall.Problem, err error,
) {
	for _, address := range slices.SortedFunc(maps.Keys(pools), netip.Addr.Compare) {
		one, err := cluster.FirewallDefault(ctx, pools[address])
		if apierrors.IsNotFound(err) {
			one = firewall.DefaultDeny
			problems = append(problems, firewall.Problem{
				Reason: firewall.UnknownPool, Field: address.String(),
				Detail: fmt.Sprintf("there is no FloatingIPPool %q to say whether it is open by default, so it is not",
					pools[address]),
			})
		} else if err != nil {
			return firewall.Defaults{}, nil, fmt.Errorf("FloatingIPPool %s: %w", pools[address], err)
		}
		if address.Is4() || len(pools) == 1 {
			defaults.IPv4 = one
		}
		if !address.Is4() || len(pools) == 1 {
			defaults.IPv6 = one
		}
	}
	return defaults, problems, nil
}
