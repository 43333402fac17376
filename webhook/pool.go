package webhook

import (
	"context"
	"errors"
	"fmt"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
)

// changePool answers FloatingIPPool CREATE, UPDATE and DELETE, validating. Refused is what cannot be read, and what would
// leave held addresses outside of the pool: VMs are not renumbered. Pools may overlap, so that one can be split object
// by object; the older one keeps the addresses and the status says so.
func (h *Hooks) changePool(_ context.Context, req admission.Request) Decision {
	if req.Operation == admissionv1.Delete {
		return poolDecision(req, h.Ledger.CanDelete(req.Name))
	}
	var pool v1alpha1.FloatingIPPool
	if err := decode(req.Object.Raw, &pool); err != nil {
		return refuse(malformed(req, err), err)
	}
	if pool.DeletionTimestamp != nil {
		return Decision{Action: Ignored, Reason: "the pool is being deleted", Pool: pool.Name}
	}
	after, errs := PoolOf(&pool)
	if len(errs) > 0 {
		return refuse(invalid(req, errs), nil)
	}
	if req.Operation == admissionv1.Create {
		return Decision{Action: Accepted, Reason: "the pool can be read", Pool: pool.Name}
	}
	if d := h.changeDelivery(req, pool.Spec.Delivery); d != nil {
		return *d
	}
	return poolDecision(req, h.Ledger.CanChange(after))
}

// changeDelivery refuses another delivery while addresses of the pool are held: pods that run were made for the one that
// there is.
func (h *Hooks) changeDelivery(req admission.Request, after floatip.Delivery) *Decision {
	var before v1alpha1.FloatingIPPool
	if err := decode(req.OldObject.Raw, &before); err != nil {
		d := refuse(malformed(req, err), err)
		return &d
	}
	if before.Spec.Delivery.OrDefault() == after.OrDefault() {
		return nil
	}
	err := h.Ledger.CanDelete(req.Name)
	if err == nil {
		return nil
	}
	text := fmt.Errorf("from %s to %s: %w, or make another pool", before.Spec.Delivery.OrDefault(), after.OrDefault(), err)
	d := refuse(conflict(req, field.NewPath("spec", "delivery").String(), text), err)
	return &d
}

func poolDecision(req admission.Request, err error) Decision {
	if err != nil {
		return refuse(conflict(req, field.NewPath("spec", "addresses").String(), err), err)
	}
	return Decision{Action: Accepted, Reason: "no address that is held is left out", Pool: req.Name}
}

// PoolOf reads a FloatingIPPool. All that is wrong is reported together.
func PoolOf(object *v1alpha1.FloatingIPPool) (ipam.Pool, field.ErrorList) {
	spec := field.NewPath("spec")
	pool, err := ipam.ParsePool(ipam.PoolText{
		Name:      object.Name,
		Addresses: object.Spec.Addresses,
		Exclude:   object.Spec.Exclude,
		Networks:  object.Spec.Networks,
		Gateways:  object.Spec.Gateways,
	})
	errs := fieldErrors(spec, err)
	errs = append(errs, poolName(object.Name)...)
	if object.Spec.Delivery.Validate() != nil {
		errs = append(errs, field.NotSupported(spec.Child("delivery"), object.Spec.Delivery, floatip.Deliveries()))
	}
	switch wanted := object.Spec.Delivery == floatip.DeliveryKubeOVN; {
	case wanted && (object.Spec.KubeOVN == nil || object.Spec.KubeOVN.ExternalSubnet == ""):
		errs = append(errs, field.Required(spec.Child("kubeOVN", "externalSubnet"),
			"the name of Kube-OVN's Subnet of the provider network"))
	case !wanted && object.Spec.KubeOVN != nil:
		errs = append(errs, field.Forbidden(spec.Child("kubeOVN"), "only with delivery: KubeOVN"))
	}
	if f := object.Spec.Firewall; f != "" && f != v1alpha1.FirewallAllow && f != v1alpha1.FirewallDeny {
		all := []v1alpha1.FirewallDefault{v1alpha1.FirewallAllow, v1alpha1.FirewallDeny}
		errs = append(errs, field.NotSupported(spec.Child("firewall"), f, all))
	} else if f == v1alpha1.FirewallDeny && object.Spec.Delivery == floatip.DeliveryKubeOVN {
		errs = append(errs, field.Forbidden(spec.Child("firewall"), "Kube-OVN does not know floatip's firewall: with delivery "+
			"KubeOVN every host reaches the VMs unless a NetworkPolicy forbids it"))
	}
	selects, err := selector(object.Spec.NamespaceSelector)
	if err != nil {
		errs = append(errs, field.Invalid(spec.Child("namespaceSelector"), object.Spec.NamespaceSelector, err.Error()))
	}
	if _, err := selector(object.Spec.NodeSelector); err != nil {
		errs = append(errs, field.Invalid(spec.Child("nodeSelector"), object.Spec.NodeSelector, err.Error()))
	}
	if q := object.Spec.Quarantine; q != nil {
		pool.Quarantine = q.Duration
		if q.Duration < 0 {
			errs = append(errs, field.Invalid(spec.Child("quarantine"), q.Duration.String(), "must not be negative"))
		}
	}
	pool.AutoAssign = object.Spec.AutoAssign == nil || *object.Spec.AutoAssign
	pool.Priority = object.Spec.Priority
	pool.Selects = selects
	pool.PerNamespaceLimit = int(object.Spec.PerNamespaceLimit)
	pool.Drain = object.Spec.Drain
	pool.Created = object.CreationTimestamp.Time
	return pool, errs
}

// poolName makes sure that the name fits into the label pool.floatip.io/<name> of the nodes.
func poolName(name string) field.ErrorList {
	if len(name) > validation.LabelValueMaxLength {
		return field.ErrorList{field.TooLong(field.NewPath("metadata", "name"), name, validation.LabelValueMaxLength)}
	}
	return nil
}

// selector returns nil for a nil selector, which stands for everything.
func selector(s *metav1.LabelSelector) (func(map[string]string) bool, error) {
	if s == nil {
		return nil, nil
	}
	compiled, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return nil, err
	}
	return func(have map[string]string) bool { return compiled.Matches(labels.Set(have)) }, nil
}

// fieldErrors gives the errors of ipam.ParsePool their paths below spec.
func fieldErrors(spec *field.Path, err error) field.ErrorList {
	if err == nil {
		return nil
	}
	var parse ipam.FieldErrors
	if !errors.As(err, &parse) {
		return field.ErrorList{field.InternalError(spec, fmt.Errorf("parse pool: %w", err))}
	}
	var errs field.ErrorList
	for _, e := range parse {
		path := spec.Child(e.Field)
		if e.Index >= 0 {
			path = path.Index(e.Index)
		}
		errs = append(errs, field.Invalid(path, e.Value, e.Err.Error()))
	}
	return errs
}
