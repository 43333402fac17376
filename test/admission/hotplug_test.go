package admission

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
)

// hotplug: a volume is plugged into a VM that runs with its address. The pod that KubeVirt's controller makes for it never
// reaches floatip, and is as KubeVirt wants it: with more than one container it would count as not ready for ever
// (pkg/virt-controller/watch/vmi/storage.go).
func hotplug(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	n.runs("vm", nil, func(*kubevirtv1.VirtualMachine) {})
	launcher := n.injected("vm")
	n.makeReady(&launcher, n.addNode())
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: n.ns, Name: "more"},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}},
		},
	}
	if err := n.admin.Create(n.ctx, claim); err != nil {
		t.Fatal(err)
	}
	before := len(n.calls(n.ns))
	n.plug("vm", claim.Name)

	var attachment corev1.Pod
	n.wait("KubeVirt's pod for the volume", func(ctx context.Context) error {
		var pods corev1.PodList
		if err := n.admin.List(ctx, &pods, client.InNamespace(n.ns), client.MatchingLabels{"kubevirt.io": "hotplug-disk"}); err != nil {
			return err
		}
		if len(pods.Items) == 0 {
			return errors.New("there is none")
		}
		attachment = pods.Items[0]
		return nil
	})
	if len(attachment.Spec.Containers) != 1 || len(attachment.Spec.InitContainers) > 0 {
		t.Errorf("the pod has %d containers and %d to begin with, want one and none", len(attachment.Spec.Containers), len(attachment.Spec.InitContainers))
	}
	for _, key := range []string{floatip.AnnotationNAT, floatip.AnnotationAddress} {
		if value, there := attachment.Annotations[key]; there {
			t.Errorf("the pod has %s: %s", key, value)
		}
	}
	if calls := n.calls(n.ns)[before:]; len(calls) > 0 {
		t.Errorf("a volume is plugged: %q were called", calls)
	}
}

// makeReady says of a pod what a kubelet would: it runs on the node.
func (n *tenant) makeReady(pod *corev1.Pod, node *corev1.Node) {
	n.t.Helper()
	binding := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: node.Name}}
	if err := n.admin.SubResource("binding").Create(n.ctx, pod, binding); err != nil {
		n.t.Fatal(err)
	}
	status := corev1.PodStatus{
		Phase:      corev1.PodRunning,
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}
	for _, c := range pod.Spec.Containers {
		status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
		})
	}
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.admin.Status().Patch(n.ctx, pod, client.RawPatch("application/merge-patch+json", patch)); err != nil {
		n.t.Fatal(err)
	}
}

// plug does what KubeVirt's API does for "virtctl addvolume": it adds the disk to the instance.
func (n *tenant) plug(vm, claim string) {
	n.t.Helper()
	kubevirt := n.as(n.t, "system:serviceaccount:kubevirt:kubevirt-apiserver", "system:masters")
	volume := kubevirtv1.Volume{Name: claim, VolumeSource: kubevirtv1.VolumeSource{
		PersistentVolumeClaim: &kubevirtv1.PersistentVolumeClaimVolumeSource{
			PersistentVolumeClaimVolumeSource: corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}, Hotpluggable: true,
		},
	}}
	disk := kubevirtv1.Disk{Name: claim, DiskDevice: kubevirtv1.DiskDevice{Disk: &kubevirtv1.DiskTarget{Bus: kubevirtv1.DiskBusSCSI}}}
	patch, err := json.Marshal([]map[string]any{
		// What virt-handler says where there is no SELinux; the controller waits for it.
		{"op": "add", "path": "/status/selinuxContext", "value": "none"},
		{"op": "add", "path": "/spec/volumes/-", "value": volume},
		{"op": "add", "path": "/spec/domain/devices/disks/-", "value": disk},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	vmi := n.instance(vm)
	if err := kubevirt.Patch(n.ctx, vmi, client.RawPatch("application/json-patch+json", patch)); err != nil {
		n.t.Fatal(err)
	}
}
