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

// podPolicies: whoever may write a pod, by whatever way the API server has, does not write floatip.io/nat, an administrator and
// KubeVirt's controller included; and floatip writes nothing else, on no other pod.
func podPolicies(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	n.runs("vm", nil, func(*kubevirtv1.VirtualMachine) {})
	launcher := n.injected("vm")
	plain := &corev1.Pod{Spec: corev1.PodSpec{
		Containers: []corev1.Container{{Name: "compute", Image: "example/guest"}}, SchedulerName: "nobody",
	}}
	plain.Namespace, plain.Name, plain.Labels = n.ns, "plain", map[string]string{"kubevirt.io": "virt-launcher"}
	plain.Annotations = map[string]string{"a": "b"}
	if err := n.admin.Create(n.ctx, plain); err != nil {
		t.Fatal(err)
	}
	controller, webhook := w.as(t, kubevirtController, "system:masters"), w.as(t, webhookUser)
	another := plain.DeepCopy() // of KubeVirt's controller, described, and no launcher
	another.ResourceVersion, another.Name, another.Labels = "", "another", nil
	another.Annotations = map[string]string{floatip.AnnotationNAT: "{}"}
	if err := controller.Create(n.ctx, another); err != nil {
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
		{"by a Binding, as KubeVirt's controller", theirs, func() error { return controller.Create(n.ctx, binding()) }},
		{"by the pod's binding, as KubeVirt's controller", theirs, func() error {
			return controller.SubResource("binding").Create(n.ctx, plain, binding())
		}},
		{"by the pod's binding", theirs, func() error { return n.admin.SubResource("binding").Create(n.ctx, plain, binding()) }},
		{"floatip changes a finalizer", ours, func() error { return patch(webhook, &launcher, `{"metadata":{"finalizers":["example.com/one"]}}`) }},
		{"floatip changes the owner", ours, func() error { return patch(webhook, &launcher, `{"metadata":{"ownerReferences":null}}`) }},
		{"floatip changes a label", ours, func() error { return patch(webhook, &launcher, `{"metadata":{"labels":{"kubevirt.io":null}}}`) }},
		{"floatip ends the pod", ours, func() error { return patch(webhook, &launcher, `{"spec":{"activeDeadlineSeconds":1}}`) }},
		{"floatip describes a pod that it did not describe before", ours, func() error { return patch(webhook, plain, described) }},
		{"the same in place of another annotation", ours, func() error {
			return patch(webhook, plain, `{"metadata":{"annotations":{"a":null,"floatip.io/nat":"{}"}}}`)
		}},
		{"floatip changes the description of a pod that is no launcher", ours, func() error { return patch(webhook, another, described) }},
		{"floatip changes another annotation", ours, func() error {
			return patch(webhook, &launcher, `{"metadata":{"annotations":{"kubevirt.io/domain":"other"}}}`)
		}},
		{"floatip adds one in place of another", ours, func() error {
			return patch(webhook, &launcher, `{"metadata":{"annotations":{"kubevirt.io/domain":null,"a":""}}}`)
		}},
		{"floatip removes one", ours, func() error {
			return patch(webhook, &launcher, `{"metadata":{"annotations":{"kubevirt.io/domain":null}}}`)
		}},
		{"floatip removes the description", ours, func() error {
			return patch(webhook, &launcher, `{"metadata":{"annotations":{"floatip.io/nat":null}}}`)
		}},
		{"floatip puts another annotation in its place", ours, func() error {
			return patch(webhook, &launcher, `{"metadata":{"annotations":{"floatip.io/nat":null,"a":"b"}}}`)
		}},
	} {
		wantRefusal(t, tc.name, tc.do(), tc.refused)
	}
	// The API server itself ignores metadata that come by these.
	for name, text := range map[string]string{
		"resize":              described,
		"ephemeralcontainers": described[:len(described)-1] + `,"spec":{"ephemeralContainers":[{"name":"x","image":"example/x"}]}}`,
	} {
		err := n.admin.SubResource(name).Patch(n.ctx, launcher.DeepCopy(), client.RawPatch(types.StrategicMergePatchType, []byte(text)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := n.awaitPod(n.ns, "vm").Annotations[floatip.AnnotationNAT]; got != launcher.Annotations[floatip.AnnotationNAT] {
			t.Errorf("by pods/%s the description became %s", name, got)
		}
	}
	if err := patch(n.admin, &launcher, `{"metadata":{"labels":{"a":"b"}}}`); err != nil {
		t.Errorf("an administrator changes a label of a launcher: %v", err)
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
