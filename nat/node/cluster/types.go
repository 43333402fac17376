package cluster

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"floatip.io/floatip/ipam/v1alpha1"
)

// What KubeVirt writes (staging/src/kubevirt.io/api/core/v1/types.go), where nothing else is said.
const (
	kubevirtGroup = "kubevirt.io"
	machineKind   = "VirtualMachineInstance"
	vmKind        = "VirtualMachine"

	// nodeLabel of a VirtualMachineInstance is the node that its guest runs on.
	nodeLabel = "kubevirt.io/nodeName"
	// targetLabel of a VirtualMachineInstance is the node that its guest migrates to, while it does.
	targetLabel = "kubevirt.io/migrationTargetNodeName"
	// migrationLabel marks a pod that was made to receive a migration. It stays for the pod's whole life.
	migrationLabel = "kubevirt.io/migrationJobUID"
	// arrivedAnnotation is put on the receiving pod when the guest runs in it (pkg/virt-controller/watch/migration).
	arrivedAnnotation = "kubevirt.io/migration-target-ready-timestamp"
	// runningPhase of a VirtualMachineInstance says that its guest runs.
	runningPhase = "Running"
	// podSucceeded and podFailed are the phases of a Pod whose containers have all ended (k8s.io/api/core/v1).
	podSucceeded, podFailed = "Succeeded", "Failed"
	// computeContainer is the one that holds the guest.
	computeContainer = "compute"
)

var (
	machineVersion = schema.GroupVersion{Group: kubevirtGroup, Version: "v1"}
	coreVersion    = schema.GroupVersion{Version: "v1"}
)

// pod is a core/v1 Pod, as far as it is needed: all other fields are dropped when it is decoded. Kubernetes' own type of it
// brings the whole of the group into the program, 3 MB, one of which stood in the memory of every node.
type pod struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Status            podStatus `json:"status,omitempty"`
}

type podStatus struct {
	Phase             string            `json:"phase,omitempty"`
	PodIPs            []podIP           `json:"podIPs,omitempty"`
	ContainerStatuses []containerStatus `json:"containerStatuses,omitempty"`
}

type podIP struct {
	IP string `json:"ip,omitempty"`
}

type containerStatus struct {
	Name  string         `json:"name"`
	State containerState `json:"state,omitempty"`
}

type containerState struct {
	// Terminated is not nil when the container has ended.
	Terminated *struct{} `json:"terminated,omitempty"`
}

type podList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []pod `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (p *pod) DeepCopyObject() runtime.Object {
	out := *p
	p.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Status.PodIPs = slices.Clone(p.Status.PodIPs)
	out.Status.ContainerStatuses = slices.Clone(p.Status.ContainerStatuses)
	return &out
}

// DeepCopyObject implements runtime.Object.
func (l *podList) DeepCopyObject() runtime.Object {
	out := *l
	out.Items = copies(l.Items)
	return &out
}

// machine is a kubevirt.io/v1 VirtualMachineInstance, as far as it is needed: all other fields are dropped when it is
// decoded.
type machine struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Status            machineStatus `json:"status,omitempty"`
}

type machineStatus struct {
	Phase          string          `json:"phase,omitempty"`
	MigrationState *migrationState `json:"migrationState,omitempty"`
	// ActivePods are the pods that KubeVirt made for the machine: UID to node.
	ActivePods map[types.UID]string `json:"activePods,omitempty"`
	Interfaces []guestInterface     `json:"interfaces,omitempty"`
}

type migrationState struct {
	SourceNode string `json:"sourceNode,omitempty"`
	TargetNode string `json:"targetNode,omitempty"`
	TargetPod  string `json:"targetPod,omitempty"`
	Failed     bool   `json:"failed,omitempty"`
	// DomainReady is set by virt-handler of the target when the guest runs there.
	DomainReady *metav1.Time `json:"targetNodeDomainReadyTimestamp,omitempty"`
}

type guestInterface struct {
	MAC string `json:"mac,omitempty"`
}

type machineList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []machine `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (m *machine) DeepCopyObject() runtime.Object {
	out := *m
	m.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	if m.Status.MigrationState != nil {
		state := *m.Status.MigrationState
		out.Status.MigrationState = &state
	}
	out.Status.Interfaces = slices.Clone(m.Status.Interfaces)
	out.Status.ActivePods = make(map[types.UID]string, len(m.Status.ActivePods))
	for uid, node := range m.Status.ActivePods {
		out.Status.ActivePods[uid] = node
	}
	return &out
}

// DeepCopyObject implements runtime.Object.
func (l *machineList) DeepCopyObject() runtime.Object {
	out := *l
	out.Items = copies(l.Items)
	return &out
}

// copies copies the items of a list.
func copies[T any, P interface {
	*T
	runtime.Object
}](items []T) []T {
	out := make([]T, len(items))
	for i := range items {
		out[i] = *P(&items[i]).DeepCopyObject().(P)
	}
	return out
}

// newScheme knows what the agent reads, and nothing else.
func newScheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	s.AddKnownTypeWithName(coreVersion.WithKind("Pod"), &pod{})
	s.AddKnownTypeWithName(coreVersion.WithKind("PodList"), &podList{})
	metav1.AddToGroupVersion(s, coreVersion)
	addMachines(s)
	return s, v1alpha1.AddToScheme(s)
}

func addMachines(s *runtime.Scheme) {
	s.AddKnownTypeWithName(machineVersion.WithKind(machineKind), &machine{})
	s.AddKnownTypeWithName(machineVersion.WithKind(machineKind+"List"), &machineList{})
	metav1.AddToGroupVersion(s, machineVersion)
}
