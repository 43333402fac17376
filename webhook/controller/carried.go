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
	labels, err := r.Cluster.NamespaceLabels(ctx, owner.Namespace)
	if apierrors.IsNotFound(err) {
		return nil, nil // it is gone, and all that was in it
	}
	if err != nil {
		return nil, fmt.Errorf("labels of namespace %s: %w", owner.Namespace, err)
	}
	shall := now.vmi.Annotations[floatip.AnnotationAddress] != ""
	if shall && (now.launcher == nil || translates(now.launcher.Annotations) == owner.UID) {
		message := "the instance of VM " + owner.String() + " carries the address"
		if labels[floatip.LabelEnabled] != "true" {
			message += fmt.Sprintf(" until it migrates or starts again, since its namespace has no label %s=true any more; "+
				"set it for the VM to keep the address then", floatip.LabelEnabled)
		}
		return &metav1.Condition{
			Type: v1alpha1.ConditionCarried, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonCarried, Message: message,
		}, nil
	}
	remedy := "restart the VM"
	if shall {
		remedy = "migrate or restart the VM" // its next pod may carry them
	}
	reason, why, err := r.uncarried(ctx, now, lines, labels, remedy)
	if err != nil {
		return nil, err
	}
	return &metav1.Condition{
		Type: v1alpha1.ConditionCarried, Status: metav1.ConditionFalse, Reason: reason,
		Message: cut(fmt.Sprintf("VM %s runs without the address: %s", owner, why)),
	}, nil
}

// uncarried returns why an instance, or the pod of one, does not carry what its VM holds, by what there is now, which is
// not always what there was when it was made. Labels are those of the namespace; remedy is what helps once the cause is gone.
func (r *VMs) uncarried(ctx context.Context, now carriers, lines []ipam.Allocation, labels map[string]string, remedy string) (
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
	reason, why, err = r.obstacle(ctx, now, lines, labels)
	switch {
	case err != nil:
		return "", "", err
	case labels[floatip.LabelEnabled] != "true" && reason != "":
		// Whoever sets the label shall not find out by the next restart that it was not all.
		return v1alpha1.ReasonNotOptedIn, fmt.Sprintf("its namespace has no label %s=true; and besides, %s", floatip.LabelEnabled, why), nil
	case labels[floatip.LabelEnabled] != "true":
		return v1alpha1.ReasonNotOptedIn, fmt.Sprintf("its namespace has no label %s=true; set it and %s",
			floatip.LabelEnabled, remedy), nil
	case reason == "":
		return v1alpha1.ReasonStartedWithout, "what stood in the way when it was started does not any more; " + remedy, nil
	}
	return reason, why, nil
}

// obstacle returns what is in the way but the label of the namespace; an empty reason is nothing.
func (r *VMs) obstacle(ctx context.Context, now carriers, lines []ipam.Allocation, labels map[string]string) (reason, why string, err error) {
	if now.launcher != nil {
		if err := webhook.RefusedByDefault(labels, now.launcher.Annotations[floatip.AnnotationPodSecurity]); err != nil {
			return v1alpha1.ReasonForbiddenSidecar, err.Error() + " and restart the VM", nil
		}
	}
	obstacle, err := webhook.ObstacleTo(ctx, r.Cluster, lines[0].Owner, lines, now.vmi.Spec, nil)
	switch {
	case err != nil || obstacle == nil:
		return "", "", err
	case obstacle.Event == webhook.EventForbidden:
		return v1alpha1.ReasonForbiddenSidecar, obstacle.Cause.Error(), nil
	}
	return v1alpha1.ReasonUnsupportedBinding, obstacle.Cause.Error(), nil
}
