package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook"
)

const (
	// maxMoves in a row is how often a VM gets the next address at once. After that it waits moveAgain: a router that
	// answers for every address would lead each VM through the whole pool (RFC 5227 section 1.1, MAX_CONFLICTS and
	// RATE_LIMIT_INTERVAL).
	maxMoves  = 10
	moveAgain = time.Minute
)

// Conflicts acts on what the node agents report of hosts outside of the cluster that have an address of a pool. A VM that
// was given the address by floatip gets the next one; one that asked for the very address waits. Its owner is told.
type Conflicts struct {
	Ledger  *ipam.Ledger
	Cluster Cluster
	Events  Events
	Metrics *Metrics
	Started *Starter

	mu    sync.Mutex                // guards what follows
	told  map[string]string         // by FloatingIP: what its owner was told last
	moves map[types.UID][]time.Time // by VM: when it got another address
}

// SetupWithManager watches the condition ConflictFree.
func (r *Conflicts) SetupWithManager(mgr ctrl.Manager) error {
	r.told, r.moves = map[string]string{}, map[types.UID][]time.Time{}
	return builder.ControllerManagedBy(mgr).
		Named("conflicts").
		Watches(&v1alpha1.FloatingIP{}, handler.EnqueueRequestsFromMapFunc(sameName), builder.WithPredicates(conflictChanged)).
		Complete(r)
}

var conflictChanged = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	before, ok := e.ObjectOld.(*v1alpha1.FloatingIP)
	after, too := e.ObjectNew.(*v1alpha1.FloatingIP)
	if !ok || !too {
		return true
	}
	old, now := conflictOf(before), conflictOf(after)
	return (old == nil) != (now == nil) || now != nil && (*old != *now || before.Status.Pod != after.Status.Pod)
}}

// conflictOf returns the condition if it says that there is a conflict, or nil.
func conflictOf(ip *v1alpha1.FloatingIP) *metav1.Condition {
	c := meta.FindStatusCondition(ip.Status.Conditions, v1alpha1.ConditionConflictFree)
	if c == nil || c.Status != metav1.ConditionFalse ||
		c.Reason != floatip.ReasonAddressTaken && c.Reason != floatip.ReasonAddressContested {
		return nil
	}
	return c
}

// Reconcile looks at one FloatingIP.
func (r *Conflicts) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if err := r.Started.wait(ctx); err != nil {
		return reconcile.Result{}, err
	}
	ip := &v1alpha1.FloatingIP{}
	err := r.Cluster.Cached.Get(ctx, req.NamespacedName, ip)
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("read FloatingIP %s: %w", req.Name, err)
	}
	found := conflictOf(ip)
	if err != nil || found == nil {
		r.forget(req.Name)
		return reconcile.Result{}, nil
	}
	line, holds := r.lineOf(ip)
	if !holds {
		return reconcile.Result{}, nil // on its way out
	}
	if found.Reason == floatip.ReasonAddressContested {
		r.tell(ip, line, conflictContested, found.Message)
		return reconcile.Result{}, nil
	}
	if why, err := r.distrust(ctx, ip, line); err != nil || why != "" {
		if why != "" {
			logr.FromContextOrDiscard(ctx).Info("conflict is not believed", "address", line.Address, "node", ip.Status.Node, "reason", why)
		}
		return reconcile.Result{}, err
	}
	return r.moveOn(ctx, ip, line, found.Message)
}

func (r *Conflicts) lineOf(ip *v1alpha1.FloatingIP) (ipam.Allocation, bool) {
	for _, line := range r.Ledger.ByOwner(string(ip.Spec.VM.UID)) {
		if v1alpha1.Name(line.Address) == ip.Name && line.State == ipam.Bound {
			return line, true
		}
	}
	return ipam.Allocation{}, false
}

// distrust says why a report is not acted on, "" if it is: it must come from the node that runs a launcher of the VM, with
// that address. An admission policy lets each agent write about its own node only.
func (r *Conflicts) distrust(ctx context.Context, ip *v1alpha1.FloatingIP, line ipam.Allocation) (string, error) {
	pod := &corev1.Pod{}
	key := types.NamespacedName{Namespace: line.Owner.Namespace, Name: ip.Status.Pod}
	if ip.Status.Node == "" || ip.Status.Pod == "" {
		return "no node serves the address", nil
	}
	switch err := r.Cluster.Live.Get(ctx, key, pod); {
	case client.IgnoreNotFound(err) != nil:
		return "", fmt.Errorf("read pod %s: %w", key, err)
	case err != nil:
		return "the pod " + key.String() + " is gone", nil
	case pod.Spec.NodeName != ip.Status.Node:
		return fmt.Sprintf("the pod %s runs on node %s", key, pod.Spec.NodeName), nil
	}
	nat, err := floatip.ParsePodNAT([]byte(pod.Annotations[floatip.AnnotationNAT]))
	if err != nil || nat.Owner.UID != line.Owner.UID ||
		!slices.ContainsFunc(nat.Bindings, func(b floatip.Binding) bool { return b.Floating == line.Address }) {
		return fmt.Sprintf("the pod %s does not translate the address", key), nil
	}
	return "", nil
}

