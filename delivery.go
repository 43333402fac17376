package floatip

import "fmt"

// Delivery says how packets get from the provider network to a VM's pod and back. A pool has one (FloatingIPPool
// spec.delivery), and all that depends on it asks the questions below, never for a name.
type Delivery string

const (
	// DeliveryLeg gives each pod a private veth pair to the node, past the CNI. It works with every CNI.
	DeliveryLeg Delivery = "Leg"
	// DeliveryRouted sends packets for the floating address itself through the CNI's own link to the pod, in which they
	// are translated.
	DeliveryRouted Delivery = "Routed"
	// DeliveryNodeNAT translates on the node, to and from the pod's address. The pod stays as KubeVirt made it.
	DeliveryNodeNAT Delivery = "NodeNAT"
	// DeliveryKubeOVN leaves translation and announcement to Kube-OVN.
	DeliveryKubeOVN Delivery = "KubeOVN"
)

// Deliveries are all that there are.
func Deliveries() []Delivery {
	return []Delivery{DeliveryLeg, DeliveryRouted, DeliveryNodeNAT, DeliveryKubeOVN}
}

// OrDefault returns d, or DeliveryLeg where nothing is said.
func (d Delivery) OrDefault() Delivery {
	if d == "" {
		return DeliveryLeg
	}
	return d
}

// Validate refuses what is no Delivery. The empty one stands for DeliveryLeg.
func (d Delivery) Validate() error {
	for _, known := range Deliveries() {
		if d.OrDefault() == known {
			return nil
		}
	}
	return fmt.Errorf("%q is none of %v", string(d), Deliveries())
}

// InPod reports whether addresses are translated in the pod, by the sidecar. Otherwise the pod gets none.
func (d Delivery) InPod() bool {
	return d.OrDefault() == DeliveryLeg || d == DeliveryRouted
}

// OnNode reports whether the node agent answers for the addresses, so that only nodes with a NIC on the provider
// network can run the VM.
func (d Delivery) OnNode() bool { return d.InPod() || d == DeliveryNodeNAT }

// PastCNI reports whether packets of the floating address reach the pod past the CNI, or under an address that the CNI
// does not know, so that its NetworkPolicies cannot be relied on and floatip translates them for its own firewall.
func (d Delivery) PastCNI() bool { return d.InPod() }
