package webhook

import (
	"encoding/json"
	"fmt"
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

// tokenPath is where the API server mounts the token of the pod's service account into each container that has nothing
// there (k8s.io/kubernetes plugin/pkg/admission/serviceaccount, DefaultAPITokenMountPath), also into one that a webhook has
// just added. The pods of VMs with a service account's disk, or with Istio, have one (AutomountServiceAccountToken in
// KubeVirt's pkg/virt-controller/services/template.go). The sidecar has no use for it, so something else is there.
const tokenPath = "/var/run/secrets/kubernetes.io/serviceaccount"

// sidecarContainer is the native sidecar (KEP-753) that runs beside the guest.
//
//   - User 0: an unprivileged process gets NET_ADMIN into its effective set only by a file capability, which
//     allowPrivilegeEscalation=false switches off. KubeVirt's pods are runAsNonRoot as a whole, so both are overridden
//     here (kubelet security_context_others.go).
//   - No probe: kubelet would run one as a process inside the container's CPU quota, 15 to 35 ms of CPU each, and a
//     sidecar that cannot work would keep the guest from starting. That the rules stand is told to the node agent over
//     the socket and is the condition NATReady (docs/decisions/no-startup-probe.md).
func sidecarContainer(image string, resources corev1.ResourceRequirements) corev1.Container {
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
		Resources:     resources,
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
		VolumeMounts: []corev1.VolumeMount{
			{Name: floatip.SocketVolume, MountPath: SocketPath},
			{Name: floatip.NATVolume, MountPath: NATPath, ReadOnly: true},
			{Name: floatip.NATVolume, MountPath: tokenPath, ReadOnly: true},
		},
	}
}

// sidecarResources are what the sidecar asks for. A pod of the class Guaranteed stays one, since virt-controller refuses
// a VM with dedicated CPUs in any other (lifecycle.go): requests equal limits. Elsewhere a node full of VMs must not
// lose whole CPUs to idle sidecars: 5m as KubeVirt's own guest-console-log asks for (serialconsolelog.go). A limit
// always, since a namespace with a quota on limits wants it; it leaves room to install the rules within one period of
// the CPU controller (measured: with 10m, rules took seconds).
func sidecarResources(guaranteed bool) corev1.ResourceRequirements {
	limits := corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("100m"),
		corev1.ResourceMemory: resource.MustParse("32Mi"),
	}
	if guaranteed {
		return corev1.ResourceRequirements{Requests: limits, Limits: limits}
	}
	return corev1.ResourceRequirements{Limits: limits, Requests: corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("5m"),
		corev1.ResourceMemory: resource.MustParse("16Mi"),
	}}
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
	Metadata podMetadata `json:"metadata"`
	Spec     struct {
		InitContainers []containerView   `json:"initContainers"`
		Containers     []containerView   `json:"containers"`
		Volumes        []named           `json:"volumes"`
		NodeSelector   map[string]string `json:"nodeSelector"`
	} `json:"spec"`
}

type podMetadata struct {
	metadata
	Labels map[string]string `json:"labels"`
}

type named struct {
	Name string `json:"name"`
}

func hasName(list []named, name string) bool {
	return slices.ContainsFunc(list, func(n named) bool { return n.Name == name })
}

// containerView is what the hook reads of a container.
type containerView struct {
	Name      string                      `json:"name"`
	Resources corev1.ResourceRequirements `json:"resources"`
}

// guaranteed reports whether the pod is of the class Guaranteed: every container has limits on CPU and memory, and
// requests that equal them. A request that is left out is the limit.
func (p podView) guaranteed() bool {
	return !slices.ContainsFunc(slices.Concat(p.Spec.InitContainers, p.Spec.Containers), func(c containerView) bool {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			limit, limited := c.Resources.Limits[name]
			request, requested := c.Resources.Requests[name]
			if !limited || requested && request.Cmp(limit) != 0 {
				return true
			}
		}
		return false
	})
}

// injected reports whether the pod has the sidecar already, as when the hook is called again.
func (p podView) injected() bool {
	return slices.ContainsFunc(p.Spec.InitContainers, func(c containerView) bool { return c.Name == floatip.SidecarContainer })
}

// rendered is what is injected, as JSON: it is the same for all pods but for the class Guaranteed.
type rendered struct {
	guaranteed, other json.RawMessage // containers
	volumes           []renderedVolume
}

type renderedVolume struct {
	name string
	json json.RawMessage
}

func render(image string) *rendered {
	r := &rendered{
		guaranteed: mustEncode(sidecarContainer(image, sidecarResources(true))),
		other:      mustEncode(sidecarContainer(image, sidecarResources(false))),
	}
	for _, v := range sidecarVolumes() {
		r.volumes = append(r.volumes, renderedVolume{v.Name, mustEncode(v)})
	}
	return r
}

func mustEncode(object any) json.RawMessage {
	raw, err := json.Marshal(object)
	if err != nil {
		panic(fmt.Sprintf("webhook: encode %T: %v", object, err)) // objects of Kubernetes made of literals
	}
	return raw
}

// inject returns the operations that put the sidecar first among the init containers, before the image pulls of KubeVirt's
// own, with its volumes. Init containers end in reverse order, so it also outlives the guest's shutdown.
func (r *rendered) inject(pod podView) []jsonpatch.Operation {
	container := r.other
	if pod.guaranteed() {
		container = r.guaranteed
	}
	ops := make([]jsonpatch.Operation, 0, 1+len(r.volumes))
	ops = append(ops, insert("/spec/initContainers", "0", len(pod.Spec.InitContainers) == 0, container))
	for i, v := range r.volumes {
		ops = append(ops, insert("/spec/volumes", "-", i == 0 && len(pod.Spec.Volumes) == 0, v.json))
	}
	return ops
}

// insert adds an element to the list at path, or makes the list with it: "add" needs an existing parent (RFC 6902 section
// 4.1).
func insert(path, at string, first bool, element json.RawMessage) jsonpatch.Operation {
	if first {
		return jsonpatch.Operation{Operation: "add", Path: path, Value: json.RawMessage("[" + string(element) + "]")}
	}
	return jsonpatch.Operation{Operation: "add", Path: path + "/" + at, Value: element}
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
