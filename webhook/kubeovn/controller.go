package kubeovn

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook/kubevirt"
)

const (
	// soon is the pause while Kube-OVN is at work, later the one while nothing is expected.
	soon  = time.Second
	later = 30 * time.Second
	// fieldManager is the owner of what the driver writes.
	fieldManager = "floatip-kubeovn"
)

// ErrMissing: Kube-OVN's definitions are not installed.
var ErrMissing = errors.New("the cluster has no OvnEip and OvnFip (kubeovn.io/v1): is Kube-OVN installed?")

// ErrForbidden: floatip may not write Kube-OVN's objects.
var ErrForbidden = errors.New("floatip may not write OvnEip and OvnFip (kubeovn.io): apply manifests/kubeovn")

// Driver keeps Kube-OVN's objects as the FloatingIPs of its pools say.
type Driver struct {
	// Client reads floatip's and KubeVirt's objects from caches, and Kube-OVN's, which are unstructured, from the API
	// server.
	Client client.Client

	leftovers chan event.GenericEvent
	// made has the names of the FloatingIPs for which Kube-OVN may have objects: those that this process was about to make
	// objects for, and those that it found. About all others the API server is not asked, or every change of every FloatingIP
	// would cost two requests, also in clusters that have no Kube-OVN.
	made sync.Map
}

// SetupWithManager looks at each FloatingIP, whichever pool it is of: the pool decides.
func (d *Driver) SetupWithManager(mgr ctrl.Manager) error {
	d.leftovers = make(chan event.GenericEvent)
	if err := mgr.Add(manager.RunnableFunc(d.findLeftovers)); err != nil {
		return err
	}
	return builder.ControllerManagedBy(mgr).
		Named("kubeovn").
		For(&v1alpha1.FloatingIP{}).
		Watches(&kubevirt.VirtualMachineInstance{}, handler.EnqueueRequestsFromMapFunc(d.ofVMI)).
		WatchesRawSource(source.Channel(d.leftovers, &handler.EnqueueRequestForObject{})).
		Complete(d)
}

// ofVMI maps an instance to the addresses of its VM.
func (d *Driver) ofVMI(ctx context.Context, vmi client.Object) (requests []reconcile.Request) {
	var list v1alpha1.FloatingIPList
	if err := d.Client.List(ctx, &list); err != nil { // of the cache: it is being shut down
		return nil
	}
	for _, f := range list.Items {
		if f.Spec.VM.Namespace == vmi.GetNamespace() && f.Spec.VM.Name == vmi.GetName() {
			requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Name: f.Name}})
		}
	}
	return requests
}

// Served returns nil if Kube-OVN's objects can be written, or else ErrMissing, ErrForbidden, or what keeps the API
// server from saying.
func (d *Driver) Served(ctx context.Context) error {
	for _, kind := range []schema.GroupVersionKind{eipKind, fipKind, ipKind} {
		_, err := d.get(ctx, kind, "floatip-is-this-served")
		if err != nil {
			return err
		}
	}
	return nil
}

// Reconcile looks at one address and does what is next.
func (d *Driver) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	s, f, err := d.look(ctx, req.Name)
	switch {
	case f == nil && (errors.Is(err, ErrMissing) || errors.Is(err, ErrForbidden)):
		return reconcile.Result{}, nil // nobody's address, and nobody to ask about it
	case errors.Is(err, ErrMissing), errors.Is(err, ErrForbidden):
		failed := step{reason: "KubeOVNUnavailable", message: err.Error()}
		return reconcile.Result{RequeueAfter: later}, d.report(ctx, f, s, failed)
	case err != nil:
		return reconcile.Result{}, err
	}
	next := decide(s)
	if err := d.do(ctx, next); err != nil {
		return reconcile.Result{}, err
	}
	if f != nil && s.held != nil {
		if err := d.report(ctx, f, s, next); err != nil {
			return reconcile.Result{}, err
		}
	}
	switch {
	case next.create != nil || next.remove != nil || next.reason == "WaitingForKubeOVN" || next.reason == "Detaching" ||
		next.reason == "Releasing":
		return reconcile.Result{RequeueAfter: soon}, nil
	case s.held != nil:
		return reconcile.Result{RequeueAfter: later}, nil
	}
	return reconcile.Result{}, nil
}

