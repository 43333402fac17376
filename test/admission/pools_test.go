package admission

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
)

// setPool changes a pool's spec by a merge patch.
func (n *tenant) setPool(name string, spec map[string]any) error {
	n.t.Helper()
	raw, err := json.Marshal(map[string]any{"spec": spec})
	if err != nil {
		n.t.Fatal(err)
	}
	pool := &v1alpha1.FloatingIPPool{ObjectMeta: metav1.ObjectMeta{Name: name}}
	return n.admin.Patch(n.ctx, pool, client.RawPatch("application/merge-patch+json", raw))
}

func (n *tenant) addPool(name string, addresses string) {
	n.t.Helper()
	pool := &v1alpha1.FloatingIPPool{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.FloatingIPPoolSpec{Addresses: []string{addresses}, NamespaceSelector: n.only()},
	}
	if err := n.admin.Create(n.ctx, pool); err != nil {
		n.t.Fatal(err)
	}
	n.awaitPool(name, func(s v1alpha1.FloatingIPPoolStatus) bool {
		return meta.FindStatusCondition(s.Conditions, "Ready") != nil
	})
}

func (n *tenant) deletePool(name string) error {
	return n.admin.Delete(n.ctx, &v1alpha1.FloatingIPPool{ObjectMeta: metav1.ObjectMeta{Name: name}})
}

// A pool in use neither shrinks below what is held nor goes; who is in the way is named. Drained, it empties.
func poolShrunk(t *testing.T, w *world) {
	n := w.tenant(t, 30)
	for i := range 12 {
		n.bound(n.create(fmt.Sprintf("vm-%02d", i), nil))
	}
	for _, wrong := range []string{"soon", "-5m", "5", "5 m"} { // the field's path comes from the CRD
		wantRefusal(t, "quarantine "+wrong, n.setPool(n.ns, map[string]any{"quarantine": wrong}), "spec.quarantine")
	}
	if err := n.setPool(n.ns, map[string]any{"quarantine": "1h30m"}); err != nil {
		t.Errorf("quarantine 1h30m: %v", err)
	}
	less := map[string]any{"addresses": []string{n.address(13) + "-" + n.address(30)}}
	for what, err := range map[string]error{"shrink": n.setPool(n.ns, less), "delete": n.deletePool(n.ns)} {
		wantRefusal(t, what, err, "12 addresses are held", n.address(1)+" (VM "+n.ns+"/vm-00)", n.address(10)+" (VM "+n.ns+"/vm-09)", "drain")
	}
	if err := n.setPool(n.ns, map[string]any{"addresses": []string{n.address(1) + "-" + n.address(20)}}); err != nil {
		t.Errorf("shrink to what is held, and more: %v", err)
	}
	if err := n.setPool(n.ns, map[string]any{"drain": true}); err != nil {
		t.Fatal(err)
	}
	n.awaitPool(n.ns, func(s v1alpha1.FloatingIPPoolStatus) bool {
		ready := meta.FindStatusCondition(s.Conditions, "Ready")
		return ready != nil && ready.Reason == "Draining"
	})
	wantRefusal(t, "create in a drained pool", n.admin.Create(n.ctx, n.newVM("late", nil)), "drained")
	for i := range 12 {
		n.remove(n.get(fmt.Sprintf("vm-%02d", i)))
	}
	n.free(n.address(12))
	n.wait("the empty pool to be deleted", func(context.Context) error { return n.deletePool(n.ns) })
}

// A pool is split while it is used: the other half is made first, overlaps, and has its addresses when the first pool is
// made smaller. The other way round is refused, and comes right when it is tried again, as a GitOps tool does.
func poolSplit(t *testing.T, w *world) {
	n := w.tenant(t, 20)
	low, high := n.create("low", request(n.address(2))), n.create("high", request(n.address(15)))
	n.bound(low)
	n.bound(high)
	first := map[string]any{"addresses": []string{n.address(1) + "-" + n.address(10)}}
	other := n.ns + "-high"
	wantRefusal(t, "shrink before the other pool is there", n.setPool(n.ns, first), n.address(15)+" (VM "+n.ns+"/high)")
	n.addPool(other, n.address(11)+"-"+n.address(20))
	n.awaitPool(other, func(s v1alpha1.FloatingIPPoolStatus) bool {
		return meta.IsStatusConditionTrue(s.Conditions, "Overlapping")
	})
	if err := n.setPool(n.ns, first); err != nil {
		t.Fatalf("shrink to one half while the other pool has the rest: %v", err)
	}
	n.awaitPool(other, func(s v1alpha1.FloatingIPPoolStatus) bool {
		return meta.IsStatusConditionTrue(s.Conditions, "Ready") && !meta.IsStatusConditionTrue(s.Conditions, "Overlapping") &&
			s.IPv4 != nil && s.IPv4.Used == 1
	})
	for _, vm := range []string{"low", "high"} {
		n.bound(n.get(vm))
	}
	wantRefusal(t, "delete the other half", n.deletePool(other), n.address(15)+" (VM "+n.ns+"/high)")
	taken := n.create("of-high", map[string]string{floatip.AnnotationPool: other})
	if got := n.bound(taken); got != n.address(11) {
		t.Errorf("a VM of the new pool got %s, want %s", got, n.address(11))
	}
}
