package controller

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook"
)

// poolInterval is how old the figures in a pool's status may be.
const poolInterval = 10 * time.Second

// Conditions of pools.
const (
	ConditionReady       = "Ready"
	ConditionOverlapping = "Overlapping"
	ConditionExhausted   = "Exhausted"
	// ConditionNodeConflict: a VM holds an address that a node has too, as when the node joined later.
	ConditionNodeConflict = "NodeConflict"
	// ConditionDeliveryReady is there for pools that somebody else than the node agents delivers.
	ConditionDeliveryReady = "DeliveryReady"
)

// Pools turns the FloatingIPPool objects into the ledger's pools, and writes their status.
type Pools struct {
	Ledger  *ipam.Ledger
	Cached  client.Reader
	Writer  client.Client
	Events  Events
	Started *Starter
	// KubeOVN delivers the addresses of pools with that delivery, nil for nobody.
	KubeOVN interface{ Served(context.Context) error }
}

// SetupWithManager looks at all pools together whenever one of them changes: whether a pool overlaps depends on the
// others.
func (r *Pools) SetupWithManager(mgr ctrl.Manager) error {
	one := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return []reconcile.Request{{}}
	})
	return builder.ControllerManagedBy(mgr).
		Named("pools").
		Watches(&v1alpha1.FloatingIPPool{}, one).
		Watches(&corev1.Node{}, one, builder.WithPredicates(ownAddressesChanged)).
		Complete(r)
}

// poolObject is a FloatingIPPool and what it says.
type poolObject struct {
	object *v1alpha1.FloatingIPPool
	pool   ipam.Pool
	errs   field.ErrorList
	nodes  []nodeAddress // those of the pool's addresses that nodes have
}

func readPools(ctx context.Context, reader client.Reader) ([]poolObject, error) {
	var list v1alpha1.FloatingIPPoolList
	if err := reader.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list FloatingIPPools: %w", err)
	}
	own, err := nodeAddresses(ctx, reader)
	if err != nil {
		return nil, err
	}
	return poolObjects(list.Items, own), nil
}

// poolObjects reads the pools; what the nodes have themselves is never handed out.
func poolObjects(items []v1alpha1.FloatingIPPool, nodes []nodeAddress) []poolObject {
	pools := make([]poolObject, len(items))
	for i := range items {
		p := poolObject{object: &items[i]}
		p.pool, p.errs = webhook.PoolOf(p.object)
		for _, own := range nodes {
			if slices.ContainsFunc(p.pool.Addresses, func(r ipam.Range) bool { return r.Contains(own.address) }) {
				p.pool.Reserved = append(p.pool.Reserved, own.address)
				p.nodes = append(p.nodes, own)
			}
		}
		pools[i] = p
	}
	return pools
}

// valid returns the pools that can be read. What is held in the others stays held.
func valid(pools []poolObject) []ipam.Pool {
	var all []ipam.Pool
	for _, p := range pools {
		if len(p.errs) == 0 {
			all = append(all, p.pool)
		}
	}
	return all
}

// Reconcile looks at all pools.
func (r *Pools) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	if err := r.Started.wait(ctx); err != nil {
		return reconcile.Result{}, err
	}
	pools, err := readPools(ctx, r.Cached)
	if err != nil {
		return reconcile.Result{}, err
	}
	r.Ledger.SetPools(valid(pools))
	figures := r.Ledger.Pools()
	for _, p := range pools {
		i := slices.IndexFunc(figures, func(s ipam.PoolStatus) bool { return s.Pool.Name == p.object.Name })
		var have *ipam.PoolStatus
		if i >= 0 {
			have = &figures[i]
		}
		if err := r.writeStatus(ctx, p, have); err != nil {
			return reconcile.Result{}, err
		}
	}
	return reconcile.Result{RequeueAfter: poolInterval}, nil
}

