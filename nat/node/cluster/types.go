package cluster

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"floatip.io/floatip/ipam/v1alpha1"
)

// What KubeVirt writes (staging/src/kubevirt.io/api/core/v1/types.go).
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
	// computeContainer is the one that holds the guest.
	computeContainer = "compute"
)

var machineVersion = schema.GroupVersion{Group: kubevirtGroup, Version: "v1"}

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
	out.Items = make([]machine, len(l.Items))
	for i := range l.Items {
		out.Items[i] = *l.Items[i].DeepCopyObject().(*machine)
	}
	return &out
}

// newScheme knows what the agent reads, and nothing else.
func newScheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	s.AddKnownTypes(corev1.SchemeGroupVersion, &corev1.Pod{}, &corev1.PodList{}, &corev1.Node{}, &corev1.NodeList{})
	metav1.AddToGroupVersion(s, corev1.SchemeGroupVersion)
	s.AddKnownTypeWithName(machineVersion.WithKind(machineKind), &machine{})
	s.AddKnownTypeWithName(machineVersion.WithKind(machineKind+"List"), &machineList{})
	metav1.AddToGroupVersion(s, machineVersion)
	return s, v1alpha1.AddToScheme(s)
}
