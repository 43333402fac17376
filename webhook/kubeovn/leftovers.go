package kubeovn

import (
	"context"
	"errors"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"floatip.io/floatip/ipam/v1alpha1"
)

// findLeftovers asks for a look at every object that an earlier process made: its FloatingIP may have gone while nobody
// looked. It lists them once, and again as long as the API server does not answer or does not let it.
func (d *Driver) findLeftovers(ctx context.Context) error {
	for _, kind := range []schema.GroupVersionKind{fipKind, eipKind} {
		list := &unstructured.UnstructuredList{}
		err := wait.PollUntilContextCancel(ctx, later, true, func(ctx context.Context) (bool, error) {
			list = &unstructured.UnstructuredList{}
			list.SetGroupVersionKind(kind)
			err := explain(d.Client.List(ctx, list, client.HasLabels{labelFloatingIP}))
			if err != nil && !errors.Is(err, ErrMissing) && !errors.Is(err, ErrForbidden) {
				logr.FromContextOrDiscard(ctx).Error(err, "could not list what Kube-OVN has of floatip", "kind", kind.Kind)
			}
			return err == nil || errors.Is(err, ErrMissing), nil
		})
		if err != nil {
			return nil // the process ends
		}
		for _, o := range list.Items {
			name := o.GetLabels()[labelFloatingIP]
			d.made.Store(name, nil)
			f := &v1alpha1.FloatingIP{}
			f.Name = name
			select {
			case d.leftovers <- event.GenericEvent{Object: f}:
			case <-ctx.Done():
				return nil
			}
		}
	}
	return nil
}