// setDelivery says whether Kube-OVN can be asked to deliver the pool's addresses.
func (r *Pools) setDelivery(ctx context.Context, pool *v1alpha1.FloatingIPPool) {
	if pool.Spec.Delivery != floatip.DeliveryKubeOVN || r.KubeOVN == nil {
		meta.RemoveStatusCondition(&pool.Status.Conditions, ConditionDeliveryReady)
		return
	}
	c := metav1.Condition{
		Type: ConditionDeliveryReady, Status: metav1.ConditionTrue, Reason: "KubeOVN", ObservedGeneration: pool.Generation,
	}
	if err := r.KubeOVN.Served(ctx); err != nil {
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "KubeOVNUnavailable", err.Error()
	}
	meta.SetStatusCondition(&pool.Status.Conditions, c)
}

func (r *Pools) writeStatus(ctx context.Context, p poolObject, figures *ipam.PoolStatus) error {
	after := p.object.DeepCopy()
	after.Status = statusOf(p, figures)
	r.setDelivery(ctx, after)
	r.setNodeConflict(p, after)
	patch := client.MergeFrom(p.object)
	raw, err := patch.Data(after)
	if err != nil {
		return fmt.Errorf("status of pool %s: %w", p.object.Name, err)
	}
	if string(raw) == "{}" {
		return nil
	}
	err = r.Writer.Status().Patch(ctx, after, patch, client.FieldOwner(FieldManager))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write status of pool %s: %w", p.object.Name, err)
	}
	return nil
}

// statusOf returns the status of a pool; figures is nil for one that cannot be read.
func statusOf(p poolObject, figures *ipam.PoolStatus) v1alpha1.FloatingIPPoolStatus {
	status := *p.object.Status.DeepCopy()
	status.ObservedGeneration = p.object.Generation
	set := func(kind string, on bool, reason, text string) {
		value := metav1.ConditionFalse
		if on {
			value = metav1.ConditionTrue
		}
		meta.SetStatusCondition(&status.Conditions, metav1.Condition{
			Type: kind, Status: value, Reason: reason, Message: text, ObservedGeneration: p.object.Generation,
		})
	}
	if figures == nil {
		text := "the pool cannot be read"
		if len(p.errs) > 0 {
			text = p.errs.ToAggregate().Error()
		}
		set(ConditionReady, false, "Invalid", text)
		return status
	}
	status.IPv4, status.IPv6 = count(figures.IPv4), count(figures.IPv6)
	status.Usage, status.Resting = usageOf(*figures)
	set(ConditionOverlapping, len(figures.Overlaps) > 0, overlapReason(*figures), overlapText(*figures))
	set(ConditionExhausted, exhausted(*figures), exhaustedReason(*figures), "")
	switch {
	case figures.Pool.Drain:
		set(ConditionReady, false, "Draining", "spec.drain is true: nothing is handed out")
	case exhausted(*figures):
		set(ConditionReady, false, "Exhausted", "every address is held or rests")
	default:
		set(ConditionReady, true, "Serving", "")
	}
	return status
}

func count(c ipam.Count) *v1alpha1.AddressCount {
	if c.Capacity == nil || c.Capacity.Sign() == 0 && c.Used == 0 {
		return nil
	}
	return &v1alpha1.AddressCount{
		Capacity: c.Capacity.String(), Used: int64(c.Used), Pending: int64(c.Pending), Quarantined: int64(c.Quarantined),
	}
}

func exhausted(s ipam.PoolStatus) bool {
	full := func(c ipam.Count) bool {
		return c.Capacity != nil && c.Capacity.IsInt64() && int64(c.Used+c.Quarantined) >= c.Capacity.Int64()
	}
	return full(s.IPv4) && full(s.IPv6)
}

func exhaustedReason(s ipam.PoolStatus) string {
	if exhausted(s) {
		return "NoFreeAddress"
	}
	return "FreeAddresses"
}

func overlapReason(s ipam.PoolStatus) string {
	if len(s.Overlaps) > 0 {
		return "OlderPool"
	}
	return "NoOverlap"
}

func overlapText(s ipam.PoolStatus) string {
	var texts []string
	for older, ranges := range s.Overlaps {
		for _, r := range ranges {
			texts = append(texts, fmt.Sprintf("%s belongs to the older pool %s", r, older))
		}
	}
	slices.SortFunc(texts, cmp.Compare[string])
	return strings.Join(texts, "; ")
}
