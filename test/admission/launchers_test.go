package admission

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook"
)

// launchers: the pods that KubeVirt's controller renders get the sidecar, and stay what the API server, a quota and the
// Pod Security level want of them.
func launchers(t *testing.T, w *world) {
	for name, test := range map[string]func(*testing.T, *world){
		"Burstable": burstable, "Guaranteed": guaranteed, "Quota": underQuota, "PodSecurity": podSecurity,
		"PodSecurityByDefault": podSecurityByDefault,
		"ServiceAccount":       withServiceAccount,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, w)
		})
	}
}

// small is a guest with limits.
func small(vm *kubevirtv1.VirtualMachine) {
	limits := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("64M")}
	vm.Spec.Template.Spec.Domain.Resources = kubevirtv1.ResourceRequirements{Limits: limits, Requests: limits.DeepCopy()}
}

// injected returns the launcher of a VM, and wants its first init container to be the sidecar, on nodes of the pool.
func (n *tenant) injected(vm string) corev1.Pod {
	n.t.Helper()
	pod := n.awaitPod(n.ns, vm)
	if first := pod.Spec.InitContainers; len(first) == 0 || first[0].Name != floatip.SidecarContainer {
		n.t.Errorf("the pod of %s has no sidecar in front: %+v", vm, first)
	}
	if pod.Spec.Containers[0].Name != "compute" {
		n.t.Errorf("the first container of %s is %s", vm, pod.Spec.Containers[0].Name)
	}
	if pod.Spec.NodeSelector[floatip.NodeLabelPoolPrefix+n.ns] != "true" {
		n.t.Errorf("the pod of %s may go to nodes without the pool's network: %v", vm, pod.Spec.NodeSelector)
	}
	return pod
}

func burstable(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	n.runs("plain", nil, func(*kubevirtv1.VirtualMachine) {})
	if pod := n.injected("plain"); pod.Status.QOSClass != corev1.PodQOSBurstable {
		t.Errorf("the pod is %s, want it to ask for no more than it needs", pod.Status.QOSClass)
	}
}

// A VM with CPUs of its own needs a pod of the class Guaranteed: KubeVirt's controller gives it up otherwise.
func guaranteed(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	n.runs("pinned", nil, func(vm *kubevirtv1.VirtualMachine) {
		vm.Spec.Template.Spec.Domain.CPU = &kubevirtv1.CPU{Cores: 1, DedicatedCPUPlacement: true}
		memory := resource.MustParse("64Mi")
		vm.Spec.Template.Spec.Domain.Memory = &kubevirtv1.Memory{Guest: &memory}
		vm.Spec.Template.Spec.Domain.Resources = kubevirtv1.ResourceRequirements{}
	})
	if pod := n.injected("pinned"); pod.Status.QOSClass != corev1.PodQOSGuaranteed {
		t.Errorf("the pod is %s: %+v", pod.Status.QOSClass, pod.Spec.InitContainers[0].Resources)
	}
}

// A quota on limits refuses pods with a container that has none.
func underQuota(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	hard := corev1.ResourceList{}
	for _, name := range []corev1.ResourceName{
		corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory,
	} {
		hard[name] = resource.MustParse("64Gi")
	}
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: n.ns, Name: "limits"}, Spec: corev1.ResourceQuotaSpec{Hard: hard}}
	if err := n.admin.Create(n.ctx, quota); err != nil {
		t.Fatal(err)
	}
	n.wait("the quota to count", func(ctx context.Context) error {
		probe := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: n.ns, Name: "probe"},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "without-limits", Image: "example/probe"}}},
		}
		if err := n.admin.Create(ctx, probe, client.DryRunAll); err == nil || !strings.Contains(err.Error(), "must specify limits.cpu") {
			return fmt.Errorf("a pod without limits: %v", err)
		}
		return nil
	})
	n.runs("limited", nil, small)
	n.injected("limited")
}

