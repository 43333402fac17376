package controller

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

// nodeAddresses returns the nodes' own addresses, sorted: those on provider networks, as their agents wrote them, and
// those that Kubernetes has for the nodes. The latter are there when a node joins, before its agent looks at any pool.
// What cannot be read is left out: a node that spoils its annotation must not stop the pools of all.
func nodeAddresses(ctx context.Context, reader client.Reader) ([]netip.Addr, error) {
	var nodes corev1.NodeList
	if err := reader.List(ctx, &nodes); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var own []netip.Addr
	for i := range nodes.Items {
		own = append(own, addressesOf(&nodes.Items[i])...)
	}
	slices.SortFunc(own, netip.Addr.Compare)
	return slices.Compact(own), nil
}

// addressesOf returns one node's own addresses, sorted. A node's names among them are no addresses.
func addressesOf(node *corev1.Node) []netip.Addr {
	texts := strings.Split(node.Annotations[floatip.AnnotationProviderAddresses], ",")
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
