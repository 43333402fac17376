package certs

import (
	"context"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// syncInterval is how long a certificate that is due waits at most, and an overlap lasts longer than it must.
const syncInterval = time.Minute

// CacheOptions limit the manager's watches to the objects that the Source works on; its rights go no further.
func CacheOptions(secret types.NamespacedName, configurations string) map[client.Object]cache.ByObject {
	byName := cache.ByObject{Field: fields.OneTermEqualSelector("metadata.name", configurations)}
	return map[client.Object]cache.ByObject{
		&corev1.Secret{}: {
			Namespaces: map[string]cache.Config{secret.Namespace: {}},
			Field:      fields.OneTermEqualSelector("metadata.name", secret.Name),
		},
		&admissionregistrationv1.MutatingWebhookConfiguration{}:   byName,
		&admissionregistrationv1.ValidatingWebhookConfiguration{}: byName,
	}
}

// SetupWithManager runs Sync whenever one of the objects changes, and every minute.
func (s *Source) SetupWithManager(mgr ctrl.Manager) error {
	one := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return []reconcile.Request{{}}
	})
	return builder.ControllerManagedBy(mgr).
		Named("certs").
		Watches(&corev1.Secret{}, one).
		Watches(&admissionregistrationv1.MutatingWebhookConfiguration{}, one).
		Watches(&admissionregistrationv1.ValidatingWebhookConfiguration{}, one).
		Complete(reconcile.Func(func(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
			return reconcile.Result{RequeueAfter: syncInterval}, s.Sync(ctx)
		}))
}