// A VM with a service account's disk has a pod with that account's token, which the API server mounts into every container
// that has nothing there yet. The sidecar gets none.
func withServiceAccount(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	const tokens = "/var/run/secrets/kubernetes.io/serviceaccount"
	n.runs("account", nil, func(vm *kubevirtv1.VirtualMachine) {
		spec := &vm.Spec.Template.Spec
		spec.Volumes = append(spec.Volumes, kubevirtv1.Volume{Name: "account", VolumeSource: kubevirtv1.VolumeSource{
			ServiceAccount: &kubevirtv1.ServiceAccountVolumeSource{ServiceAccountName: "default"},
		}})
		spec.Domain.Devices.Disks = append(spec.Domain.Devices.Disks, kubevirtv1.Disk{Name: "account"})
	})
	pod := n.injected("account")
	token := func(c corev1.Container) bool {
		return slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
			return m.MountPath == tokens && strings.HasPrefix(m.Name, "kube-api-access")
		})
	}
	if !token(pod.Spec.Containers[0]) {
		t.Errorf("compute has no token, so this shows nothing: %+v", pod.Spec.Containers[0].VolumeMounts)
	}
	if token(pod.Spec.InitContainers[0]) {
		t.Errorf("the sidecar has the token of the VM's service account: %+v", pod.Spec.InitContainers[0].VolumeMounts)
	}
}

// podSecurity: where the level forbids the sidecar, people are told when they create the VM, and it starts without its
// address rather than not at all; once the level is privileged, the next start carries it.
func podSecurity(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	const level = levelLabel
	n.mustKubectl("", "label", "namespace", n.ns, "--overwrite", level+"=baseline")
	const told = "enforces the Pod Security level baseline, which forbids the sidecar's capability NET_ADMIN"
	n.wait("the level to count", func(context.Context) error {
		if out, err := n.kubectl(n.manifest("probe", nil), "create", "--dry-run=server", "-f", "-"); err != nil || !strings.Contains(out, "Warning: floatip: the namespace "+told) {
			return fmt.Errorf("%s (%v)", out, err)
		}
		return nil
	})
	address := n.runs("vm", nil, func(*kubevirtv1.VirtualMachine) {})
	pod := n.awaitPod(n.ns, "vm")
	for _, c := range pod.Spec.InitContainers {
		if c.Name == floatip.SidecarContainer {
			t.Errorf("the level %s let the sidecar through", level)
		}
	}
	if pod.Annotations[floatip.AnnotationNAT] != "" {
		t.Errorf("a pod without the sidecar is described: %v", pod.Annotations)
	}
	n.awaitEvent("VirtualMachine", "vm", webhook.EventForbidden, told)
	n.awaitCarried(address, v1alpha1.ReasonForbiddenSidecar, told)
	n.mustKubectl("", "label", "namespace", n.ns, "--overwrite", level+"=privileged")
	n.awaitCarried(address, v1alpha1.ReasonStartedWithout, "restart the VM")
	n.restartWith("vm", func(*kubevirtv1.VirtualMachine) {})
	n.awaitCarried(address, v1alpha1.ReasonCarried, "")
	n.injected("vm")
}

// levelLabel is the Pod Security level of a namespace; without it the API server of these tests enforces baseline.
const levelLabel = "pod-security.kubernetes.io/enforce"

// podSecurityByDefault: a level that no label shows is learned when the API server refuses the launcher. KubeVirt makes it
// again, and it starts without the address rather than not at all; whoever requires the address waits.
func podSecurityByDefault(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	n.mustKubectl("", "label", "namespace", n.ns, levelLabel+"-")
	const told = "enforces the Pod Security level baseline in namespaces without a label"
	address := n.runs("vm", nil, func(*kubevirtv1.VirtualMachine) {})
	pod := n.awaitPod(n.ns, "vm")
	if len(pod.Spec.InitContainers) > 0 && pod.Spec.InitContainers[0].Name == floatip.SidecarContainer || pod.Annotations[floatip.AnnotationNAT] != "" {
		t.Errorf("the API server let the sidecar through: %v", pod.Annotations)
	}
	n.awaitKubeVirt("vm", "violates PodSecurity") // else this shows nothing
	n.awaitEvent("VirtualMachine", "vm", webhook.EventForbidden, told)
	n.awaitCarried(address, v1alpha1.ReasonForbiddenSidecar, told)
	n.wait("people to be told when they create another VM", func(context.Context) error {
		if out, err := n.kubectl(n.manifest("probe", nil), "create", "--dry-run=server", "-f", "-"); err != nil || !strings.Contains(out, told) {
			return fmt.Errorf("%s (%v)", out, err)
		}
		return nil
	})
	n.runs("strict", map[string]string{floatip.AnnotationRequire: "true"}, func(*kubevirtv1.VirtualMachine) {})
	n.awaitKubeVirt("strict", "violates PodSecurity")
	n.mustKubectl("", "label", "namespace", n.ns, levelLabel+"=privileged")
	n.injected("strict")
	n.awaitCarried(address, v1alpha1.ReasonStartedWithout, "restart the VM")
	n.restartWith("vm", func(*kubevirtv1.VirtualMachine) {})
	n.awaitCarried(address, v1alpha1.ReasonCarried, "")
	n.injected("vm")
}

