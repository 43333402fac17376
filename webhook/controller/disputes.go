package controller

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook"
)

// Reasons of the condition Disputed.
const (
	reasonManyClaim = "ClaimedByOthers"
	reasonSettled   = "Settled"
)

// flag shows on the FloatingIP object of a disputed line who claims it. Which VM the object names stays as it is: until
// somebody decides, packets go where they went. It returns false if there is no object.
func (r *VMs) flag(ctx context.Context, line ipam.Allocation) (bool, error) {
	have := &v1alpha1.FloatingIP{}
	err := r.Cluster.Cached.Get(ctx, types.NamespacedName{Name: v1alpha1.Name(line.Address)}, have)
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read FloatingIP of %s: %w", line.Address, err)
	}
	text := fmt.Sprintf("the ledger has it with VM %s (UID %s)", line.Owner, line.Owner.UID)
	for _, c := range claimantsOf(r.Ledger, line.Address) {
		text += fmt.Sprintf(", %s shows it with VM %s (UID %s)", c.Source, c.Owner, c.Owner.UID)
	}
	text += "; ledger resolve decides (docs/ledger.md)"
	return true, r.setDisputed(ctx, have, metav1.ConditionTrue, reasonManyClaim, text)
}

// unflag ends the condition where it stands.
func (r *VMs) unflag(ctx context.Context, have *v1alpha1.FloatingIP) error {
	if !meta.IsStatusConditionTrue(have.Status.Conditions, v1alpha1.ConditionDisputed) {
		return nil
	}
	return r.setDisputed(ctx, have, metav1.ConditionFalse, reasonSettled, "one VM has it")
}

// setDisputed leaves the node agent's conditions alone: the list is written for the very version that was read.
func (r *VMs) setDisputed(
	ctx context.Context, have *v1alpha1.FloatingIP, status metav1.ConditionStatus, reason, text string,
) error {
	after := have.DeepCopy()
	changed := meta.SetStatusCondition(&after.Status.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionDisputed, Status: status, Reason: reason, Message: text, ObservedGeneration: have.Generation,
	})
	if !changed {
		return nil
	}
	patch := client.MergeFromWithOptions(have, client.MergeFromWithOptimisticLock{})
	if err := r.Writer.Status().Patch(ctx, after, patch, client.FieldOwner(FieldManager)); err != nil {
		return fmt.Errorf("write condition %s of FloatingIP %s: %w", v1alpha1.ConditionDisputed, have.Name, err)
	}
	after.DeepCopyInto(have) // for whoever writes next
	return nil
}

func claimantsOf(ledger *ipam.Ledger, address netip.Addr) []ipam.Claimant {
	for _, d := range ledger.Disputes() {
		if d.Holder.Address == address {
			return d.Claimants
		}
	}
	return nil
}

// claims reports whether the FloatingIP names a VM that claims its address without holding it.
func (r *VMs) claims(ip *v1alpha1.FloatingIP) bool {
	address, err := ipam.ParseAddress(ip.Spec.Address)
	return err == nil && slices.ContainsFunc(claimantsOf(r.Ledger, address), func(c ipam.Claimant) bool {
		return c.Owner.UID == string(ip.Spec.VM.UID)
	})
}

// dropClaims ends the claims of VMs with this name of which nothing is left in the API server. It returns when to look
// again, if no event of the cluster will say so.
func (r *VMs) dropClaims(ctx context.Context, key types.NamespacedName, now carriers) (again time.Duration, err error) {
	for _, d := range r.Ledger.Disputes() {
		for _, c := range d.Claimants {
			if c.Owner.Namespace != key.Namespace || c.Owner.Name != key.Name || now.carry(c.Owner.UID) != "" {
				continue
			}
			later, err := r.dropClaim(ctx, key, c)
			if err != nil {
				return 0, err
			}
			if again = sooner(again, later); later > 0 {
				continue
			}
			if err := r.Started.Look(ctx, d.Holder.Owner); err != nil {
				return 0, err
			}
		}
	}
	return again, nil
}

// dropClaim ends the claim of a VM that the cache does not show any more, and releases what it held besides.
func (r *VMs) dropClaim(ctx context.Context, key types.NamespacedName, c ipam.Claimant) (again time.Duration, err error) {
	if wait := r.Started.orphaned(c.Owner.UID); wait > 0 {
		return wait, nil
	}
	live, err := carriersOf(ctx, r.Cluster.Live, key)
	if err != nil {
		return 0, err
	}
	if live.carry(c.Owner.UID) != "" {
		return 0, fmt.Errorf("end the claim of VM %s to %s: the cache lags behind the API server", c.Owner, c.Address)
	}
	held := append(addressesOfLines(r.Ledger.ByOwner(c.Owner.UID)), c.Address)
	switch node, err := r.Cluster.Announcer(ctx, c.Owner.UID, held); {
	case err != nil:
		return 0, err
	case node != "":
		return heldAgain, nil
	}
	_, err = r.Ledger.Release(ctx, c.Owner.UID, ipam.Cause{Reason: "VM, VMI and pods are gone"})
	return 0, err
}

// tellParties writes an event on each VM of a dispute. Those of other namespaces are not named.
func (e Events) tellParties(d ipam.Dispute) {
	const remedy = "it stays as it is until ledger resolve decides (docs/ledger.md)"
	e.Warn(d.Holder.Owner, EventDisputed, fmt.Sprintf("floating IP %s is claimed by %s too; %s",
		d.Holder.Address, webhook.NameFor(d.Holder.Owner.Namespace, d.Claimants[0].Owner), remedy))
	for _, c := range d.Claimants {
		e.Warn(c.Owner, EventDisputed, fmt.Sprintf("floating IP %s is held by %s in the ledger; %s",
			c.Address, webhook.NameFor(c.Owner.Namespace, d.Holder.Owner), remedy))
	}
}

// Look has the VMs controller look at what the owners' names stand for.
func (s *Starter) Look(ctx context.Context, owners ...floatip.Owner) error {
	for _, owner := range owners {
		select {
		case s.look <- eventOf(owner):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
