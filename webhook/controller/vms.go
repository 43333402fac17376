package controller

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook/kubevirt"
)

// FieldManager is the owner of what the controllers write.
const FieldManager = "floatip-webhook"

// vmWorkers bind and release at the same time: bursts share the ledger's fsync.
const vmWorkers = 8

// VMs binds what stored VMs hold, keeps the FloatingIP objects, and releases what nothing carries any more.
type VMs struct {
	Ledger  *ipam.Ledger
	Cluster Cluster
	Writer  client.Client
	Events  Events
	Metrics *Metrics
	// Started says when ledger and cluster have been compared; nothing is bound or released before.
	Started *Starter
}

// SetupWithManager watches all that may change what a VM's name stands for.
func (r *VMs) SetupWithManager(mgr ctrl.Manager) error {
	return builder.ControllerManagedBy(mgr).
		Named("vms").
		WithOptions(controller.Options{MaxConcurrentReconciles: vmWorkers}).
		WatchesMetadata(metadataOf(vmKind), handler.EnqueueRequestsFromMapFunc(sameName)).
		Watches(&kubevirt.VirtualMachineInstance{}, handler.EnqueueRequestsFromMapFunc(sameName)).
		WatchesMetadata(metadataOf(podKind), handler.EnqueueRequestsFromMapFunc(vmOfPod)).
		Watches(&v1alpha1.FloatingIP{}, handler.EnqueueRequestsFromMapFunc(r.vmsOfFloatingIP)).
		WatchesMetadata(metadataOf(namespaceKind), handler.EnqueueRequestsFromMapFunc(r.vmsOfNamespace), builder.WithPredicates(relabelled)).
		WatchesRawSource(source.Channel(r.Started.look, handler.EnqueueRequestsFromMapFunc(sameName))).
		Complete(r)
}

func sameName(_ context.Context, o client.Object) []reconcile.Request {
	return []reconcile.Request{{NamespacedName: client.ObjectKeyFromObject(o)}}
}

// vmOfPod maps a launcher to its VM, which has the name of the VMI.
func vmOfPod(_ context.Context, pod client.Object) []reconcile.Request {
	vmi, ok := kubevirt.OwnerOf(pod.GetOwnerReferences(), kubevirt.KindVMI)
	if !ok {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: pod.GetNamespace(), Name: vmi.Name}}}
}

// relabelled are changes of a namespace that change why its VMs do not carry their addresses.
var relabelled = predicate.Funcs{
	CreateFunc:  func(event.CreateEvent) bool { return false },
	DeleteFunc:  func(event.DeleteEvent) bool { return false },
	GenericFunc: func(event.GenericEvent) bool { return false },
	UpdateFunc: func(e event.UpdateEvent) bool {
		return !maps.Equal(e.ObjectOld.GetLabels(), e.ObjectNew.GetLabels()) && e.ObjectNew.GetDeletionTimestamp() == nil
	},
}

// vmsOfNamespace maps a namespace to the VMs that hold addresses in it.
func (r *VMs) vmsOfNamespace(_ context.Context, namespace client.Object) (requests []reconcile.Request) {
	seen := map[string]bool{}
	for line := range r.Ledger.All() {
		if line.Owner.Namespace == namespace.GetName() && line.State == ipam.Bound && !seen[line.Owner.Name] {
			seen[line.Owner.Name] = true
			requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{
				Namespace: line.Owner.Namespace, Name: line.Owner.Name,
			}})
		}
	}
	return requests
}

// vmsOfFloatingIP maps an object to the VM that it names, and to the one that holds its address: when the object of an
// earlier owner is gone, that of the later one is made.
func (r *VMs) vmsOfFloatingIP(_ context.Context, o client.Object) []reconcile.Request {
	ip, ok := o.(*v1alpha1.FloatingIP)
	if !ok {
		return nil
	}
	named := types.NamespacedName{Namespace: ip.Spec.VM.Namespace, Name: ip.Spec.VM.Name}
	requests := []reconcile.Request{{NamespacedName: named}}
	address, err := ipam.ParseAddress(ip.Spec.Address)
	if err != nil {
		return requests
	}
	if line, held := r.Ledger.Lookup(address); held && line.Owner.UID != string(ip.Spec.VM.UID) {
		holder := types.NamespacedName{Namespace: line.Owner.Namespace, Name: line.Owner.Name}
		requests = append(requests, reconcile.Request{NamespacedName: holder})
	}
	return requests
}

// Reconcile looks at everything that one VM name stands for.
func (r *VMs) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if err := r.Started.wait(ctx); err != nil {
		return reconcile.Result{}, err
	}
	now, err := carriersOf(ctx, r.Cluster.Cached, req.NamespacedName)
	if err != nil {
		return reconcile.Result{}, err
	}
	if now.vm != nil {
		if err := r.bind(ctx, now); err != nil {
			return reconcile.Result{}, err
		}
	}
	var again reconcile.Result
	for _, uid := range uids(r.Ledger.ByName(req.Namespace, req.Name)) {
		later, err := r.settle(ctx, req.NamespacedName, now, uid)
		if err != nil {
			return reconcile.Result{}, err
		}
		again.RequeueAfter = sooner(again.RequeueAfter, later)
	}
	later, err := r.dropClaims(ctx, req.NamespacedName, now)
	if err != nil {
		return reconcile.Result{}, err
	}
	again.RequeueAfter = sooner(again.RequeueAfter, later)
	return again, r.dropStray(ctx, req.NamespacedName)
}

