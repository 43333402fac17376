package admission

import (
	"encoding/json"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
)

// policies: whoever may write a pod, by whatever way the API server has, does not write floatip.io/nat, an administrator and
// KubeVirt's controller included; and floatip writes nothing else, on no other pod.
func policies(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	n.runs("vm", nil, func(*kubevirtv1.VirtualMachine) {})
	launcher := n.injected("vm")
	plain := &corev1.Pod{Spec: corev1.PodSpec{
		Containers: []corev1.Container{{Name: "compute", Image: "example/guest"}}, SchedulerName: "nobody",
	}}
	plain.Namespace, plain.Name, plain.Labels = n.ns, "plain", map[string]string{"kubevirt.io": "virt-launcher"}
	if err := n.admin.Create(n.ctx, plain); err != nil {
		t.Fatal(err)
	}
	described := fmt.Sprintf(`{"metadata":{"annotations":{%q:%s}}}`, floatip.AnnotationNAT, mustJSON(t, launcher.Annotations[floatip.AnnotationNAT]+" "))
	patch := func(c client.Client, pod *corev1.Pod, text string) error {
		return c.Patch(n.ctx, pod.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(text)))
	}
	binding := func() *corev1.Binding {
		return &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Namespace: n.ns, Name: "plain", Annotations: map[string]string{floatip.AnnotationNAT: "{}"}},
			Target:     corev1.ObjectReference{Kind: "Node", Name: "nowhere"},
		}
	}
	controller := w.as(t, "system:serviceaccount:kubevirt:kubevirt-controller", "system:masters")
	webhook := w.as(t, "system:serviceaccount:floatip-system:floatip-webhook")
	const theirs, ours = "is written by floatip only", "pods-by-floatip.floatip.io"
	for _, tc := range []struct {
		name, refused string
		do            func() error
	}{
		{"a description on a new pod", theirs, func() error {
			pod := plain.DeepCopy()
			pod.ResourceVersion, pod.Name, pod.Annotations = "", "described", map[string]string{floatip.AnnotationNAT: "{}"}
			return n.admin.Create(n.ctx, pod)
		}},
		{"by KubeVirt's controller, later", theirs, func() error { return patch(controller, &launcher, described) }},
		{"by the pod's status", theirs, func() error {
			return n.admin.Status().Patch(n.ctx, launcher.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(described)))
		}},
		{"by the pod's status, as KubeVirt's controller", theirs, func() error {
			return controller.Status().Patch(n.ctx, launcher.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(described)))
		}},
		{"by a Binding", theirs, func() error { return n.admin.Create(n.ctx, binding()) }},
		{"by the pod's binding", theirs, func() error { return n.admin.SubResource("binding").Create(n.ctx, plain, binding()) }},
		{"floatip changes a finalizer", ours, func() error { return patch(webhook, &launcher, `{"metadata":{"finalizers":["example.com/one"]}}`) }},
		{"floatip changes the owner", ours, func() error { return patch(webhook, &launcher, `{"metadata":{"ownerReferences":null}}`) }},
		{"floatip changes a label", ours, func() error { return patch(webhook, &launcher, `{"metadata":{"labels":{"kubevirt.io":null}}}`) }},
		{"floatip ends the pod", ours, func() error { return patch(webhook, &launcher, `{"spec":{"activeDeadlineSeconds":1}}`) }},
		{"floatip describes a pod that it did not describe before", ours, func() error { return patch(webhook, plain, described) }},
	} {
		wantRefusal(t, tc.name, tc.do(), tc.refused)
	}
	if err := patch(webhook, &launcher, described); err != nil {
		t.Errorf("floatip changes the description of a launcher: %v", err)
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
