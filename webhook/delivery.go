package webhook

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"floatip.io/floatip"
)

// DeliveryReader reads how the addresses of pools are delivered.
type DeliveryReader interface {
	// Delivery returns spec.delivery of a pool, or a not-found error.
	Delivery(ctx context.Context, pool string) (floatip.Delivery, error)
}

// errDeliveries: one VM's addresses come from pools that are delivered in two ways.
var errDeliveries = errors.New("the addresses of one VM must be delivered in one way")

// DeliveryOf returns the delivery that all of the pools have. One that is gone counts as the default: what is held of
// it was delivered so before there were others. The error is one of reading, or errDeliveries with both pools.
func DeliveryOf(ctx context.Context, reader DeliveryReader, pools []string) (floatip.Delivery, error) {
	var delivery floatip.Delivery
	for i, pool := range pools {
		one, err := reader.Delivery(ctx, pool)
		if err != nil && !apierrors.IsNotFound(err) {
			return "", fmt.Errorf("delivery of FloatingIPPool %s: %w", pool, err)
		}
		one = one.OrDefault()
		if i > 0 && one != delivery {
			return "", fmt.Errorf("%w: pool %s says %s, pool %s says %s", errDeliveries, pools[0], delivery, pool, one)
		}
		delivery = one
	}
	return delivery.OrDefault(), nil
}

// deliver decides about the delivery of what is offered to a VM, whose namespace has the labels: what speaks against
// it, or what its owner should know.
func (h *Hooks) deliver(ctx context.Context, req admission.Request, m metadata, pools []string,
	labels map[string]string) (warning string, refusal *Decision) {
	poolPath := annotationsPath.Key(floatip.AnnotationPool)
	delivery, err := DeliveryOf(ctx, h.Cluster, pools)
	if errors.Is(err, errDeliveries) {
		text := err.Error() + "; name pools of one delivery"
		d := refuse(invalid(req, field.ErrorList{field.Invalid(poolPath, m.Annotations[floatip.AnnotationPool], text)}), nil)
		return "", &d
	}
	if err != nil {
		d := refuse(internal(req), err)
		return "", &d
	}
	if delivery.InPod() {
		if err := sidecarForbidden(labels); err != nil {
			return "floatip: " + err.Error() + "; the VM will start without its floating address", nil
		}
		why, err := h.refusedBefore(ctx, req.Namespace, labels)
		if err != nil {
			d := refuse(internal(req), err)
			return "", &d
		}
		if why != nil {
			return "floatip: " + why.Error() + ", or the VM will start without its floating address", nil
		}
	}
	if _, lists := m.Annotations[floatip.AnnotationAllow]; lists && delivery == floatip.DeliveryKubeOVN {
		text := fmt.Sprintf("pool %s is delivered by Kube-OVN, which does not know the allow list: every host reaches the "+
			"VM unless a NetworkPolicy forbids it; take a pool of another delivery, or leave the list out", pools[0])
		if h.isCopy(req, m) {
			return "floatip: " + text, nil // refused, KubeVirt would try for ever
		}
		d := refuse(invalid(req, field.ErrorList{field.Forbidden(annotationsPath.Key(floatip.AnnotationAllow), text)}), nil)
		return "", &d
	}
	return "", nil
}