// sooner returns the shorter of two waits, where 0 is none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

func uids(lines []ipam.Allocation) []string {
	var all []string
	for _, line := range lines {
		if !slices.Contains(all, line.Owner.UID) {
			all = append(all, line.Owner.UID)
		}
	}
	return all
}

// bind turns what is Pending for the stored VM into Bound, and tells its owner.
func (r *VMs) bind(ctx context.Context, now carriers) error {
	owner := floatip.Owner{Namespace: now.vm.Namespace, Name: now.vm.Name, UID: string(now.vm.UID)}
	claim, err := floatip.ParseClaim(now.vm.Annotations[floatip.AnnotationClaim])
	if err != nil {
		claim = floatip.Claim{}
	}
	fresh := r.pending(owner, claim)
	if len(fresh) == 0 {
		return nil
	}
	lines, err := r.Ledger.Bind(ctx, claim, owner, ipam.Cause{Reason: "VM is stored"})
	if err != nil {
		return err
	}
	for _, line := range lines {
		if slices.Contains(fresh, line.Address.String()) {
			logr.FromContextOrDiscard(ctx).Info("bound address", "address", line.Address, "pool", line.Pool, "vm", owner, "uid", owner.UID)
			r.Metrics.bound(line.Pool)
			r.Events.allocated(line)
		}
	}
	return nil
}

// pending returns the addresses that the VM, or its claim, holds and that are not Bound.
func (r *VMs) pending(owner floatip.Owner, claim floatip.Claim) []string {
	lines := r.Ledger.ByOwner(owner.UID)
	if !claim.IsZero() {
		for _, line := range r.Ledger.ByClaim(claim) {
			if line.Owner.Namespace == owner.Namespace {
				lines = append(lines, line)
			}
		}
	}
	var addresses []string
	for _, line := range lines {
		if line.State == ipam.Pending {
			addresses = append(addresses, line.Address.String())
		}
	}
	return addresses
}

// settle releases what the VM with that UID holds if nothing carries it, or else keeps the objects that show it. It
// returns when to look again, if no event of the cluster will say so.
func (r *VMs) settle(ctx context.Context, key types.NamespacedName, now carriers, uid string) (time.Duration, error) {
	lines := r.Ledger.ByOwner(uid)
	if len(lines) == 0 {
		return 0, nil
	}
	flagged := map[netip.Addr]bool{}
	for _, line := range lines {
		if line.Disputed {
			there, err := r.flag(ctx, line)
			if err != nil {
				return 0, err
			}
			flagged[line.Address] = there
		}
	}
	if now.carry(uid) == "" {
		return r.release(ctx, key, lines)
	}
	if err := r.putBack(ctx, now, lines); err != nil {
		return 0, err
	}
	carried, err := r.carried(ctx, now, lines)
	if err != nil {
		return 0, err
	}
	for _, line := range lines {
		if line.State != ipam.Bound || flagged[line.Address] {
			continue
		}
		err := r.show(ctx, line, carried)
		if apierrors.IsConflict(err) {
			return reportAgain, nil // the node agent came before
		}
		if err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// release gives back what the VM held. Pending is left to the sweeper: the cache may not have seen the VM yet.
func (r *VMs) release(ctx context.Context, key types.NamespacedName, lines []ipam.Allocation) (time.Duration, error) {
	if slices.ContainsFunc(lines, func(l ipam.Allocation) bool { return l.State == ipam.Pending }) {
		return 0, nil
	}
	uid := lines[0].Owner.UID
	if wait := r.Started.orphaned(uid); wait > 0 {
		return wait, nil
	}
	now, err := carriersOf(ctx, r.Cluster.Live, key)
	if err != nil {
		return 0, err
	}
	if by := now.carry(uid); by != "" {
		return 0, fmt.Errorf("release what VM %s held: the cache lags behind the API server, which still has its %s", lines[0].Owner, by)
	}
	switch node, err := r.Cluster.Announcer(ctx, uid, addressesOfLines(lines)); {
	case err != nil:
		return 0, err
	case node != "":
		return heldAgain, r.tellHeld(ctx, lines, node)
	}
	released, err := r.Ledger.Release(ctx, uid, ipam.Cause{Reason: "VM, VMI and pods are gone"})
	if err != nil {
		return 0, err
	}
	for _, line := range released {
		logr.FromContextOrDiscard(ctx).Info("released address", "address", line.Address, "pool", line.Pool, "vm", line.Owner, "uid", uid)
		r.Metrics.released(line.Pool)
	}
	return 0, nil
}
