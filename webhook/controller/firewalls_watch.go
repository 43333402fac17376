package controller

import (
	"context"

	"github.com/go-logr/logr"
	networkingv1 "k8s.io/api/networking/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook/kubevirt"
)

// firewallWorkers write at the same time. A policy that selects all pods of a large namespace asks for as many patches.
const firewallWorkers = 8

// SetupWithManager watches all that has a say in the firewall of a pod. Whatever changes, each pod concerned is looked
// at as a whole.
func (r *Firewalls) SetupWithManager(mgr ctrl.Manager) error {
	return builder.ControllerManagedBy(mgr).
		Named("firewalls").
		WithOptions(controller.Options{MaxConcurrentReconciles: firewallWorkers}).
		WatchesMetadata(metadataOf(podKind), handler.EnqueueRequestsFromMapFunc(sameName),
			builder.WithPredicates(predicate.Or(predicate.LabelChangedPredicate{}, annotationChanged(floatip.AnnotationNAT)))).
		WatchesMetadata(metadataOf(vmKind), handler.EnqueueRequestsFromMapFunc(r.podsOfVM),
			builder.WithPredicates(annotationChanged(floatip.AnnotationAllow))).
		Watches(&networkingv1.NetworkPolicy{}, handler.EnqueueRequestsFromMapFunc(r.podsOfNamespace),
			builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.FloatingIPPool{}, handler.EnqueueRequestsFromMapFunc(r.allPods),
			builder.WithPredicates(firewallDefaultChanged())).
		// A new object lacks the condition.
		Watches(&v1alpha1.FloatingIP{}, handler.EnqueueRequestsFromMapFunc(r.podsOfFloatingIP),
			builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Complete(r)
}

// annotationChanged passes updates that change, add or remove an annotation, and all that are no updates.
func annotationChanged(key string) predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, had := e.ObjectOld.GetAnnotations()[key]
		after, has := e.ObjectNew.GetAnnotations()[key]
		return had != has || before != after
	}}
}

// firewallDefaultChanged passes updates that change spec.firewall of a pool, and all that are no updates.
func firewallDefaultChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, ok := e.ObjectOld.(*v1alpha1.FloatingIPPool)
		after, okToo := e.ObjectNew.(*v1alpha1.FloatingIPPool)
		return ok && okToo && before.Spec.Firewall != after.Spec.Firewall
	}}
}

func (r *Firewalls) allPods(ctx context.Context, _ client.Object) []reconcile.Request {
	return r.pods(ctx, "", "")
}

func (r *Firewalls) podsOfNamespace(ctx context.Context, o client.Object) []reconcile.Request {
	return r.pods(ctx, o.GetNamespace(), "")
}

func (r *Firewalls) podsOfVM(ctx context.Context, vm client.Object) []reconcile.Request {
	return r.pods(ctx, vm.GetNamespace(), vm.GetName())
}

func (r *Firewalls) podsOfFloatingIP(ctx context.Context, o client.Object) []reconcile.Request {
	ip, ok := o.(*v1alpha1.FloatingIP)
	if !ok {
		return nil
	}
	return r.pods(ctx, ip.Spec.VM.Namespace, ip.Spec.VM.Name)
}

// pods returns the launchers that translate an address, of all namespaces or one, of all VMs or one. A pod that the
// cache does not have yet comes by its own event.
func (r *Firewalls) pods(ctx context.Context, namespace, vm string) (requests []reconcile.Request) {
	list := metadataList(podKind)
	err := r.Cluster.Cached.List(ctx, list, client.InNamespace(namespace), client.UnsafeDisableDeepCopy,
		client.MatchingLabels{kubevirt.LabelApp: kubevirt.AppLauncher})
	if err != nil { // of the cache: it is being shut down
		logr.FromContextOrDiscard(ctx).Error(err, "could not list launcher pods")
		return nil
	}
	for i := range list.Items {
		pod := &list.Items[i]
		vmi, ok := kubevirt.OwnerOf(pod.OwnerReferences, kubevirt.KindVMI)
		if ok && pod.Annotations[floatip.AnnotationNAT] != "" && (vm == "" || vmi.Name == vm) {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(pod)})
		}
	}
	return requests
}
