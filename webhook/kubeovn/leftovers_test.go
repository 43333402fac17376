package kubeovn

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook/kubevirt"
)

// driverOf returns a driver of a cluster with Kube-OVN that holds these objects, and the kinds of Kube-OVN's objects that
// it asked for, in order. list is what the API server says to a list, nil for what it has.
func driverOf(t *testing.T, list func() error, objects ...client.Object) (d *Driver, asked *[]string) {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, kubevirt.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	for _, kind := range []schema.GroupVersionKind{eipKind, fipKind, ipKind} {
		scheme.AddKnownTypeWithName(kind, &unstructured.Unstructured{})
		scheme.AddKnownTypeWithName(kind.GroupVersion().WithKind(kind.Kind+"List"), &unstructured.UnstructuredList{})
	}
	asked = &[]string{}
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithStatusSubresource(&v1alpha1.FloatingIP{}).
		WithInterceptorFuncs(interceptor.Funcs{
			Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
				if u, ok := o.(*unstructured.Unstructured); ok {
					*asked = append(*asked, u.GetKind())
				}
				return c.Get(ctx, key, o, opts...)
			},
			List: func(ctx context.Context, c client.WithWatch, l client.ObjectList, opts ...client.ListOption) error {
				if _, ok := l.(*unstructured.UnstructuredList); ok && list != nil {
					if err := list(); err != nil {
						return err
					}
				}
				return c.List(ctx, l, opts...)
			},
		}).Build()
	return &Driver{Client: c, leftovers: make(chan event.GenericEvent)}, asked
}

func poolOf(delivery floatip.Delivery) *v1alpha1.FloatingIPPool {
	p := &v1alpha1.FloatingIPPool{}
	p.Name, p.Spec.Delivery, p.Spec.KubeOVN = "ovn", delivery, &subnet
	return p
}

// seeTo lets the driver look at one address.
func (d *Driver) seeTo(t *testing.T, name string) {
	t.Helper()
	if _, err := d.Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: name}}); err != nil {
		t.Fatal(err)
	}
}

// A change of a FloatingIP that Kube-OVN has nothing to do with costs no request.
func TestOtherPoolsCostNoRequest(t *testing.T) {
	d, asked := driverOf(t, nil, poolOf(floatip.DeliveryLeg), held())
	for _, name := range []string{held().Name, "192.0.2.99"} { // held, and gone
		d.seeTo(t, name)
	}
	if len(*asked) > 0 {
		t.Errorf("the API server was asked for %q", *asked)
	}
}

// From the first look at an address of a pool of Kube-OVN's until both objects have gone, the API server is asked.
func TestMadeObjectsAreFollowed(t *testing.T) {
	d, asked := driverOf(t, nil, poolOf(floatip.DeliveryKubeOVN), held())
	d.seeTo(t, held().Name)
	if err := d.Client.Delete(t.Context(), held()); err != nil {
		t.Fatal(err)
	}
	d.seeTo(t, held().Name) // removes the OvnEip
	d.seeTo(t, held().Name) // sees that it has gone
	before := len(*asked)
	d.seeTo(t, held().Name)
	if before == 0 || len(*asked) != before {
		t.Errorf("the API server was asked for %q, of these %d before all had gone", *asked, before)
	}
	if err := d.Client.Get(t.Context(), types.NamespacedName{Name: objectName(held().Name)}, newObject(eipKind, "")); !apierrors.IsNotFound(err) {
		t.Errorf("OvnEip: %v", err)
	}
}

// What an earlier process made is found, also when the API server would not list it at first.
func TestLeftoversAreFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refusals := 3
		d, asked := driverOf(t, func() error {
			if refusals--; refusals >= 0 {
				return apierrors.NewForbidden(schema.GroupResource{Group: "kubeovn.io", Resource: "ovn-fips"}, "", nil)
			}
			return nil
		}, newEip(held(), subnet))
		ctx, cancel := context.WithCancel(t.Context())
		found := make(chan error, 1)
		go func() { found <- d.findLeftovers(ctx) }()
		started := time.Now()
		f := <-d.leftovers
		cancel()
		if err := <-found; err != nil {
			t.Error(err)
		}
		if f.Object.GetName() != held().Name || time.Since(started) < 3*later {
			t.Errorf("after %v: FloatingIP %q", time.Since(started), f.Object.GetName())
		}
		d.seeTo(t, held().Name)
		if !slices.Equal(*asked, []string{"OvnFip", "OvnEip"}) {
			t.Errorf("the API server was asked for %q", *asked)
		}
	})
}
