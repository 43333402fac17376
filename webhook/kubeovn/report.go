package kubeovn

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip/ipam/v1alpha1"
)

// report writes what is true of the address into its status. The node stays empty: which one answers is OVN's to say.
func (d *Driver) report(ctx context.Context, f *v1alpha1.FloatingIP, s seen, next step) error {
	after := f.DeepCopy()
	after.Status.Phase = v1alpha1.PhaseBound
	if next.nat {
		after.Status.Phase = v1alpha1.PhaseReady
	}
	for _, kind := range []string{v1alpha1.ConditionNATReady, v1alpha1.ConditionReady} {
		status := metav1.ConditionFalse
		if next.nat {
			status = metav1.ConditionTrue
		}
		meta.SetStatusCondition(&after.Status.Conditions, metav1.Condition{
			Type: kind, Status: status, Reason: next.reason, Message: next.message, ObservedGeneration: f.Generation,
		})
	}
	patch := client.MergeFromWithOptions(f, client.MergeFromWithOptimisticLock{})
	raw, err := patch.Data(after)
	if err != nil {
		return fmt.Errorf("status of FloatingIP %s: %w", f.Name, err)
	}
	if same(f.Status, after.Status) || len(raw) == 0 {
		return nil
	}
	if err := d.Client.Status().Patch(ctx, after, patch, client.FieldOwner(fieldManager)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write status of FloatingIP %s: %w", f.Name, err)
	}
	return nil
}

func same(a, b v1alpha1.FloatingIPStatus) bool {
	if a.Phase != b.Phase || len(a.Conditions) != len(b.Conditions) {
		return false
	}
	for i := range a.Conditions {
		x, y := a.Conditions[i], b.Conditions[i]
		if x.Type != y.Type || x.Status != y.Status || x.Reason != y.Reason || x.Message != y.Message {
			return false
		}
	}
	return true
}
