package controller

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
)

// heldAgain is how often a release that waits for a node is looked at. What the node's agent says is seen at once; that
// its Node object is gone or tainted is not.
const heldAgain = 30 * time.Second

// Announcer asks the API server itself which node has said last that it answers for one of the addresses on behalf of the
// VM with that UID, and has not said that it stopped; empty if there is none.
//
// That the VM, its instance and its pods are gone from the API server says that nothing runs only if a kubelet said so. A
// pod that was deleted by force, on a node that nobody reaches, may go on, and the node agent beside it answers for the
// address without the API server. Such a node counts until its agent says that it stopped, until its Node object is gone,
// or until somebody declares that it is off (taint node.kubernetes.io/out-of-service).
func (c Cluster) Announcer(ctx context.Context, uid string, addresses []netip.Addr) (string, error) {
	for _, a := range addresses {
		var ip v1alpha1.FloatingIP
		err := c.Live.Get(ctx, types.NamespacedName{Name: v1alpha1.Name(a)}, &ip)
		if client.IgnoreNotFound(err) != nil {
			return "", fmt.Errorf("read FloatingIP of %s: %w", a, err)
		}
		if err != nil || string(ip.Spec.VM.UID) != uid || ip.Status.Node == "" {
			continue
		}
		off, err := c.off(ctx, ip.Status.Node)
		if err != nil {
			return "", err
		}
		if !off {
			return ip.Status.Node, nil
		}
	}
	return "", nil
}

// off reports whether nothing runs on a node any more, by the word of whoever looks after nodes.
func (c Cluster) off(ctx context.Context, name string) (bool, error) {
	var node corev1.Node
	if err := c.Live.Get(ctx, types.NamespacedName{Name: name}, &node); err != nil {
		if client.IgnoreNotFound(err) == nil {
			return true, nil
		}
		return false, fmt.Errorf("read node %s: %w", name, err)
	}
	return slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService }), nil
}

func addressesOfLines(lines []ipam.Allocation) []netip.Addr {
	addresses := make([]netip.Addr, len(lines))
	for i, line := range lines {
		addresses[i] = line.Address
	}
	return addresses
}

// tellHeld says on the FloatingIP objects of lines, whose VM is gone, that their release waits for a node.
func (r *VMs) tellHeld(ctx context.Context, lines []ipam.Allocation, node string) error {
	for _, line := range lines {
		have := &v1alpha1.FloatingIP{}
		err := r.Cluster.Cached.Get(ctx, types.NamespacedName{Name: v1alpha1.Name(line.Address)}, have)
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("read FloatingIP of %s: %w", line.Address, err)
		}
		if err != nil || string(have.Spec.VM.UID) != line.Owner.UID {
			continue
		}
		after := have.DeepCopy()
		changed := meta.SetStatusCondition(&after.Status.Conditions, metav1.Condition{
			Type: v1alpha1.ConditionAllocated, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonWaitsForNode,
			Message: fmt.Sprintf("VM %s is gone, but node %s has answered for the address and has not said that it stopped: the "+
				"guest may run on there. Bring back the node and its agent, or, once the node is off, delete its Node object or "+
				"taint it %s; or \"ledger release %s --stopped-on %s\"", line.Owner, node, corev1.TaintNodeOutOfService, line.Address, node),
			ObservedGeneration: have.Generation,
		})
		if !changed {
			continue
		}
		patch := client.MergeFromWithOptions(have, client.MergeFromWithOptimisticLock{})
		if err := r.Writer.Status().Patch(ctx, after, patch, client.FieldOwner(FieldManager)); err != nil {
			return fmt.Errorf("write condition %s of FloatingIP %s: %w", v1alpha1.ConditionAllocated, have.Name, err)
		}
	}
	return nil
}
