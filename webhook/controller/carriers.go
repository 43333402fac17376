package controller

import (
	"context"
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/webhook"
	"floatip.io/floatip/webhook/kubevirt"
)

// carriers is what of the cluster may still send packets from a VM's addresses: the VM itself, its instance, and pods
// that translate them. A VM that was deleted with --cascade=orphan leaves the other two behind, running.
type carriers struct {
	vm  *metav1.PartialObjectMetadata // nil if there is none
	vmi *kubevirt.VirtualMachineInstance
	// pods by the UID of the VM whose addresses they translate.
	pods map[string]int
	// launcher is the pod of the instance that the guest runs in, nil if none is known yet.
	launcher *metav1.PartialObjectMetadata
}

// carry says what still carries the VM with that UID; an empty text says nothing does.
func (c carriers) carry(uid string) string {
	switch {
	case c.vm != nil && string(c.vm.UID) == uid:
		return webhook.CarrierVM
	case c.vmi != nil && ownerUID(c.vmi) == uid:
		return "VMI"
	case c.pods[uid] > 0:
		return "pod"
	}
	return ""
}

func ownerUID(vmi *kubevirt.VirtualMachineInstance) string {
	owner, _ := kubevirt.OwnerOf(vmi.OwnerReferences, kubevirt.KindVM)
	return string(owner.UID)
}

// carriersOf reads from reader all that has the VM's name. A VMI has the name of its VM.
func carriersOf(ctx context.Context, reader client.Reader, key types.NamespacedName) (carriers, error) {
	found := carriers{pods: map[string]int{}}
	vm, vmi := metadataOf(vmKind), &kubevirt.VirtualMachineInstance{}
	switch err := reader.Get(ctx, key, vm); {
	case err == nil:
		found.vm = vm
	case client.IgnoreNotFound(err) != nil:
		return carriers{}, fmt.Errorf("read VM %s: %w", key, err)
	}
	switch err := reader.Get(ctx, key, vmi); {
	case err == nil:
		found.vmi = vmi
	case client.IgnoreNotFound(err) != nil:
		return carriers{}, fmt.Errorf("read VMI %s: %w", key, err)
	}
	pods, err := launchers(ctx, reader, key.Namespace)
	if err != nil {
		return carriers{}, err
	}
	for _, pod := range pods {
		if uid := translates(pod.Annotations); uid != "" {
			found.pods[uid]++
		}
	}
	if found.vmi != nil {
		found.launcher = launcherOf(found.vmi, pods)
	}
	return found, nil
}

// launcherOf returns the pod that the guest of an instance runs in, or will if it has not been scheduled: of a migration's
// two pods the one on the guest's node, and of several there, as after a migration to and fro, the youngest.
func launcherOf(vmi *kubevirt.VirtualMachineInstance, pods []metav1.PartialObjectMetadata) (running *metav1.PartialObjectMetadata) {
	_, marked := vmi.Annotations[kubevirt.AnnotationTemporary]
	for i := range pods {
		pod := &pods[i]
		owner, _ := kubevirt.OwnerOf(pod.OwnerReferences, kubevirt.KindVMI)
		_, temporary := pod.Annotations[kubevirt.AnnotationTemporary]
		switch node := vmi.Status.NodeName; {
		case owner.UID != vmi.UID, temporary && !marked:
		case node != "" && vmi.Status.ActivePods[pod.UID] != node:
		case running == nil || running.CreationTimestamp.Before(&pod.CreationTimestamp):
			running = pod
		}
	}
	return running
}

// translates returns the UID of the VM whose addresses a pod translates. The annotation is floatip's: an admission
// policy keeps others from writing it. Of a description that a later release wrote, before somebody went back to this
// one, the owner at least is read: its pod carries the address all the same.
func translates(annotations map[string]string) string {
	var nat struct {
		Owner floatip.Owner `json:"owner"`
	}
	if err := json.Unmarshal([]byte(annotations[floatip.AnnotationNAT]), &nat); err != nil {
		return ""
	}
	return nat.Owner.UID
}
