package controller

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook"
	"floatip.io/floatip/webhook/kubevirt"
)

// carried says whether the running instance of the VM that holds lines carries them, or returns nil if there is none. What
// was decided when the instance was created stands in its annotation floatip.io/address, which nobody else may write; the
// pod that its guest runs in shows whether that came true. A migration makes another pod: without the namespace's label it
// has no translation, whatever the instance says. Why it does not carry them is found out anew: nobody keeps the reason of
// a decision.
func (r *VMs) carried(ctx context.Context, now carriers, lines []ipam.Allocation) (*metav1.Condition, error) {
	owner := lines[0].Owner
	if now.vmi == nil || ownerUID(now.vmi) != owner.UID {
		return nil, nil
	}
	shall := now.vmi.Annotations[floatip.AnnotationAddress] != ""
	if shall && (now.launcher == nil || translates(now.launcher.Annotations) == owner.UID) {
		return &metav1.Condition{
			Type: v1alpha1.ConditionCarried, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonCarried,
			Message: "the instance of VM " + owner.String() + " carries the address",
		}, nil
	}
	remedy := "restart the VM"
	if shall {
		remedy = "migrate or restart the VM" // its next pod may carry them
	}
	reason, why, err := r.uncarried(ctx, now, owner, lines, remedy)
	if err != nil {
		return nil, err
	}
	return &metav1.Condition{
		Type: v1alpha1.ConditionCarried, Status: metav1.ConditionFalse, Reason: reason,
		Message: cut(fmt.Sprintf("VM %s runs without the address: %s", owner, why)),
	}, nil
}

// uncarried returns why an instance, or the pod of one, does not carry what its VM holds, by what there is now. Remedy is
// what helps once the cause is gone.
func (r *VMs) uncarried(ctx context.Context, now carriers, owner floatip.Owner, lines []ipam.Allocation, remedy string) (
	reason, why string, err error,
) {
	vmi := now.vmi
	if _, marked := vmi.Annotations[kubevirt.AnnotationTemporary]; marked {
		return v1alpha1.ReasonOptedOut, fmt.Sprintf("spec.template.metadata.annotations[%s] makes its pods look like those that "+
			"carry no guest; remove it and restart the VM", kubevirt.AnnotationTemporary), nil
	}
	if vmi.Annotations[floatip.LabelEnabled] == "false" {
		return v1alpha1.ReasonOptedOut, fmt.Sprintf("spec.template.metadata.annotations[%s] was \"false\" when it was started; "+
			"remove it and restart the VM to have the address back", floatip.LabelEnabled), nil
	}
	labels, err := r.Cluster.NamespaceLabels(ctx, owner.Namespace)
	if apierrors.IsNotFound(err) {
		labels, err = nil, nil // it is being deleted
	}
	if err != nil {
		return "", "", fmt.Errorf("labels of namespace %s: %w", owner.Namespace, err)
	}
	if labels[floatip.LabelEnabled] != "true" {
		return v1alpha1.ReasonNotOptedIn, fmt.Sprintf("its namespace has no label %s=true; set it and %s",
			floatip.LabelEnabled, remedy), nil
	}
	if now.launcher != nil {
		if err := webhook.RefusedByDefault(labels, now.launcher.Annotations[floatip.AnnotationPodSecurity]); err != nil {
			return v1alpha1.ReasonForbiddenSidecar, err.Error() + " and restart the VM", nil
		}
	}
	obstacle, err := webhook.ObstacleTo(ctx, r.Cluster, owner, lines, vmi.Spec, nil)
	switch {
	case err != nil:
		return "", "", err
	case obstacle == nil:
		return v1alpha1.ReasonStartedWithout, "what stood in the way when it was started does not any more; " + remedy, nil
	case obstacle.Event == webhook.EventForbidden:
		return v1alpha1.ReasonForbiddenSidecar, obstacle.Cause.Error(), nil
	}
	return v1alpha1.ReasonUnsupportedBinding, obstacle.Cause.Error(), nil
}
