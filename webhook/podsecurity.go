package webhook

import (
	"context"
	"fmt"
	"strings"

	"floatip.io/floatip"
	"floatip.io/floatip/webhook/kubevirt"
)

// labelEnforce is the Pod Security level of a namespace.
const labelEnforce = "pod-security.kubernetes.io/enforce"

// sidecarForbidden says why pods of a namespace with these labels may not have the sidecar, or returns nil: all Pod
// Security levels but privileged forbid NET_ADMIN (k8s.io/pod-security-admission check_capabilities_baseline.go), and one
// that nobody knows counts as restricted (api/helpers.go, ParseLevel).
func sidecarForbidden(namespaceLabels map[string]string) error {
	switch level := namespaceLabels[labelEnforce]; level {
	case "", "privileged":
		return nil
	default:
		return fmt.Errorf("the namespace enforces the Pod Security level %s, which forbids the sidecar's capability NET_ADMIN; it must be privileged", level)
	}
}

// PodSecurityReader knows what the API server has refused. The level that it enforces in namespaces without a label is in a
// file of its own (AdmissionConfiguration), with exemptions, and no API shows it. What it says about a pod is the truth.
type PodSecurityReader interface {
	// RefusedInstance returns the Pod Security level for which the pod that the guest of an instance runs in has no sidecar,
	// or nothing.
	RefusedInstance(ctx context.Context, vmi *kubevirt.VirtualMachineInstance) (level string, err error)
	// RefusedNamespace is the same for any pod of a namespace.
	RefusedNamespace(ctx context.Context, namespace string) (level string, err error)
}

// RefusedByDefault says that a level is enforced in a namespace with these labels for want of a label; nil if there is one, or
// no level.
func RefusedByDefault(namespaceLabels map[string]string, level string) error {
	if _, says := namespaceLabels[labelEnforce]; says || level == "" {
		return nil
	}
	return fmt.Errorf("the API server enforces the Pod Security level %s in namespaces without a label, which forbids the sidecar's "+
		"capability NET_ADMIN; give the namespace the label %s: privileged", level, labelEnforce)
}

// refusedLevel reads in what KubeVirt says about an instance that its launcher was refused, because of the sidecar among
// others, and by which level. The words are those of k8s.io/pod-security-admission (admission/admission.go, EvaluatePod).
func refusedLevel(vmi *kubevirt.VirtualMachineInstance) string {
	const says = `violates PodSecurity "`
	for _, c := range vmi.Status.Conditions {
		_, text, refused := strings.Cut(c.Message, says)
		if c.Type != kubevirt.ConditionSynchronized || c.Status != "False" || !refused || !strings.Contains(text, `"`+floatip.SidecarContainer+`"`) {
			continue
		}
		if end := strings.IndexAny(text, `:"`); end > 0 {
			return text[:end]
		}
	}
	return ""
}

// refusedBefore says why the launchers of a namespace with these labels will have no sidecar, by those that there are.
func (h *Hooks) refusedBefore(ctx context.Context, namespace string, labels map[string]string) (why, err error) {
	if _, says := labels[labelEnforce]; says {
		return nil, nil // without asking
	}
	level, err := h.Cluster.RefusedNamespace(ctx, namespace)
	return RefusedByDefault(labels, level), err
}

// refused says why the pod of an instance can have no sidecar: the namespace's label forbids it, or the API server has refused
// a launcher of this instance for it, which KubeVirt makes again. Learned is the level in the second case. A VM that requires
// its address is not started without it: its pod is refused again.
func (h *Hooks) refused(ctx context.Context, owner floatip.Owner, vmi *kubevirt.VirtualMachineInstance) (why error, learned string, err error) {
	labels, err := h.Cluster.NamespaceLabels(ctx, owner.Namespace)
	if err != nil {
		return nil, "", fmt.Errorf("labels of namespace %s: %w", owner.Namespace, err)
	}
	if why := sidecarForbidden(labels); why != nil {
		return why, "", nil
	}
	level := refusedLevel(vmi)
	if level == "" {
		if level, err = h.Cluster.RefusedInstance(ctx, vmi); err != nil {
			return nil, "", fmt.Errorf("look for the pod of VM %s: %w", owner, err)
		}
	}
	if why = RefusedByDefault(labels, level); why == nil {
		return nil, "", nil
	}
	if required, err := h.requires(ctx, owner); err != nil || required {
		return nil, "", err
	}
	return why, level, nil
}
