package controller

import (
	"context"
	"fmt"
	"slices"

	"floatip.io/floatip/ipam/v1alpha1"
)

// sameDelivery returns those of pools that deliver as the pool like does: a pod that runs was made for one delivery. No
// pools stand for all that a VM may have an address from, and they are returned where all there are deliver alike.
func (c Cluster) sameDelivery(ctx context.Context, pools []string, like string) ([]string, error) {
	var list v1alpha1.FloatingIPPoolList
	if err := c.Cached.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list FloatingIPPools: %w", err)
	}
	i := slices.IndexFunc(list.Items, func(p v1alpha1.FloatingIPPool) bool { return p.Name == like })
	if i < 0 {
		return []string{like}, nil
	}
	differs := func(p v1alpha1.FloatingIPPool) bool {
		return p.Spec.Delivery.OrDefault() != list.Items[i].Spec.Delivery.OrDefault()
	}
	if len(pools) == 0 && slices.ContainsFunc(list.Items, differs) {
		return []string{like}, nil
	}
	return slices.DeleteFunc(slices.Clone(pools), func(name string) bool {
		j := slices.IndexFunc(list.Items, func(p v1alpha1.FloatingIPPool) bool { return p.Name == name })
		return j >= 0 && differs(list.Items[j])
	}), nil
}
