package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"floatip.io/floatip"
)

// KubeOVN is what the delivery KubeOVN needs to know.
type KubeOVN struct {
	// ExternalSubnet is the name of Kube-OVN's Subnet of the provider network.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	ExternalSubnet string `json:"externalSubnet"`
	// Type says where Kube-OVN translates: on the VM's node, or on a gateway node. Defaults to distributed.
	//
	// +optional
	// +kubebuilder:default=distributed
	Type KubeOVNType `json:"type,omitempty"`
}

// KubeOVNType is the type of an OvnFip.
//
// +kubebuilder:validation:Enum=distributed;centralized
type KubeOVNType string

// TypeOrDefault returns the type, distributed where nothing is said.
func (k KubeOVN) TypeOrDefault() KubeOVNType {
	if k.Type == "" {
		return "distributed"
	}
	return k.Type
}

// FirewallDefault says who may open connections to an address whose VM has no allow list.
//
// +kubebuilder:validation:Enum=Allow;Deny
type FirewallDefault string

const (
	// FirewallAllow admits everybody whom the NetworkPolicies of the namespace admit.
	FirewallAllow FirewallDefault = "Allow"
	// FirewallDeny admits nobody: a VM is reached after its annotation floatip.io/allow says by whom.
	FirewallDeny FirewallDefault = "Deny"
)

// FloatingIPPool is a set of provider addresses that floatip may hand out.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=fippool,categories=floatip
// +kubebuilder:printcolumn:name="Addresses",type=string,JSONPath=`.spec.addresses`
// +kubebuilder:printcolumn:name="Auto",type=boolean,JSONPath=`.spec.autoAssign`
// +kubebuilder:printcolumn:name="Delivery",type=string,JSONPath=`.spec.delivery`
// +kubebuilder:printcolumn:name="Used",type=string,JSONPath=`.status.usage`
// +kubebuilder:printcolumn:name="Resting",type=string,JSONPath=`.status.resting`
// +kubebuilder:printcolumn:name="Capacity4",type=string,JSONPath=`.status.ipv4.capacity`,priority=1
// +kubebuilder:printcolumn:name="Pending4",type=integer,JSONPath=`.status.ipv4.pending`,priority=1
// +kubebuilder:printcolumn:name="Capacity6",type=string,JSONPath=`.status.ipv6.capacity`,priority=1
// +kubebuilder:printcolumn:name="Pending6",type=integer,JSONPath=`.status.ipv6.pending`,priority=1
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Overlapping",type=string,JSONPath=`.status.conditions[?(@.type=="Overlapping")].status`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type FloatingIPPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   FloatingIPPoolSpec   `json:"spec"`
	Status FloatingIPPoolStatus `json:"status,omitempty"`
}

// ConflictDetection says what the nodes do to find out whether another host has an address.
type ConflictDetection string

const (
	// ConflictDetectionProbe asks before the first use (RFC 5227, RFC 4862).
	ConflictDetectionProbe ConflictDetection = "Probe"
	// ConflictDetectionOff uses an address without asking.
	ConflictDetectionOff ConflictDetection = "Off"
)

