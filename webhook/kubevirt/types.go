package kubevirt

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// GroupVersion is the group and version of KubeVirt's objects.
var GroupVersion = schema.GroupVersion{Group: "kubevirt.io", Version: "v1"}

// Kinds of KubeVirt's objects.
const (
	KindVM  = "VirtualMachine"
	KindVMI = "VirtualMachineInstance"
)

// AddToScheme makes the views of this package known to a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &VirtualMachineInstance{}, &VirtualMachineInstanceList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// VirtualMachineInstance is the view of a VMI.
//
// +kubebuilder:object:root=true
type VirtualMachineInstance struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   VMISpec   `json:"spec"`
	Status VMIStatus `json:"status,omitempty"`
}

// VirtualMachineInstanceList is a list of views.
//
// +kubebuilder:object:root=true
type VirtualMachineInstanceList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []VirtualMachineInstance `json:"items"`
}

// VMISpec is the view of a VMI's spec.
type VMISpec struct {
	Domain   Domain    `json:"domain"`
	Networks []Network `json:"networks,omitempty"`
	Volumes  []Volume  `json:"volumes,omitempty"`
}

// VMIStatus is the view of where the guest runs.
type VMIStatus struct {
	// NodeName is the guest's node. It changes when a migration is done (pkg/virt-handler/migration-target.go).
	NodeName string `json:"nodeName,omitempty"`
	// ActivePods are all pods that KubeVirt made for the instance, ended ones and targets of migrations included: UID to
	// node (pkg/virt-controller/watch/vmi/lifecycle.go, setActivePods).
	ActivePods map[types.UID]string `json:"activePods,omitempty"`
	// Conditions say among other things why KubeVirt could not make a pod.
	Conditions []Condition `json:"conditions,omitempty"`
}

// ConditionSynchronized is False, with the API server's words, while KubeVirt cannot make what an instance needs
// (pkg/controller/conditions.go, CheckFailure).
const ConditionSynchronized = "Synchronized"

// Condition is the view of a condition of a VMI.
type Condition struct {
	Type    string                 `json:"type"`
	Status  metav1.ConditionStatus `json:"status"`
	Message string                 `json:"message,omitempty"`
}

// Domain is the view of the machine.
type Domain struct {
	Chassis *Chassis `json:"chassis,omitempty"`
	Devices Devices  `json:"devices"`
}

// Chassis is the view of the SMBIOS type 3 structure.
type Chassis struct {
	Asset string `json:"asset,omitempty"`
}

// Devices is the view of the machine's devices.
type Devices struct {
	Interfaces []Interface `json:"interfaces,omitempty"`
}

// Interface is the view of one NIC of the guest. Of the ways to connect it only masquerade matters.
type Interface struct {
	Name       string      `json:"name"`
	Masquerade *Masquerade `json:"masquerade,omitempty"`
	// Ports that are forwarded to the guest; empty for all.
	Ports []Port `json:"ports,omitempty"`
	// PortRanges are forwarded too. They came with KubeVirt 1.9, behind its feature gate PortRangesSpec.
	PortRanges []PortRange `json:"portRanges,omitempty"`
}

// Masquerade connects the guest by NAT.
type Masquerade struct{}

// Port is one forwarded port.
type Port struct {
	// Name by which a NetworkPolicy may mean the port.
	Name string `json:"name,omitempty"`
	// Protocol is TCP, which is the default, or UDP.
	Protocol string `json:"protocol,omitempty"`
	Port     int32  `json:"port"`
}

// PortRange is a range of forwarded ports. KubeVirt wants all three fields.
type PortRange struct {
	// Protocol is TCP or UDP.
	Protocol string `json:"protocol"`
	// Start and End are both forwarded.
	Start int32 `json:"start"`
	End   int32 `json:"end"`
}

// Network is the view of one network that an interface of the same name is connected to.
type Network struct {
	Name string      `json:"name"`
	Pod  *PodNetwork `json:"pod,omitempty"`
}

// PodNetwork is the cluster's default network.
type PodNetwork struct {
	// VMNetworkCIDR is the network between pod and guest, 10.0.2.0/24 if empty.
	VMNetworkCIDR string `json:"vmNetworkCIDR,omitempty"`
	// VMIPv6NetworkCIDR is its IPv6 twin, fd10:0:2::/120 if empty.
	VMIPv6NetworkCIDR string `json:"vmIPv6NetworkCIDR,omitempty"`
}

// Volume is the view of a disk's source. KubeVirt gives the pod a volume of the same name.
type Volume struct {
	Name                 string     `json:"name"`
	CloudInitNoCloud     *CloudInit `json:"cloudInitNoCloud,omitempty"`
	CloudInitConfigDrive *CloudInit `json:"cloudInitConfigDrive,omitempty"`
}

// CloudInit is the view of what a guest reads at its first boot. At most one of the fields may be set.
type CloudInit struct {
	UserData          string     `json:"userData,omitempty"`
	UserDataBase64    string     `json:"userDataBase64,omitempty"`
	UserDataSecretRef *SecretRef `json:"secretRef,omitempty"`
}

// SecretRef is there to be counted: no Secret of a user is read.
type SecretRef struct{}
