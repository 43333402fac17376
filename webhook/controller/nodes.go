package controller

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

// nodeAddresses returns the addresses that the nodes have on provider networks, as their agents wrote them, sorted.
// What cannot be read is left out: a node that spoils its annotation must not stop the pools of all.
func nodeAddresses(ctx context.Context, reader client.Reader) ([]netip.Addr, error) {
	nodes := metadataList(nodeKind)
	if err := reader.List(ctx, nodes); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var own []netip.Addr
	for _, node := range nodes.Items {
		for _, text := range strings.Split(node.Annotations[floatip.AnnotationProviderAddresses], ",") {
			if a, err := ipam.ParseAddress(text); err == nil {
				own = append(own, a)
			}
		}
	}
	slices.SortFunc(own, netip.Addr.Compare)
	return slices.Compact(own), nil
}

// ownAddressesChanged lets through what concerns nodeAddresses: nodes change every few minutes by their status alone.
var ownAddressesChanged = predicate.Funcs{
	CreateFunc: func(e event.CreateEvent) bool { return ownText(e.Object) != "" },
	UpdateFunc: func(e event.UpdateEvent) bool { return ownText(e.ObjectOld) != ownText(e.ObjectNew) },
	DeleteFunc: func(e event.DeleteEvent) bool { return ownText(e.Object) != "" },
}

func ownText(o client.Object) string { return o.GetAnnotations()[floatip.AnnotationProviderAddresses] }
