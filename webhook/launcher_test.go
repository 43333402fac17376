package webhook

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"floatip.io/floatip"
)

// aLauncher is a virt-launcher pod with all that KubeVirt may put into one: dedicated CPUs, a serial console log (native
// sidecar), a container disk, a hook sidecar, a hotplugged volume's folder, a mesh.
const aLauncher = `{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"virt-launcher-a-","namespace":"vms",
	"labels":{"kubevirt.io":"virt-launcher","kubevirt.io/created-by":"uid-vmi","vm.kubevirt.io/name":"a"},
	"annotations":{"floatip.io/address":"192.168.100.50","kubevirt.io/domain":"a"},"ownerReferences":[` + vmiOwner + `]},
	"spec":{"restartPolicy":"Never","terminationGracePeriodSeconds":60,"automountServiceAccountToken":false,"enableServiceLinks":false,
	"readinessGates":[{"conditionType":"kubevirt.io/virtual-machine-unpaused"}],"hostname":"a",
	"securityContext":{"runAsUser":107,"runAsGroup":107,"runAsNonRoot":true,"fsGroup":107},
	"nodeSelector":{"kubevirt.io/schedulable":"true","cpumanager":"true"},
	"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"zone","operator":"In","values":["a"]}]}]}}},
	"initContainers":[
		{"name":"container-disk-binary","image":"i","resources":` + equalResources + `},
		{"name":"guest-console-log","image":"i","restartPolicy":"Always","resources":` + equalResources + `}],
	"containers":[
		{"name":"compute","image":"i","resources":` + equalResources + `,"volumeMounts":[{"name":"sockets","mountPath":"/var/run/kubevirt/sockets"}]},
		{"name":"volumecontainerdisk","image":"i","resources":` + equalResources + `},
		{"name":"hook-sidecar-0","image":"i","resources":` + equalResources + `},
		{"name":"istio-proxy","image":"i","resources":` + equalResources + `}],
	"volumes":[{"name":"sockets","emptyDir":{}},{"name":"hotplug-disks","emptyDir":{}},{"name":"containerdisk","emptyDir":{}}]}}`

const equalResources = `{"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"1","memory":"1Gi"}}`

// What KubeVirt, kubelet and scheduler read from a launcher pod is as they want it after the injection, one row for each
// reader; the files are KubeVirt 1.8.4's. Hotplug and temporary pods are TestCreatePodIgnores, the exit on SIGTERM is shown
// with the process itself (cmd/floatip-sidecar).
func TestLauncherReaders(t *testing.T) {
	w := worldWithVM(t, nil)
	w.addVMI(masquerade)
	var before, after corev1.Pod
	response := w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: aLauncher})
	for text, into := range map[string]*corev1.Pod{aLauncher: &before, apply(t, aLauncher, response): &after} {
		if err := json.Unmarshal([]byte(text), into); err != nil {
			t.Fatal(err)
		}
	}
	if len(after.Spec.InitContainers) != 3 {
		t.Fatalf("init containers: %v", after.Spec.InitContainers)
	}
	sidecar := after.Spec.InitContainers[0]
	for _, tc := range []struct {
		reader string
		ok     bool
	}{
		{"hand-over, migration target, orphan check, end of a VM: containerStatuses has nobody new (watch/vmi/lifecycle.go)",
			cmp.Equal(before.Spec.Containers, after.Spec.Containers)},
		{"completion: a native sidecar ends after the guest, and lets the pod end",
			sidecar.RestartPolicy != nil && *sidecar.RestartPolicy == corev1.ContainerRestartPolicyAlways && after.Spec.RestartPolicy == corev1.RestartPolicyNever},
		{"hand-over: the pod's phase Running waits for no probe", sidecar.StartupProbe == nil && sidecar.ReadinessProbe == nil && sidecar.LivenessProbe == nil},
		{"compute by name and place (services/template.go)", after.Spec.Containers[0].Name == "compute"},
		{"CPU pinning: the pod stays Guaranteed (lifecycle.go)", equalRequests(sidecar.Resources)},
		{"quotas: limits and requests are set", len(sidecar.Resources.Limits) == 2 && len(sidecar.Resources.Requests) == 2},
		{"container disks: no name that begins with volume (container-disk.go)", !strings.HasPrefix(sidecar.Name, "volume")},
		{"hook sidecars, console log, virtiofs, mesh: their names are theirs", !slices.ContainsFunc(
			[]string{"hook-sidecar-", "guest-console-log", "virtiofs-", "istio-proxy"}, func(p string) bool { return strings.HasPrefix(sidecar.Name, p) })},
		{"virt-handler finds the launcher by its socket: not mounted here (cmd-client/client.go)",
			!slices.ContainsFunc(sidecar.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "sockets" })},
		{"hotplug: the pod's volumes are as they were, and two with floatip's names (controller.go GetHotplugVolumes)",
			cmp.Equal(before.Spec.Volumes, after.Spec.Volumes[:3]) && len(after.Spec.Volumes) == 5 &&
				after.Spec.Volumes[3].Name == floatip.SocketVolume && after.Spec.Volumes[4].Name == floatip.NATVolume},
		{"order: first of the init containers, the others behind as they were", cmp.Equal(before.Spec.InitContainers, after.Spec.InitContainers[1:])},
		{"kubelet: user 0 in a pod that is runAsNonRoot", *sidecar.SecurityContext.RunAsUser == 0 && !*sidecar.SecurityContext.RunAsNonRoot &&
			cmp.Equal(before.Spec.SecurityContext, after.Spec.SecurityContext)},
		{"capabilities: NET_ADMIN alone, nothing gained later", slices.Equal(sidecar.SecurityContext.Capabilities.Add, []corev1.Capability{"NET_ADMIN"}) &&
			slices.Equal(sidecar.SecurityContext.Capabilities.Drop, []corev1.Capability{"ALL"}) &&
			!*sidecar.SecurityContext.AllowPrivilegeEscalation && sidecar.SecurityContext.Privileged == nil && *sidecar.SecurityContext.ReadOnlyRootFilesystem},
		{"no API token, and no room for one", !*after.Spec.AutomountServiceAccountToken && len(sidecar.VolumeMounts) == 3 &&
			slices.ContainsFunc(sidecar.VolumeMounts, func(m corev1.VolumeMount) bool {
				return m.Name == floatip.NATVolume && m.MountPath == "/var/run/secrets/kubernetes.io/serviceaccount"
			})},
		{"scheduler: nodes of the pool's network, of those that KubeVirt chose", after.Spec.NodeSelector["pool.floatip.io/provider"] == "true" &&
			after.Spec.NodeSelector["kubevirt.io/schedulable"] == "true" && after.Spec.NodeSelector["cpumanager"] == "true" &&
			cmp.Equal(before.Spec.Affinity, after.Spec.Affinity)},
		{"eviction, disruption budgets, services: labels, owner and gates are as they were", cmp.Equal(before.Labels, after.Labels) &&
			cmp.Equal(before.OwnerReferences, after.OwnerReferences) && cmp.Equal(before.Spec.ReadinessGates, after.Spec.ReadinessGates)},
		{"shutdown: the grace period is the guest's", *after.Spec.TerminationGracePeriodSeconds == 60},
	} {
		if !tc.ok {
			t.Errorf("%s: not so in %+v", tc.reader, after.Spec)
		}
	}
}

func equalRequests(r corev1.ResourceRequirements) bool {
	for name, limit := range r.Limits {
		if request := r.Requests[name]; request.Cmp(limit) != 0 {
			return false
		}
	}
	return len(r.Limits) == 2
}
