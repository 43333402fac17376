package controller

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
)

// nodeAddress is an address that a node has itself.
type nodeAddress struct {
	address netip.Addr
	node    string
}

// nodeAddresses returns the nodes' own addresses, sorted: those that their agents wrote, and those that Kubernetes has for
// the nodes. The latter are there when a node joins, before its agent has started. What cannot be read is left out: a node
// that spoils its annotation must not stop the pools of all.
func nodeAddresses(ctx context.Context, reader client.Reader) ([]nodeAddress, error) {
	var nodes corev1.NodeList
	if err := reader.List(ctx, &nodes); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var own []nodeAddress
	for i := range nodes.Items {
		for _, a := range addressesOf(&nodes.Items[i]) {
			own = append(own, nodeAddress{a, nodes.Items[i].Name})
		}
	}
	slices.SortFunc(own, func(a, b nodeAddress) int {
		return cmp.Or(a.address.Compare(b.address), cmp.Compare(a.node, b.node))
	})
	return slices.CompactFunc(own, func(a, b nodeAddress) bool { return a.address == b.address }), nil
}

// addressesOf returns one node's own addresses, sorted. A node's names among them are no addresses. Of a list that is
// longer than any agent's the rest is not believed.
func addressesOf(node *corev1.Node) []netip.Addr {
	const most = floatip.MaxProviderAddresses
	texts := strings.SplitN(node.Annotations[floatip.AnnotationProviderAddresses], ",", most+1)
	texts = texts[:min(len(texts), most)]
	for _, a := range node.Status.Addresses {
		if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
			texts = append(texts, a.Address)
		}
	}
	var own []netip.Addr
	for _, text := range texts {
		if a, err := ipam.ParseAddress(text); err == nil {
			own = append(own, a)
		}
	}
	slices.SortFunc(own, netip.Addr.Compare)
	return slices.Compact(own)
}

// ownAddressesChanged lets through what concerns nodeAddresses: nodes change every few minutes by the rest of their
// status alone.
var ownAddressesChanged = predicate.Funcs{
	CreateFunc: func(e event.CreateEvent) bool { return len(ownAddresses(e.Object)) > 0 },
	UpdateFunc: func(e event.UpdateEvent) bool {
		return !slices.Equal(ownAddresses(e.ObjectOld), ownAddresses(e.ObjectNew))
	},
	DeleteFunc: func(e event.DeleteEvent) bool { return len(ownAddresses(e.Object)) > 0 },
}

func ownAddresses(o client.Object) []netip.Addr {
	if node, ok := o.(*corev1.Node); ok {
		return addressesOf(node)
	}
	return nil
}

// slimNode keeps of a node what addressesOf reads.
func slimNode(object any) (any, error) {
	if node, ok := object.(*corev1.Node); ok {
		node.ManagedFields, node.Spec = nil, corev1.NodeSpec{}
		node.Status = corev1.NodeStatus{Addresses: node.Status.Addresses}
	}
	return object, nil
}

// maxNodeConflicts is how many addresses the condition NodeConflict names.
const maxNodeConflicts = 10

// onNodes returns what a VM holds of the pool although a node has it too, as when the node joined later.
func (r *Pools) onNodes(p poolObject) (held []ipam.Allocation, texts []string) {
	for _, own := range p.nodes {
		line, found := r.Ledger.Lookup(own.address)
		if !found || line.Pool != p.object.Name || line.State != ipam.Pending && line.State != ipam.Bound {
			continue
		}
		held = append(held, line)
		texts = append(texts, fmt.Sprintf("%s is held by a VM, and node %s has it too", own.address, own.node))
	}
	return held, texts
}

// setNodeConflict tells of addresses that two hosts have, the VM and a node, in a condition of the pool and, once, in an event
// on each VM. Nothing is taken from anybody: which of the two may keep the address is the administrator's to say.
func (r *Pools) setNodeConflict(p poolObject, pool *v1alpha1.FloatingIPPool) {
	held, texts := r.onNodes(p)
	c := metav1.Condition{
		Type: ConditionNodeConflict, Status: metav1.ConditionFalse, Reason: "NoneHeld", ObservedGeneration: pool.Generation,
	}
	if len(texts) > 0 {
		c.Status, c.Reason = metav1.ConditionTrue, "NodeHasAddress"
		if c.Message = strings.Join(texts[:min(len(texts), maxNodeConflicts)], "; "); len(texts) > maxNodeConflicts {
			c.Message += fmt.Sprintf("; and %d more", len(texts)-maxNodeConflicts)
		}
	}
	if before := meta.FindStatusCondition(pool.Status.Conditions, c.Type); len(held) > 0 && (before == nil || before.Message != c.Message) {
		for _, line := range held {
			r.Events.Warn(line.Owner, EventConflict, fmt.Sprintf("floating IP %s is an address of a node of the cluster too: "+
				"packets may go to either; the administrator has to take it from the node, or the VM has to be made anew", line.Address))
		}
	}
	meta.SetStatusCondition(&pool.Status.Conditions, c)
}
