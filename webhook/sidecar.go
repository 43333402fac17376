package webhook

import (
	"slices"

	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"floatip.io/floatip"
)

// Where the sidecar finds its two volumes.
const (
	SocketPath = "/run/floatip"
	NATPath    = "/etc/floatip"
)

// sidecarBinary is the only file in the sidecar's image.
const sidecarBinary = "/floatip-sidecar"

// sidecarContainer is the native sidecar (KEP-753) that runs beside the guest.
//
//   - User 0: an unprivileged process gets NET_ADMIN into its effective set only by a file capability, which
//     allowPrivilegeEscalation=false switches off. KubeVirt's pods are runAsNonRoot as a whole, so both are overridden
//     here (kubelet security_context_others.go).
//   - Requests equal limits: a pod with dedicated CPUs must stay in the class Guaranteed (virt-controller lifecycle.go),
//     and a namespace with a quota on limits wants them. The CPU limit also bounds the startup probe: an exec with runc
//     costs 15 to 35 ms of CPU inside the container's quota. Measured: 0.15 s with 100m, 0.45 s with 50m, 1.3 s with
//     20m, which is more than the probe's timeout, and with 10m the pod never started.
//   - A startup probe and no readiness probe: virt-controller hands the VM over when the pod runs, and only then KubeVirt
//     makes its NAT table. "ready" must not wait for it.
func sidecarContainer(image string) corev1.Container {
	resources := corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("100m"),
		corev1.ResourceMemory: resource.MustParse("32Mi"),
	}
	always := corev1.ContainerRestartPolicyAlways
	return corev1.Container{
		Name:            floatip.SidecarContainer,
		Image:           image,
		ImagePullPolicy: corev1.PullIfNotPresent,
		Command:         []string{sidecarBinary},
		Env: []corev1.EnvVar{
			podField("POD_NAMESPACE", "metadata.namespace"),
			podField("POD_NAME", "metadata.name"),
			podField("POD_UID", "metadata.uid"),
		},
		RestartPolicy: &always,
		Resources:     corev1.ResourceRequirements{Requests: resources, Limits: resources},
		SecurityContext: &corev1.SecurityContext{
			RunAsUser:                new(int64(0)),
			RunAsNonRoot:             new(false),
			AllowPrivilegeEscalation: new(false),
			ReadOnlyRootFilesystem:   new(true),
			Capabilities: &corev1.Capabilities{
				Drop: []corev1.Capability{"ALL"},
				Add:  []corev1.Capability{"NET_ADMIN"},
			},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		StartupProbe: &corev1.Probe{
			ProbeHandler:     corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{sidecarBinary, "ready"}}},
			PeriodSeconds:    1,
			FailureThreshold: 60,
		},
		VolumeMounts: []corev1.VolumeMount{
			{Name: floatip.SocketVolume, MountPath: SocketPath},
			{Name: floatip.NATVolume, MountPath: NATPath, ReadOnly: true},
		},
	}
}

// podField is how the sidecar, which has no API token, knows its own pod.
func podField(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
}

// sidecarVolumes are the socket to the node agent, and the NAT description as a file that follows the annotation.
func sidecarVolumes() []corev1.Volume {
	size := resource.MustParse("1Mi")
	return []corev1.Volume{{
		Name:         floatip.SocketVolume,
		VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &size}},
	}, {
		Name: floatip.NATVolume,
		VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
			Items: []corev1.DownwardAPIVolumeFile{{
				Path:     floatip.NATFile,
				FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.annotations['" + floatip.AnnotationNAT + "']"},
			}},
		}},
	}}
}

// podView is what the hook reads of a pod.
type podView struct {
	Metadata metadata `json:"metadata"`
	Spec     struct {
		InitContainers []named           `json:"initContainers"`
		Containers     []named           `json:"containers"`
		Volumes        []named           `json:"volumes"`
		NodeSelector   map[string]string `json:"nodeSelector"`
	} `json:"spec"`
}

type named struct {
	Name string `json:"name"`
}

func hasName(list []named, name string) bool {
	return slices.ContainsFunc(list, func(n named) bool { return n.Name == name })
}

// injected reports whether the pod has the sidecar already, as when the hook is called again.
func (p podView) injected() bool { return hasName(p.Spec.InitContainers, floatip.SidecarContainer) }

// injectSidecar returns the operations that put the sidecar first among the init containers, before the image pulls of
// KubeVirt's own, with its volumes. Init containers end in reverse order, so it also outlives the guest's shutdown.
func injectSidecar(pod podView, image string) []jsonpatch.Operation {
	ops := prepend(pod.Spec.InitContainers, sidecarContainer(image))
	volumes := pod.Spec.Volumes
	for _, v := range sidecarVolumes() {
		ops = append(ops, appendVolume(volumes, v))
		volumes = append(volumes, named{v.Name})
	}
	return ops
}

func prepend(have []named, c corev1.Container) []jsonpatch.Operation {
	if len(have) == 0 {
		return []jsonpatch.Operation{jsonpatch.NewOperation("add", "/spec/initContainers", []corev1.Container{c})}
	}
	return []jsonpatch.Operation{jsonpatch.NewOperation("add", "/spec/initContainers/0", c)}
}

func appendVolume(have []named, v corev1.Volume) jsonpatch.Operation {
	if len(have) == 0 {
		return jsonpatch.NewOperation("add", "/spec/volumes", []corev1.Volume{v})
	}
	return jsonpatch.NewOperation("add", "/spec/volumes/-", v)
}

// selectNodes returns the operations that bind the pod to nodes which carry the provider networks of pools. A node
// selector is the affinity that every term of an existing affinity is combined with.
func selectNodes(pod podView, pools []string) []jsonpatch.Operation {
	want := map[string]string{}
	for _, pool := range pools {
		want[floatip.NodeLabelPoolPrefix+pool] = "true"
	}
	if pod.Spec.NodeSelector == nil {
		return []jsonpatch.Operation{jsonpatch.NewOperation("add", "/spec/nodeSelector", want)}
	}
	var ops []jsonpatch.Operation
	for _, key := range sortedKeys(want) {
		if pod.Spec.NodeSelector[key] != want[key] {
			ops = append(ops, jsonpatch.NewOperation("add", pointer("spec", "nodeSelector", key), want[key]))
		}
	}
	return ops
}
