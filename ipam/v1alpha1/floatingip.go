package v1alpha1

import (
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Phase is the state of a floating address in one word.
//
// +kubebuilder:validation:Enum=Pending;Bound;Ready;Quarantined
type Phase string

const (
	// PhasePending: promised to a VM that was not yet seen in the API server.
	PhasePending Phase = "Pending"
	// PhaseBound: held by a VM. Packets do not flow, for instance because the VM is stopped.
	PhaseBound Phase = "Bound"
	// PhaseReady: held by a VM that runs, translated in its pod and announced on the provider network.
	PhaseReady Phase = "Ready"
	// PhaseQuarantined: released, not yet handed out again.
	PhaseQuarantined Phase = "Quarantined"
)

// Types of conditions of a FloatingIP.
const (
	// ConditionAllocated: the ledger has the address with the VM that spec names. Set by the webhook.
	ConditionAllocated = "Allocated"
	// ConditionCarried: the VM's instance carries the address. When it is False the VM runs without it, as it does with a
	// network binding that cannot be translated; the reason is one of those below. Without an instance there is no such
	// condition. Set by the webhook, and no part of ConditionReady.
	ConditionCarried = "Carried"
	// ConditionNATReady: the rules stand in the pod. Set by the node agent from what the sidecar reports.
	ConditionNATReady = "NATReady"
	// ConditionLegReady: links, routes and rules on the node stand.
	ConditionLegReady = "LegReady"
	// ConditionAnnounced: the node answers for the address on the provider network.
	ConditionAnnounced = "Announced"
	// ConditionGuestUp: the guest has taken its fixed address, as the pod's kernel heard by ARP or neighbour discovery.
	ConditionGuestUp = "GuestUp"
	// ConditionConflictFree: no other host on the provider network has the address. When it is False with the reason
	// AddressTaken the address is not used; with AddressContested it is in use and defended. The message names the other
	// host's Ethernet address and the NIC.
	ConditionConflictFree = "ConflictFree"
	// ConditionReady: all of the above; an address that is contested is still Ready.
	ConditionReady = "Ready"
	// ConditionFirewallReady: the description of the pod's firewall says all that NetworkPolicies, allow list and pool
	// say. When it is False, something of them could not be translated and admits nothing; the message says what. Set by
	// the webhook, and no part of ConditionReady.
	ConditionFirewallReady = "FirewallReady"
	// ConditionDisputed: the ledger and the cluster disagree on who holds the address. Set by the webhook.
	ConditionDisputed = "Disputed"
)

// ReasonWaitsForNode of ConditionAllocated: the VM is gone, but a node has not said that it stopped to answer for the
// address.
const ReasonWaitsForNode = "WaitsForNode"

// Reasons of ConditionCarried. All but the first go with False, and are undone by a restart of the VM once the cause is
// gone; the message says where a migration does as well.
const (
	// ReasonCarried: the instance was created with the address.
	ReasonCarried = "Carried"
	// ReasonUnsupportedBinding: the instance has no masquerade interface on the pod network, or one that cannot be
	// translated. The message says which.
	ReasonUnsupportedBinding = "UnsupportedBinding"
	// ReasonForbiddenSidecar: the Pod Security level of the namespace, or the API server's own, forbids the sidecar.
	ReasonForbiddenSidecar = "ForbiddenSidecar"
	// ReasonNotOptedIn: the namespace is not opted in any more.
	ReasonNotOptedIn = "NotOptedIn"
	// ReasonOptedOut: the VM's template says floatip.io/enabled: "false".
	ReasonOptedOut = "OptedOut"
	// ReasonStartedWithout: nothing is in the way by now.
	ReasonStartedWithout = "StartedWithout"
)

// FloatingIP is one address that is held. Its name is the address (see Name). Only floatip writes it; the data path
// trusts it and nothing else.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=fip,categories=floatip
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.spec.address`
// +kubebuilder:printcolumn:name="Pool",type=string,JSONPath=`.spec.pool`
// +kubebuilder:printcolumn:name="Namespace",type=string,JSONPath=`.spec.vm.namespace`
// +kubebuilder:printcolumn:name="VM",type=string,JSONPath=`.spec.vm.name`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.status.node`
// +kubebuilder:printcolumn:name="Pod",type=string,JSONPath=`.status.pod`,priority=1
// +kubebuilder:printcolumn:name="Conflict-Free",type=string,JSONPath=`.status.conditions[?(@.type=="ConflictFree")].reason`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type FloatingIP struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   FloatingIPSpec   `json:"spec"`
	Status FloatingIPStatus `json:"status,omitempty"`
}

// FloatingIPSpec says who holds the address. It mirrors the ledger.
type FloatingIPSpec struct {
	// Address in its canonical form: "192.168.100.50", "2001:db8::50".
	Address string `json:"address"`
	// Pool that the address was taken from.
	Pool string `json:"pool"`
	// VM that holds the address.
	VM VMReference `json:"vm"`
}

// VMReference names a VirtualMachine. The UID decides.
type VMReference struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid"`
}

// FloatingIPStatus is what is true of the address now.
type FloatingIPStatus struct {
	// +optional
	Phase Phase `json:"phase,omitempty"`
	// Node that answers for the address on the provider network.
	//
	// +optional
	Node string `json:"node,omitempty"`
	// Pod that carries the VM, in the VM's namespace.
	//
	// +optional
	Pod string `json:"pod,omitempty"`
	// LastMove is the live migration that brought the VM to its node. It is absent where the VM was started there.
	//
	// +optional
	LastMove *Move `json:"lastMove,omitempty"`
	// Conditions: Allocated, Carried, ConflictFree, NATReady, LegReady, Announced, GuestUp, Ready, FirewallReady, Disputed.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Move is a live migration as the node agents saw it.
type Move struct {
	// From and To are nodes.
	From string `json:"from"`
	To   string `json:"to"`
	// Time at which the VM was first heard on its new node.
	Time metav1.Time `json:"time"`
	// Trigger is what told of the arrival: FirstFrame, the VM itself was heard, or KubeVirt, its controllers said so.
	Trigger string `json:"trigger"`
	// StallMilliseconds is the time between the last that the old node heard of the VM and the first that the new one did:
	// what the VM stood still, and for how long it had nothing to say besides. It is known to 10 ms, and absent where the
	// old node's agent did not tell.
	//
	// +optional
	StallMilliseconds *int64 `json:"stallMilliseconds,omitempty"`
	// Connections is how many tracked connections were handed over to the new pod.
	//
	// +optional
	Connections int32 `json:"connections,omitempty"`
}

// FloatingIPList is a list of addresses.
//
// +kubebuilder:object:root=true
type FloatingIPList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []FloatingIP `json:"items"`
}

// Name returns the name of the FloatingIP object for address: an IPv4 address as it is, an IPv6 address in its long
// form with dashes ("2001-0db8-0000-0000-0000-0000-0000-0050"), since a name may not have colons.
func Name(address netip.Addr) string {
	if address.Is4() {
		return address.String()
	}
	return strings.ReplaceAll(address.StringExpanded(), ":", "-")
}
