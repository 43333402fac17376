package controller

import (
	"k8s.io/client-go/tools/events"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
)

// ReportingController is the name under which events appear.
const ReportingController = "floatip"

// Reasons of events on VMs.
const (
	// EventAllocated: the VM is stored and holds an address.
	EventAllocated = "FloatingIPAllocated"
	// EventDisputed: two VMs claim one address.
	EventDisputed = "FloatingIPDisputed"
	// EventNotHeld: the VM shows an address that the ledger does not give it.
	EventNotHeld = "FloatingIPNotHeld"
	// EventSuperseded: the ledger has the VM with another address than the cluster shows, as an old copy of the file does.
	EventSuperseded = "FloatingIPSuperseded"
	// EventLost: a command gave the address to another VM.
	EventLost = "FloatingIPLost"
	// EventConflict: a host outside of the cluster, or a node of it, has or claims the address. The note says what becomes of it.
	EventConflict = "FloatingIPConflict"
)

const (
	actionAllocate  = "Allocate"
	actionTranslate = "Translate"
)

// Events writes events on VMs and Namespaces. The recorder makes a series of those that say the same of the same object.
type Events struct {
	Recorder events.EventRecorder
}

// Warn writes a warning about a VM.
func (e Events) Warn(owner floatip.Owner, reason, text string) {
	e.Recorder.Eventf(vmObject(owner), nil, corev1.EventTypeWarning, reason, actionTranslate, "%s", cut(text))
}

// about writes a warning about a FloatingIP.
func (e Events) about(ip *v1alpha1.FloatingIP, reason, text string) {
	e.Recorder.Eventf(ip, nil, corev1.EventTypeWarning, reason, actionTranslate, "%s", cut(text))
}

// WarnNamespace writes a warning about a namespace. The event lies in the namespace itself, where its people look; events
// on a cluster-scoped object would lie in the namespace default.
func (e Events) WarnNamespace(namespace, reason, text string) {
	o := metadataOf(namespaceKind)
	o.Namespace, o.Name = namespace, namespace
	e.Recorder.Eventf(o, nil, corev1.EventTypeWarning, reason, actionAllocate, "%s", cut(text))
}

// allocated tells that a line became Bound.
func (e Events) allocated(line ipam.Allocation) {
	e.Recorder.Eventf(vmObject(line.Owner), nil, corev1.EventTypeNormal, EventAllocated, actionAllocate,
		"floating IP %s of pool %s", line.Address, line.Pool)
}

func vmObject(owner floatip.Owner) *metav1.PartialObjectMetadata {
	o := metadataOf(vmKind)
	o.Namespace, o.Name, o.UID = owner.Namespace, owner.Name, types.UID(owner.UID)
	return o
}
