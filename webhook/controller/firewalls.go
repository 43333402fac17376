package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/webhook"
	"floatip.io/floatip/webhook/firewall"
	"floatip.io/floatip/webhook/kubevirt"
)

// Firewalls keeps the description of running launcher pods up to date: it writes what NetworkPolicies, allow list, pool
// and the VM's ports admit into the annotation floatip.io/nat, from where it comes to the sidecar, and the address that
// the ledger has given to the VM instead of another. Of the rest of that annotation nothing is changed.
type Firewalls struct {
	Ledger  *ipam.Ledger
	Cluster Cluster
	Writer  client.Client
	Events  Events
	// Started says when the ledger knows which pool an address is of.
	Started *Starter
}

// Reconcile looks at one launcher pod.
func (r *Firewalls) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if err := r.Started.wait(ctx); err != nil {
		return reconcile.Result{}, err
	}
	pod := metadataOf(podKind)
	if err := r.Cluster.Cached.Get(ctx, req.NamespacedName, pod); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if pod.Annotations[floatip.AnnotationNAT] == "" {
		return reconcile.Result{}, nil
	}
	before, err := floatip.ParsePodNAT([]byte(pod.Annotations[floatip.AnnotationNAT]))
	if err != nil {
		// Only an API server that was restored or written behind its own back has such a pod.
		return reconcile.Result{}, reconcile.TerminalError(fmt.Errorf("%s of pod %s: %w", floatip.AnnotationNAT, req, err))
	}
	after, problems, err := r.guard(ctx, pod, before)
	if errors.Is(err, errNoGuest) {
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("firewall of pod %s: %w", req, err)
	}
	if err := r.write(ctx, pod, before, after); err != nil {
		return reconcile.Result{}, err
	}
	return r.report(ctx, after, problems)
}

// errNoGuest is a pod whose VMI is gone: its guest ended, and nothing is left to protect.
var errNoGuest = errors.New("the pod has no VirtualMachineInstance")

// guard returns before with the firewall that there shall be.
func (r *Firewalls) guard(ctx context.Context, pod *metav1.PartialObjectMetadata, before floatip.PodNAT) (
	after floatip.PodNAT, problems []firewall.Problem, err error,
) {
	ref, ok := kubevirt.OwnerOf(pod.OwnerReferences, kubevirt.KindVMI)
	if !ok {
		return after, nil, errNoGuest
	}
	vmi, err := r.Cluster.VMI(ctx, pod.Namespace, ref.Name, ref.UID)
	if apierrors.IsNotFound(err) {
		return after, nil, errNoGuest
	}
	if err != nil {
		return after, nil, fmt.Errorf("read VMI %s/%s: %w", pod.Namespace, ref.Name, err)
	}
	before = follow(before, r.Ledger.ByOwner(before.Owner.UID))
	after = before
	after.Firewall, problems, err = webhook.FirewallOf(ctx, r.Cluster, webhook.Guarded{
		Owner: before.Owner, Delivery: before.Delivery, Pools: r.poolsOf(before), Labels: pod.Labels, Spec: vmi.Spec, Orphaned: present(before.Firewall),
	})
	return after, problems, err
}

// present returns what a pod admits now. A VM that is gone can allow nobody anew, so that what its guest admits only
// shrinks.
func present(f *floatip.Firewall) firewall.AllowList {
	if f == nil {
		return firewall.AllowAtMost(floatip.Admitted{Everything: true})
	}
	return firewall.AllowAtMost(f.Ingress)
}

// poolsOf returns the pool of each address of the pod by the ledger; one that the VM does not hold has no pool.
func (r *Firewalls) poolsOf(nat floatip.PodNAT) map[netip.Addr]string {
	pools := map[netip.Addr]string{}
	for _, b := range nat.Bindings {
		pools[b.Floating] = ""
	}
	for _, line := range r.Ledger.ByOwner(nat.Owner.UID) {
		if _, translated := pools[line.Address]; translated {
			pools[line.Address] = line.Pool
		}
	}
	return pools
}

// natPath is floatip.AnnotationNAT of an object as a JSON pointer (RFC 6901).
const natPath = "/metadata/annotations/floatip.io~1nat"

// write brings a change to the pod. The patch tests that the annotation is the one that the change was computed from:
// behind the cache it may have got another one, which is seen in a moment.
func (r *Firewalls) write(ctx context.Context, pod *metav1.PartialObjectMetadata, before, after floatip.PodNAT) error {
	old, err := before.Encode()
	if err != nil {
		return err
	}
	text, err := after.Encode()
	if err != nil {
		return fmt.Errorf("firewall of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	if text == old {
		return nil
	}
	patch, err := json.Marshal([]map[string]string{
		{"op": "test", "path": natPath, "value": pod.Annotations[floatip.AnnotationNAT]},
		{"op": "replace", "path": natPath, "value": text},
	})
	if err != nil {
		return err
	}
	err = r.Writer.Patch(ctx, pod, client.RawPatch(types.JSONPatchType, patch), client.FieldOwner(FieldManager))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write firewall of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	logr.FromContextOrDiscard(ctx).Info("changed firewall", "pod", pod.Namespace+"/"+pod.Name, "vm", after.Owner,
		"ingress", extent(after.Firewall, true), "egress", extent(after.Firewall, false))
	return nil
}

// extent says for the log how much of a direction is open.
func extent(f *floatip.Firewall, ingress bool) string {
	switch {
	case f == nil, ingress && f.Ingress.Everything, !ingress && f.Egress.Everything:
		return "everything"
	case ingress:
		return fmt.Sprintf("%d entries", len(f.Ingress.Entries))
	}
	return fmt.Sprintf("%d entries", len(f.Egress.Entries))
}
