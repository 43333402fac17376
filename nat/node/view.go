package node

import (
	"net/netip"

	"floatip.io/floatip"
)

// View is what the API server says, as far as this node needs it. It is a value: nobody changes it after it was made.
type View struct {
	// Pods are those of this node that carry a description of floating addresses.
	Pods []Pod
	// Addresses are the FloatingIP objects.
	Addresses map[netip.Addr]Held
	// Pools are the FloatingIPPool objects that apply to this node, by name.
	Pools map[string]Pool
	// Machines are the VirtualMachineInstances that own Pods, by UID. Those that do not exist are absent.
	Machines map[string]Machine
	// Unknown are UIDs of VirtualMachineInstances that could not be read. What hangs on them stays as it is.
	Unknown map[string]bool
	// Peers are the nodes that have an agent, this one included.
	Peers map[string]floatip.NodeAgent
}

// Pod is a pod of this node.
type Pod struct {
	UID, Namespace, Name string
	// Machine is the controlling VirtualMachineInstance. The zero Reference means that something else, or nothing,
	// controls the pod.
	Machine Reference
	// NAT is the annotation floatip.io/nat as it stands there: anyone who may edit pods may have written it.
	NAT string
	// Final: the guest does not run any more and never will again.
	Final bool
	// IPv4 and IPv6 are the pod's own addresses, as the kubelet reported them; invalid before that.
	IPv4, IPv6 netip.Addr
	// Created orders two pods of one machine, in nanoseconds.
	Created int64
	// MigrationTarget: the pod was made to receive a live migration.
	MigrationTarget bool
	// GuestArrived: the guest runs in this target, says virt-handler.
	GuestArrived bool
}

// Reference names an object.
type Reference struct{ Name, UID string }

// Machine is a VirtualMachineInstance.
type Machine struct {
	Namespace, Name, UID string
	// VM is the UID of the controlling VirtualMachine, "" where none controls it.
	VM string
	// Node is where the guest runs, "" before it was handed to a node.
	Node string
	// Migration is the latest live migration, the zero Migration where there was none.
	Migration Migration
	// MACs are the Ethernet addresses of the guest, as KubeVirt has seen them, in the form of net.HardwareAddr.String.
	// Empty: it did not say yet.
	MACs []string
	// Running: KubeVirt says that the guest runs.
	Running bool
	// Pods are the UIDs of the pods that KubeVirt made for the machine. Empty: it did not say yet.
	Pods []string
}

// Migration is a live migration of a machine, from the moment at which KubeVirt has a pod for it.
type Migration struct {
	SourceNode, TargetNode string
	// TargetPod is the name of the pod that was made to receive the guest.
	TargetPod string
	// Arrived: the guest runs on the target, says virt-handler there.
	Arrived bool
	// Failed: it was given up, and the guest is where it was.
	Failed bool
}

// leaves reports whether the guest is on its way from the node self to another one.
func (m Migration) leaves(self string) bool {
	return m.SourceNode == self && m.TargetNode != "" && m.TargetNode != self && !m.Failed
}

// Held is a FloatingIP object.
type Held struct {
	Pool  string
	Owner floatip.Owner
	// Released: the address is in quarantine, or the object is on its way out.
	Released bool
	// Node and Pod are those of the object's status.
	Node, Pod string
	// Unproven: no node could say yet that no other host has the address.
	Unproven bool
}

// Pool is a FloatingIPPool object whose node selector matches this node.
type Pool struct {
	Name      string
	Networks  []netip.Prefix
	Gateways  []netip.Addr
	Interface string
	// Sample is one address of the pool: it tells which NIC leads to the pool while no address is in use.
	Sample []netip.Addr
	// Unasked addresses are used without asking the LAN whether another host has them.
	Unasked bool
	// Delivery is how packets get to and from the pods. The empty one stands for floatip.DeliveryLeg.
	Delivery floatip.Delivery
}
