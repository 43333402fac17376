package kubeovn

import (
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"floatip.io/floatip/ipam/v1alpha1"
)

// seen is all that a decision depends on.
type seen struct {
	// name of the FloatingIP.
	name string
	// held is the FloatingIP, nil when it is gone, going, or of a pool with another delivery.
	held *v1alpha1.FloatingIP
	pool v1alpha1.KubeOVN
	// running: the VM has a guest. ip is the name of its IP object, "" while Kube-OVN has none.
	running bool
	ip      string
	// eip and fip are Kube-OVN's objects, nil if there are none.
	eip, fip *unstructured.Unstructured
}

// step is what is done next. At most one of the fields create and remove is set.
type step struct {
	create, remove *unstructured.Unstructured
	// nat is the condition NATReady, with its reason.
	nat             bool
	reason, message string
}

// decide says what is next. It decides everything and touches nothing.
func decide(s seen) step {
	for _, o := range []*unstructured.Unstructured{s.fip, s.eip} {
		if o != nil && !ours(o, s.name) {
			return step{reason: "ForeignObject", message: fmt.Sprintf("there is a %s %s that floatip has not made: it is left "+
				"alone. Delete it, or exclude the address from the pool", o.GetKind(), o.GetName())}
		}
	}
	switch {
	case s.fip != nil && s.fip.GetDeletionTimestamp() != nil:
		return step{reason: "Detaching", message: "Kube-OVN is taking the address from where it led"}
	case s.fip != nil && !s.fits():
		return step{remove: s.fip, reason: "Detaching", message: "the address leads elsewhere, or nowhere any more"}
	case s.eip != nil && s.eip.GetDeletionTimestamp() != nil:
		return step{reason: "Releasing", message: "Kube-OVN is giving the address back"}
	case s.eip != nil && !s.keeps():
		// An OvnFip that could still need it is gone by now.
		return step{remove: s.eip, reason: "Releasing", message: "the address is not held any more"}
	case s.held == nil:
		return step{}
	case s.eip == nil:
		return step{create: newEip(s.held, s.pool), reason: "WaitingForKubeOVN", message: "Kube-OVN is asked for the address"}
	case !ready(s.eip):
		return step{reason: "WaitingForKubeOVN", message: "Kube-OVN has not made OvnEip " + s.eip.GetName() + " ready"}
	case !s.running:
		return step{reason: "NotRunning", message: "no pod of the VirtualMachine runs with this address"}
	case s.ip == "":
		return step{reason: "WaitingForKubeOVN", message: "Kube-OVN has no IP object for the VirtualMachine"}
	case s.fip == nil:
		return step{create: newFip(s.held, s.pool, s.ip), reason: "WaitingForKubeOVN", message: "Kube-OVN is asked to translate"}
	case !ready(s.fip):
		return step{reason: "WaitingForKubeOVN", message: "Kube-OVN has not made OvnFip " + s.fip.GetName() + " ready"}
	}
	return step{nat: true, reason: "Translated", message: "Kube-OVN translates to IP object " + s.ip}
}

// fits says whether the OvnFip is the one that shall be. While Kube-OVN's IP object is being made anew it stays.
func (s seen) fits() bool {
	return s.held != nil && s.running && s.fip.GetAnnotations()[annotationVM] == string(s.held.Spec.VM.UID) &&
		spec(s.fip, "ovnEip") == objectName(s.name) && (s.ip == "" || spec(s.fip, "ipName") == s.ip) &&
		spec(s.fip, "type") == string(s.pool.TypeOrDefault())
}

// keeps says whether the OvnEip is the one that shall be.
func (s seen) keeps() bool {
	if s.held == nil {
		return false
	}
	want := newEip(s.held, s.pool)
	for _, field := range []string{"externalSubnet", "v4Ip", "v6Ip"} {
		// Kube-OVN fills in the family that was not asked for.
		if text := spec(want, field); text != "" && text != spec(s.eip, field) {
			return false
		}
	}
	return true
}