// moveOn gives the VM the next address, if it did not ask for this one.
func (r *Conflicts) moveOn(ctx context.Context, ip *v1alpha1.FloatingIP, line ipam.Allocation, message string) (
	reconcile.Result, error,
) {
	annotations, err := r.Cluster.VMAnnotations(ctx, line.Owner)
	if err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	wish, errs := webhook.ParseRequest(annotations)
	if len(errs) > 0 || slices.Contains(wish.Addresses, line.Address) {
		r.tell(ip, line, conflictWaits, message+"; the VM asks for this very address ("+floatip.AnnotationRequest+") and waits for it")
		return reconcile.Result{}, nil
	}
	if wait := r.pause(ip.Spec.VM.UID, time.Now()); wait > 0 {
		r.tell(ip, line, conflictWaits, fmt.Sprintf("%s; the last %d addresses were taken too: does a router on the provider "+
			"network answer for all of them (proxy ARP)? The next one is tried in a minute", message, maxMoves))
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	labels, err := r.Cluster.NamespaceLabels(ctx, line.Owner.Namespace)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("labels of namespace %s: %w", line.Owner.Namespace, err)
	}
	pools, err := r.Cluster.sameDelivery(ctx, poolsFor(wish, line), line.Pool)
	if err != nil {
		return reconcile.Result{}, err
	}
	ask := ipam.Request{
		Namespace: line.Owner.Namespace, Name: line.Owner.Name, NamespaceLabels: labels, Pools: pools,
	}
	next, err := r.Ledger.Replace(ctx, line.Address, line.Owner.UID, ask, ipam.Cause{Reason: message})
	switch {
	case errors.Is(err, ipam.ErrNotHeld):
		return reconcile.Result{}, nil // released meanwhile
	case noOther(err):
		r.tell(ip, line, conflictWaits, fmt.Sprintf("%s; there is no other: %v", message, err))
		return reconcile.Result{RequeueAfter: moveAgain}, nil
	case err != nil:
		return reconcile.Result{}, err
	}
	r.moved(ip.Spec.VM.UID, time.Now())
	logr.FromContextOrDiscard(ctx).Info("gave the next address", "address", next.Address, "instead", line.Address,
		"vm", line.Owner, "reason", message)
	// The hints are the instance's, written when it was made: a guest that reboots finds the same ones.
	r.tell(ip, line, conflictReplaced, fmt.Sprintf("%s; the VM gets %s of pool %s instead; hints inside the guest name the "+
		"old address until the VM is stopped and started", message, next.Address, next.Pool))
	// The object of the new address, the VM's annotations and the pod's description follow the ledger.
	return reconcile.Result{}, r.Started.Look(ctx, line.Owner)
}

// poolsFor returns the pools that the VM may have the next address from.
func poolsFor(wish webhook.Request, line ipam.Allocation) []string {
	if len(wish.Pools) > 0 {
		return wish.Pools
	}
	if len(wish.Addresses) > 0 {
		return []string{line.Pool} // a copy that was given another address than it names
	}
	return nil
}

// noOther reports whether only an administrator, or time, can help.
func noOther(err error) bool {
	for _, known := range []error{ipam.ErrFull, ipam.ErrLimit, ipam.ErrDraining, ipam.ErrNoPool, ipam.ErrNotAllowed,
		ipam.ErrUnknownPool, ipam.ErrDisputed} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// What became of a conflict, as the metric shows it.
const (
	conflictReplaced  = "replaced"
	conflictWaits     = "waits"
	conflictContested = "contested"
)

// tell writes events on the VM and on the FloatingIP, unless that was said before.
func (r *Conflicts) tell(ip *v1alpha1.FloatingIP, line ipam.Allocation, outcome, text string) {
	r.mu.Lock()
	before := r.told[ip.Name]
	if before != text {
		r.told[ip.Name] = text
	}
	r.mu.Unlock()
	if before == text {
		return
	}
	r.Metrics.conflict(line.Pool, outcome)
	r.Events.Warn(line.Owner, EventConflict, text)
	r.Events.about(ip, EventConflict, text)
}

func (r *Conflicts) forget(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.told, name)
}

// pause is how long the VM has to wait for the next address.
func (r *Conflicts) pause(vm types.UID, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Forgotten after a quiet hour.
	for uid, at := range r.moves {
		if now.Sub(at[len(at)-1]) > time.Hour {
			delete(r.moves, uid)
		}
	}
	at := r.moves[vm]
	if len(at) < maxMoves {
		return 0
	}
	return moveAgain - now.Sub(at[len(at)-1])
}

func (r *Conflicts) moved(vm types.UID, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := append(r.moves[vm], now)
	r.moves[vm] = at[max(0, len(at)-maxMoves):]
}

// follow lets the bindings of a description follow the ledger: an address that the VM does not hold any more is replaced
// by the one of the same family that it holds instead.
func follow(nat floatip.PodNAT, lines []ipam.Allocation) floatip.PodNAT {
	nat.Bindings = slices.Clone(nat.Bindings)
	for i, b := range nat.Bindings {
		if now := instead(b.Floating, lines); now.IsValid() {
			nat.Bindings[i].Floating = now
		}
	}
	return nat
}

func instead(a netip.Addr, lines []ipam.Allocation) netip.Addr {
	var other netip.Addr
	for _, line := range lines {
		switch {
		case line.Address == a:
			return netip.Addr{}
		case line.State == ipam.Bound && line.Address.Is4() == a.Is4():
			other = line.Address
		}
	}
	return other
}
