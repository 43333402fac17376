package webhook

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/webhook/kubevirt"
)

// Obstacle is why an instance cannot carry the addresses that its VM holds.
type Obstacle struct {
	// Event is the reason under which the VM's owner is told: EventUnnatable or EventForbidden.
	Event string
	// Cause is what stands in the way, in a sentence.
	Cause error
}

// ObstacleReader reads what decides on it.
type ObstacleReader interface {
	// NamespaceLabels returns the labels of a namespace.
	NamespaceLabels(ctx context.Context, namespace string) (map[string]string, error)
	DeliveryReader
}

// ObstacleTo returns why an instance with the spec cannot carry lines, which its VM holds, or nil. Networks are
// Options.ClusterNetworks; an error is one of reading.
func ObstacleTo(ctx context.Context, cluster ObstacleReader, owner floatip.Owner, lines []ipam.Allocation, spec kubevirt.VMISpec,
	networks []netip.Prefix,
) (*Obstacle, error) {
	_, obstacle, err := carriage(ctx, cluster, owner, holdingOf(lines), spec, networks)
	return obstacle, err
}

// carriage returns how the addresses reach an instance with the spec, or what is in the way.
func carriage(ctx context.Context, cluster ObstacleReader, owner floatip.Owner, have holding, spec kubevirt.VMISpec,
	networks []netip.Prefix,
) (floatip.Delivery, *Obstacle, error) {
	delivery, err := DeliveryOf(ctx, cluster, have.pools)
	if errors.Is(err, errDeliveries) {
		return "", &Obstacle{EventUnnatable, err}, nil
	}
	if err != nil {
		return "", nil, err
	}
	if delivery.InPod() {
		labels, err := cluster.NamespaceLabels(ctx, owner.Namespace)
		if err != nil {
			return "", nil, fmt.Errorf("labels of namespace %s: %w", owner.Namespace, err)
		}
		if err := sidecarForbidden(labels); err != nil {
			return delivery, &Obstacle{EventForbidden, err}, nil
		}
	}
	g, err := guestOf(spec)
	if err == nil {
		_, err = podNAT(owner, delivery, have.addresses, g, networks, nil)
	}
	if err != nil {
		return delivery, &Obstacle{EventUnnatable, err}, nil
	}
	return delivery, nil, nil
}
