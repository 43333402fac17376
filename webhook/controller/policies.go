package controller

import (
	"context"
	"fmt"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook/firewall"
)

// FillCaches makes the manager fill the caches that no controller watches before it starts anything that could open the
// gate. A cache of NetworkPolicies that is filled by the first look would show a closed namespace as open for a moment;
// one of namespaces would have the first VM wait for it (0.1 s on an idle machine).
func FillCaches(ctx context.Context, informers cache.Informers) error {
	for _, object := range []client.Object{&networkingv1.NetworkPolicy{}, metadataOf(namespaceKind)} {
		if _, err := informers.GetInformer(ctx, object, cache.BlockUntilSynced(false)); err != nil {
			return fmt.Errorf("watch %T: %w", object, err)
		}
	}
	return nil
}

// NetworkPolicies returns the policies of a namespace from the cache, not copied: they must not be changed.
func (c Cluster) NetworkPolicies(ctx context.Context, namespace string) ([]*networkingv1.NetworkPolicy, error) {
	var list networkingv1.NetworkPolicyList
	if err := c.Cached.List(ctx, &list, client.InNamespace(namespace), client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list NetworkPolicies: %w", err)
	}
	policies := make([]*networkingv1.NetworkPolicy, len(list.Items))
	for i := range list.Items {
		policies[i] = &list.Items[i]
	}
	return policies, nil
}

// FirewallDefault returns spec.firewall of a pool, or a not-found error.
func (c Cluster) FirewallDefault(ctx context.Context, pool string) (firewall.Default, error) {
	object := &v1alpha1.FloatingIPPool{}
	err := c.get(ctx, types.NamespacedName{Name: pool}, object, func() bool { return true })
	return firewall.Default(object.Spec.Firewall), err
}

// Delivery returns spec.delivery of a pool, or a not-found error.
func (c Cluster) Delivery(ctx context.Context, pool string) (floatip.Delivery, error) {
	object := &v1alpha1.FloatingIPPool{}
	err := c.get(ctx, types.NamespacedName{Name: pool}, object, func() bool { return true })
	return object.Spec.Delivery, err
}
