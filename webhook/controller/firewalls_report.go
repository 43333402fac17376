package controller

import (
	"context"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook/firewall"
)

// reasonTranslated is the reason of a condition FirewallReady that is true.
const reasonTranslated = "Translated"

// Bounds of what is told: the API server refuses an event with a note of more than 1 KiB (k8s.io/api/events/v1), and
// nobody reads more.
const (
	maxTold    = 8    // problems
	maxMessage = 1024 // bytes
)

// reportAgain is when a condition is written that the node agent came before with one of its own.
const reportAgain = 200 * time.Millisecond

// report shows at the FloatingIPs of the pod what could not be translated, and tells the VM's owner what is new of it.
func (r *Firewalls) report(ctx context.Context, nat floatip.PodNAT, problems []firewall.Problem) (
	reconcile.Result, error,
) {
	want := conditionOf(problems)
	news := false
	for _, b := range nat.Bindings {
		changed, err := r.writeCondition(ctx, v1alpha1.Name(b.Floating), nat.Owner, want)
		if apierrors.IsConflict(err) {
			return reconcile.Result{RequeueAfter: reportAgain}, nil
		}
		if err != nil {
			return reconcile.Result{}, err
		}
		news = news || changed
	}
	if news {
		for _, p := range problems[:min(len(problems), maxTold)] {
			r.Events.Warn(nat.Owner, string(p.Reason), p.Error())
		}
	}
	return reconcile.Result{}, nil
}

// conditionOf says whether all was translated. Problems are sorted, so that equal ones make an equal condition.
func conditionOf(problems []firewall.Problem) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionFirewallReady, Status: metav1.ConditionTrue, Reason: reasonTranslated}
	if len(problems) == 0 {
		return c
	}
	texts := make([]string, len(problems))
	for i, p := range problems {
		texts[i] = p.Error()
	}
	c.Status, c.Reason, c.Message = metav1.ConditionFalse, string(problems[0].Reason), cut(strings.Join(texts, "; "))
	return c
}

// cut shortens a text to maxMessage, at the border of a character.
func cut(text string) string {
	if len(text) <= maxMessage {
		return text
	}
	return strings.ToValidUTF8(text[:maxMessage-len("…")], "") + "…"
}

// writeCondition sets a condition of a FloatingIP, if the VM holds it, and reports whether that changed anything. The
// other conditions are the node agent's: the resource version makes it a compare-and-set, as on the agent's side.
func (r *Firewalls) writeCondition(ctx context.Context, name string, owner floatip.Owner, want metav1.Condition) (
	bool, error,
) {
	ip := &v1alpha1.FloatingIP{}
	err := r.Cluster.Cached.Get(ctx, types.NamespacedName{Name: name}, ip)
	if apierrors.IsNotFound(err) || err == nil && string(ip.Spec.VM.UID) != owner.UID {
		return false, nil // comes by its own event when it is made
	}
	if err != nil {
		return false, fmt.Errorf("read FloatingIP %s: %w", name, err)
	}
	want.ObservedGeneration = ip.Generation
	if !meta.SetStatusCondition(&ip.Status.Conditions, want) {
		return false, nil
	}
	patch := rawMerge(map[string]any{
		"metadata": map[string]any{"resourceVersion": ip.ResourceVersion},
		"status":   map[string]any{"conditions": ip.Status.Conditions},
	})
	err = r.Writer.Status().Patch(ctx, ip, patch, client.FieldOwner(FieldManager))
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil && !apierrors.IsConflict(err):
		return false, fmt.Errorf("write condition of FloatingIP %s: %w", name, err)
	}
	return err == nil, err
}
