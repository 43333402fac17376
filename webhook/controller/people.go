package controller

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/webhook"
)

// People is what the commands of people need to know of the cluster (admin.Cluster). It reads from the API server
// itself: commands are rare, and whoever decides about an address wants to know what is so now.
type People struct {
	Ledger  *ipam.Ledger
	Live    client.Reader
	Writer  client.Client
	Events  Events
	Started *Starter
}

// Pools implements admin.Cluster.
func (p *People) Pools(ctx context.Context) ([]ipam.Pool, error) {
	pools, err := readPools(ctx, p.Live)
	return valid(pools), err
}

// Seen implements admin.Cluster.
func (p *People) Seen(ctx context.Context) ([]ipam.Sighting, error) {
	seen, err := sighter{p.Ledger.ByClaim, func(string) {}}.read(ctx, p.Live)
	if err != nil {
		return nil, err
	}
	return seen.all(), nil
}

// Carrier implements admin.Cluster.
func (p *People) Carrier(ctx context.Context, owner floatip.Owner) (string, error) {
	return Cluster{Live: p.Live}.Carrier(ctx, owner)
}

// Announcer implements admin.Cluster.
func (p *People) Announcer(ctx context.Context, owner floatip.Owner) (string, error) {
	return Cluster{Live: p.Live}.Announcer(ctx, owner.UID, addressesOfLines(p.Ledger.ByOwner(owner.UID)))
}

// Settle implements admin.Cluster: no VM shows the address but the one that holds it, those that have lost it are told,
// and the controller looks at all of them.
func (p *People) Settle(ctx context.Context, address netip.Addr, owners []floatip.Owner) error {
	vms := metadataList(vmKind)
	if err := p.Live.List(ctx, vms); err != nil {
		return fmt.Errorf("list VMs: %w", err)
	}
	for i := range vms.Items {
		if err := p.takeFrom(ctx, address, &vms.Items[i]); err != nil {
			return err
		}
	}
	if line, ok := p.Ledger.Lookup(address); ok {
		owners = append(slices.Clone(owners), line.Owner)
	}
	return p.Started.Look(ctx, owners...)
}

// takeFrom makes floatip's annotations of a VM that shows address, but does not hold it, say what it holds.
func (p *People) takeFrom(ctx context.Context, address netip.Addr, vm *metav1.PartialObjectMetadata) error {
	shown, err := webhook.ParseAddresses(vm.Annotations[floatip.AnnotationAddress])
	if err != nil || !slices.Contains(shown, address) {
		return nil // none of floatip's: nothing to take away
	}
	owner := floatip.Owner{Namespace: vm.Namespace, Name: vm.Name, UID: string(vm.UID)}
	lines := p.Ledger.ByOwner(owner.UID)
	if slices.ContainsFunc(lines, func(l ipam.Allocation) bool { return l.Address == address }) {
		return nil
	}
	keys := map[string]any{floatip.AnnotationAddress: nil, floatip.AnnotationClaim: nil}
	if len(lines) > 0 {
		for key, value := range webhook.OwnKeys(lines) {
			keys[key] = value
		}
	}
	vm.SetGroupVersionKind(vmKind) // the items of a list do not name it
	patch := rawMerge(map[string]any{"metadata": map[string]any{"uid": vm.UID, "annotations": keys}})
	if err := p.Writer.Patch(ctx, vm, patch, client.FieldOwner(FieldManager)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("take %s from the annotations of VM %s: %w", address, owner, err)
	}
	p.Events.Warn(owner, EventLost, fmt.Sprintf("floating IP %s was given to another VM by command; "+
		"delete and create this VM for a new one", address))
	return nil
}
