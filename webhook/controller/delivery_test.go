package controller

import (
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
)

// The next address of a running VM comes from pools that deliver as its pod was made for.
func TestSameDelivery(t *testing.T) {
	pool := func(name string, d floatip.Delivery) *v1alpha1.FloatingIPPool {
		return &v1alpha1.FloatingIPPool{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       v1alpha1.FloatingIPPoolSpec{Addresses: []string{"192.0.2.0/24"}, Delivery: d},
		}
	}
	w := newWorld(t, pool("leg", ""), pool("legs", floatip.DeliveryLeg))
	c := Cluster{Cached: w.client, Live: w.client}
	check := func(want []string, like string, pools ...string) {
		t.Helper()
		if got, err := c.sameDelivery(t.Context(), pools, like); err != nil || !slices.Equal(got, want) {
			t.Errorf("of %v, like %s: have %v, %v; want %v", pools, like, got, err, want)
		}
	}
	check(nil, "leg")
	check([]string{"legs", "leg"}, "leg", "legs", "leg")
	w.create(pool("node", floatip.DeliveryNodeNAT))
	check([]string{"leg"}, "leg")
	check([]string{"legs"}, "leg", "node", "legs")
	check([]string{"gone"}, "gone")
}
