package controller

import (
	"context"
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook"
)

// show makes the FloatingIP object of a Bound line. Its spec is the webhook's; of its status only the phase Bound is,
// and only as long as nobody else wrote one, and the conditions Allocated and Carried: node, pod, the other conditions and
// Ready are the node agent's. There is no carried while the VM has no instance.
func (r *VMs) show(ctx context.Context, line ipam.Allocation, carried *metav1.Condition) error {
	want := specOf(line)
	name := v1alpha1.Name(line.Address)
	have := &v1alpha1.FloatingIP{}
	switch err := r.Cluster.Cached.Get(ctx, types.NamespacedName{Name: name}, have); {
	case apierrors.IsNotFound(err):
		have = &v1alpha1.FloatingIP{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: want}
		if err := r.Writer.Create(ctx, have, client.FieldOwner(FieldManager)); err != nil {
			return fmt.Errorf("create FloatingIP %s: %w", name, err)
		}
	case err != nil:
		return fmt.Errorf("read FloatingIP %s: %w", name, err)
	case have.Spec.VM.UID != want.VM.UID:
		// Of an earlier owner: its status speaks of other pods. It is made anew when the deletion is seen.
		return r.drop(ctx, have)
	case have.Spec != want:
		if err := r.patch(ctx, have, map[string]any{"spec": want}); err != nil {
			return err
		}
	}
	if err := r.unflag(ctx, have); err != nil {
		return err
	}
	return r.showConditions(ctx, have, line, carried)
}

// showConditions writes the conditions Allocated and Carried, and the first phase. The other conditions are left alone: the
// list is written for the very version that was read.
func (r *VMs) showConditions(ctx context.Context, have *v1alpha1.FloatingIP, line ipam.Allocation, carried *metav1.Condition) error {
	after := have.DeepCopy()
	changed := meta.SetStatusCondition(&after.Status.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionAllocated, Status: metav1.ConditionTrue, Reason: line.State.String(),
		Message:            "the ledger has it with VM " + line.Owner.String() + ", from pool " + line.Pool,
		ObservedGeneration: have.Generation,
	})
	if carried == nil {
		changed = meta.RemoveStatusCondition(&after.Status.Conditions, v1alpha1.ConditionCarried) || changed
	} else {
		want := *carried
		want.ObservedGeneration = have.Generation
		changed = meta.SetStatusCondition(&after.Status.Conditions, want) || changed
	}
	if after.Status.Phase == "" {
		after.Status.Phase, changed = v1alpha1.PhaseBound, true
	}
	if !changed {
		return nil
	}
	patch := client.MergeFromWithOptions(have, client.MergeFromWithOptimisticLock{})
	if err := r.Writer.Status().Patch(ctx, after, patch, client.FieldOwner(FieldManager)); err != nil {
		return fmt.Errorf("write phase and conditions of FloatingIP %s: %w", have.Name, err)
	}
	return nil
}

func specOf(line ipam.Allocation) v1alpha1.FloatingIPSpec {
	return v1alpha1.FloatingIPSpec{
		Address: line.Address.String(),
		Pool:    line.Pool,
		VM: v1alpha1.VMReference{
			Namespace: line.Owner.Namespace, Name: line.Owner.Name, UID: types.UID(line.Owner.UID),
		},
	}
}

// dropStray deletes the FloatingIP objects of the VM's name whose address the ledger does not give to their VM.
func (r *VMs) dropStray(ctx context.Context, key types.NamespacedName) error {
	var list v1alpha1.FloatingIPList
	if err := r.Cluster.Cached.List(ctx, &list, client.MatchingFields{indexVM: key.String()}); err != nil {
		return fmt.Errorf("list FloatingIPs of VM %s: %w", key, err)
	}
	for i := range list.Items {
		ip := &list.Items[i]
		if !r.holds(ip) && !r.claims(ip) {
			if err := r.drop(ctx, ip); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *VMs) holds(ip *v1alpha1.FloatingIP) bool {
	for _, line := range r.Ledger.ByOwner(string(ip.Spec.VM.UID)) {
		if v1alpha1.Name(line.Address) == ip.Name {
			return true
		}
	}
	return false
}

func (r *VMs) drop(ctx context.Context, ip *v1alpha1.FloatingIP) error {
	err := r.Writer.Delete(ctx, ip, client.Preconditions{UID: &ip.UID})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete FloatingIP %s of VM %s/%s: %w", ip.Name, ip.Spec.VM.Namespace, ip.Spec.VM.Name, err)
	}
	return nil
}

// putBack writes floatip's annotations on the VM again where a controller of KubeVirt replaced them, which the
// admission policies let through.
func (r *VMs) putBack(ctx context.Context, now carriers, lines []ipam.Allocation) error {
	if now.vm == nil || string(now.vm.UID) != lines[0].Owner.UID || now.vm.DeletionTimestamp != nil {
		return nil
	}
	annotations := webhook.OwnKeys(lines)
	missing := map[string]string{}
	for key, value := range annotations {
		if now.vm.Annotations[key] != value {
			missing[key] = value
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return r.patch(ctx, now.vm, map[string]any{"metadata": map[string]any{"annotations": missing}})
}

// patch merges fields into object (RFC 7386); what it does not name stays.
func (r *VMs) patch(ctx context.Context, object client.Object, fields map[string]any) error {
	err := r.Writer.Patch(ctx, object, rawMerge(fields), client.FieldOwner(FieldManager))
	if err != nil {
		return fmt.Errorf("patch %s %s: %w", object.GetObjectKind().GroupVersionKind().Kind, client.ObjectKeyFromObject(object), err)
	}
	return nil
}

func rawMerge(fields map[string]any) client.Patch {
	raw, err := json.Marshal(fields)
	if err != nil {
		panic(fmt.Sprintf("controller: encode patch: %v", err)) // strings and structs of strings
	}
	return client.RawPatch(types.MergePatchType, raw)
}

// indexVM finds FloatingIP objects by the namespace and name of their VM.
const indexVM = "spec.vm"

// IndexFloatingIPs registers indexVM.
func IndexFloatingIPs(ctx context.Context, indexer client.FieldIndexer) error {
	return indexer.IndexField(ctx, &v1alpha1.FloatingIP{}, indexVM, func(o client.Object) []string {
		ip, ok := o.(*v1alpha1.FloatingIP)
		if !ok {
			return nil
		}
		return []string{floatip.Owner{Namespace: ip.Spec.VM.Namespace, Name: ip.Spec.VM.Name}.String()}
	})
}