func (d *Driver) do(ctx context.Context, next step) error {
	log := logr.FromContextOrDiscard(ctx)
	switch {
	case next.create != nil:
		log.Info("creating", "kind", next.create.GetKind(), "name", next.create.GetName())
		err := d.Client.Create(ctx, next.create, client.FieldOwner(fieldManager))
		if apierrors.IsAlreadyExists(err) {
			return nil // seen on the next look
		}
		return explain(err)
	case next.remove != nil && next.remove.GetDeletionTimestamp() == nil:
		log.Info("deleting", "kind", next.remove.GetKind(), "name", next.remove.GetName(), "reason", next.message)
		uid := next.remove.GetUID()
		return explain(client.IgnoreNotFound(d.Client.Delete(ctx, next.remove, client.Preconditions{UID: &uid})))
	}
	return nil
}

// look reads all that concerns the address. f is the FloatingIP if it is one of the driver's.
func (d *Driver) look(ctx context.Context, name string) (s seen, f *v1alpha1.FloatingIP, err error) {
	s.name = name
	f = &v1alpha1.FloatingIP{}
	switch err := d.Client.Get(ctx, types.NamespacedName{Name: name}, f); {
	case apierrors.IsNotFound(err):
		f = nil
	case err != nil:
		return s, nil, fmt.Errorf("read FloatingIP %s: %w", name, err)
	}
	if f != nil {
		pool := &v1alpha1.FloatingIPPool{}
		err := d.Client.Get(ctx, types.NamespacedName{Name: f.Spec.Pool}, pool)
		if client.IgnoreNotFound(err) != nil {
			return s, nil, fmt.Errorf("read FloatingIPPool %s: %w", f.Spec.Pool, err)
		}
		if err != nil || pool.Spec.Delivery != floatip.DeliveryKubeOVN || pool.Spec.KubeOVN == nil {
			f = nil
		} else {
			s.pool = *pool.Spec.KubeOVN
		}
	}
	if f != nil && f.DeletionTimestamp == nil && f.Status.Phase != v1alpha1.PhaseQuarantined {
		s.held = f
		if err := d.lookAtVM(ctx, f, &s); err != nil {
			return s, f, err
		}
	}
	if f != nil {
		d.made.Store(name, nil)
	}
	if _, there := d.made.Load(name); !there {
		return s, nil, nil
	}
	if s.fip, err = d.get(ctx, fipKind, objectName(name)); err != nil {
		return s, f, err
	}
	s.eip, err = d.get(ctx, eipKind, objectName(name))
	if err == nil && f == nil && s.fip == nil && s.eip == nil {
		d.made.Delete(name)
	}
	return s, f, err
}

// lookAtVM finds the IP object of a VM that runs. Kube-OVN names it after the VM, so that it stays over restarts and
// migrations, or after the pod where it was told not to (--keep-vm-ip=false).
func (d *Driver) lookAtVM(ctx context.Context, f *v1alpha1.FloatingIP, s *seen) error {
	vm := f.Spec.VM
	vmi := &kubevirt.VirtualMachineInstance{}
	err := d.Client.Get(ctx, types.NamespacedName{Namespace: vm.Namespace, Name: vm.Name}, vmi)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("read VMI %s/%s: %w", vm.Namespace, vm.Name, err)
	}
	owner, owned := kubevirt.OwnerOf(vmi.OwnerReferences, kubevirt.KindVM)
	if err != nil || !owned || owner.UID != vm.UID {
		return nil
	}
	s.running = true
	name := vm.Name + "." + vm.Namespace
	ip, err := d.get(ctx, ipKind, name)
	if ip != nil {
		s.ip = name
	}
	return err
}

// get returns an object of Kube-OVN, nil if there is none.
func (d *Driver) get(ctx context.Context, kind schema.GroupVersionKind, name string) (*unstructured.Unstructured, error) {
	o := newObject(kind, name)
	err := d.Client.Get(ctx, types.NamespacedName{Name: name}, o)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s %s: %w", kind.Kind, name, explain(err))
	}
	return o, nil
}

// explain tells apart what only an administrator can help.
func explain(err error) error {
	switch {
	case meta.IsNoMatchError(err):
		return fmt.Errorf("%w: %w", ErrMissing, err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w: %w", ErrForbidden, err)
	}
	return err
}