// FloatingIPPoolSpec is what the administrator wants.
type FloatingIPPoolSpec struct {
	// Addresses lists what may be handed out: networks ("192.168.100.0/24") and ranges
	// ("192.168.100.50-192.168.100.99"), IPv4 and IPv6. The first and the last address of an IPv4 network and the
	// first of an IPv6 network are never handed out.
	//
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	Addresses []string `json:"addresses"`

	// Exclude lists networks, ranges and single addresses of Addresses that are not handed out.
	//
	// +optional
	// +kubebuilder:validation:MaxItems=1024
	Exclude []string `json:"exclude,omitempty"`

	// Networks are the provider networks that the addresses belong to, one per family: "192.168.100.0/24". When it is
	// left out for a family, the node agent takes the network of its provider interface.
	//
	// +optional
	// +kubebuilder:validation:MaxItems=2
	Networks []string `json:"networks,omitempty"`

	// Gateways are the routers of the provider network, one per family. They are never handed out.
	//
	// +optional
	// +kubebuilder:validation:MaxItems=2
	Gateways []string `json:"gateways,omitempty"`

	// AutoAssign says whether a VM that names no pool may get an address from this one.
	//
	// +optional
	// +kubebuilder:default=true
	AutoAssign *bool `json:"autoAssign,omitempty"`

	// Priority orders the pools that a VM may use; the higher is tried first, equal ones by name.
	//
	// +optional
	Priority int32 `json:"priority,omitempty"`

	// NamespaceSelector limits the namespaces whose VMs may use the pool. Without it every opted-in namespace may.
	//
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`

	// PerNamespaceLimit is the largest number of addresses of this pool that one namespace may hold. 0 is no limit.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	PerNamespaceLimit int32 `json:"perNamespaceLimit,omitempty"`

	// Quarantine is how long a released address rests before it is handed out again, as Go writes durations: 90s, 1h30m.
	// Defaults to 5m.
	//
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^(0|([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+)$`
	Quarantine *metav1.Duration `json:"quarantine,omitempty"`

	// Drain stops the pool from handing out addresses. Addresses that are held stay.
	//
	// +optional
	Drain bool `json:"drain,omitempty"`

	// Interface is the name of the provider NIC on the nodes. When it is empty, the node agent takes the interface
	// that has an address in, or a route to, the provider network.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=15
	Interface string `json:"interface,omitempty"`

	// NodeSelector limits the nodes that carry the provider network.
	//
	// +optional
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`

	// Delivery says how packets reach the pod. Defaults to Leg. It cannot be changed while addresses of the pool are held.
	//
	// +optional
	// +kubebuilder:default=Leg
	// +kubebuilder:validation:Enum=Leg;Routed;NodeNAT;KubeOVN
	Delivery floatip.Delivery `json:"delivery,omitempty"`

	// KubeOVN says where Kube-OVN has the provider network. Needed with the delivery KubeOVN, and of no use without.
	//
	// +optional
	KubeOVN *KubeOVN `json:"kubeOVN,omitempty"`

	// ConflictDetection says whether the nodes ask the provider network, before an address is used, if another host has it.
	// Defaults to Probe. Off is for networks in which a router answers for every address (proxy ARP); another host that
	// claims an address in use is noticed all the same.
	//
	// +optional
	// +kubebuilder:default=Probe
	// +kubebuilder:validation:Enum=Probe;Off
	ConflictDetection ConflictDetection `json:"conflictDetection,omitempty"`

	// Firewall is who may open connections to the addresses of VMs without the annotation floatip.io/allow. Defaults to
	// Allow. A change takes effect on running VMs.
	//
	// +optional
	// +kubebuilder:default=Allow
	Firewall FirewallDefault `json:"firewall,omitempty"`
}

// FloatingIPPoolStatus is what floatip sees.
type FloatingIPPoolStatus struct {
	// ObservedGeneration is the generation of the spec that this status describes.
	//
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// IPv4 counts the IPv4 addresses of the pool.
	//
	// +optional
	IPv4 *AddressCount `json:"ipv4,omitempty"`
	// IPv6 counts the IPv6 addresses of the pool.
	//
	// +optional
	IPv6 *AddressCount `json:"ipv6,omitempty"`
	// Usage is how many addresses are used of how many, for people and kubectl's columns; IPv4 and IPv6 say it exactly:
	// "12/50", "3/2^64", and for a pool of both families, IPv4 first, "12/50,3/2^64".
	//
	// +optional
	Usage string `json:"usage,omitempty"`
	// Resting is how many addresses rest after their release, in the same way: "2", or "2,0".
	//
	// +optional
	Resting string `json:"resting,omitempty"`
	// Conditions: Ready, Overlapping, Exhausted, NodeConflict, DeliveryReady.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// AddressCount counts the addresses of one family.
type AddressCount struct {
	// Capacity is how many addresses the pool can hand out, in decimal digits: an IPv6 network has more than an int64
	// can count.
	Capacity string `json:"capacity"`
	// Used is how many are held, pending ones included.
	Used int64 `json:"used"`
	// Pending is how many are promised to a VM that was not yet seen.
	Pending int64 `json:"pending"`
	// Quarantined is how many were released and rest.
	Quarantined int64 `json:"quarantined"`
}

// FloatingIPPoolList is a list of pools.
//
// +kubebuilder:object:root=true
type FloatingIPPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []FloatingIPPool `json:"items"`
}