// hints: KubeVirt's own webhooks take the instances whose user data were extended, up to the last byte that they allow,
// and user data that are left alone come to the instance byte for byte. The VM's own never change.
func hints(t *testing.T, w *world) {
	n := w.tenant(t, 10, noRest)
	raw, err := os.ReadFile(filepath.Join(w.root, "test", "testdata", "vm.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	mission := new(kubevirtv1.VirtualMachine)
	if err := yaml.UnmarshalStrict(raw, mission); err != nil {
		t.Fatal(err)
	}
	const hi = "SGkuXG4="
	if got := userDataOf(mission.Spec.Template.Spec.Volumes); got.UserDataBase64 != hi {
		t.Fatalf("vm.yaml has the user data %+v, and this test shows nothing", got)
	}
	mission.Namespace, mission.Spec.Running, mission.Spec.RunStrategy = n.ns, nil, new(kubevirtv1.RunStrategyAlways)
	if err := n.admin.Create(n.ctx, mission); err != nil {
		t.Fatal(err)
	}
	if got := userDataOf(n.instance(mission.Name).Spec.Volumes); *got != (kubevirtv1.CloudInitNoCloudSource{UserDataBase64: hi}) {
		t.Errorf("the user data of vm.yaml came to the instance as %+v", got)
	}
	n.awaitEvent("VirtualMachine", mission.Name, webhook.EventHintSkipped, "they are in no format of cloud-init")

	// The name of each is its size, with the file if that fits, or as it is.
	for name, size := range map[string]int{"size-2047": 2047, "size-2048": 2048, "size-2049": 2049, "alone-2048": 2048} {
		address := n.address(9)
		entry := fmt.Sprintf("write_files:\n- path: %q\n  content: \"%s\\n\"\n", webhook.HintFile, address)
		if strings.HasPrefix(name, "alone") {
			entry = ""
		}
		const head = "#cloud-config\n#"
		text := head + strings.Repeat("x", size-len(head)-len("\n"+entry)) + "\n"
		source := &kubevirtv1.CloudInitNoCloudSource{UserDataBase64: base64.StdEncoding.EncodeToString([]byte(text))}
		vm := n.newVM(name, request(address))
		vm.Spec.RunStrategy = new(kubevirtv1.RunStrategyAlways)
		vm.Spec.Template.Spec.Volumes = append(vm.Spec.Template.Spec.Volumes,
			kubevirtv1.Volume{Name: "seed", VolumeSource: kubevirtv1.VolumeSource{CloudInitNoCloud: source}})
		vm.Spec.Template.Spec.Domain.Devices.Disks = append(vm.Spec.Template.Spec.Domain.Devices.Disks, kubevirtv1.Disk{Name: "seed"})
		if err := n.admin.Create(n.ctx, vm); err != nil {
			t.Fatal(err)
		}
		want := text
		if len(text+entry) <= 2048 {
			want += entry
		}
		got, err := base64.StdEncoding.DecodeString(userDataOf(n.instance(name).Spec.Volumes).UserDataBase64)
		if err != nil || string(got) != want {
			t.Errorf("%s: the instance has %d bytes of user data (%v), want %d", name, len(got), err, len(want))
		}
		if own := userDataOf(n.get(name).Spec.Template.Spec.Volumes); *own != *source {
			t.Errorf("%s: the VM's own user data have changed", name)
		}
		n.remove(vm)
		n.free(address)
	}
}

// instance waits for the instance of a VM.
func (n *tenant) instance(name string) *kubevirtv1.VirtualMachineInstance {
	n.t.Helper()
	vmi := new(kubevirtv1.VirtualMachineInstance)
	n.wait("the instance of "+name, func(ctx context.Context) error {
		return n.admin.Get(ctx, client.ObjectKey{Namespace: n.ns, Name: name}, vmi)
	})
	return vmi
}

// userDataOf returns the first cloud-init volume.
func userDataOf(volumes []kubevirtv1.Volume) *kubevirtv1.CloudInitNoCloudSource {
	for _, v := range volumes {
		if v.CloudInitNoCloud != nil {
			return v.CloudInitNoCloud
		}
	}
	return new(kubevirtv1.CloudInitNoCloudSource)
}
