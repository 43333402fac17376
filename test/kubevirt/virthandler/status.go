package virthandler

import (
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"

	corev1 "k8s.io/api/core/v1"
	v1 "kubevirt.io/api/core/v1"

	"kubevirt.io/kubevirt/pkg/controller"
	"kubevirt.io/kubevirt/pkg/network/vmispec"
	"kubevirt.io/kubevirt/pkg/virt-launcher/virtwrap/api"
)

// describe brings the status of an owned instance up to date (vm.go, updateVMIStatus).
func (h *Handler) describe(vmi *v1.VirtualMachineInstance, domain *api.Domain, syncErr error) error {
	before := vmi.Status.DeepCopy()
	vmi.Status.SelinuxContext = "none" // as on a machine without SELinux
	if domain != nil {
		if err := h.netStat.UpdateStatus(vmi, domain); err != nil {
			return err
		}
		vmi.Status.Machine = &v1.Machine{Type: domain.Spec.OS.Type.Machine}
		describeMemory(vmi, domain)
	}
	vmi.Status.Phase = phase(vmi, domain)
	if critical(syncErr) {
		vmi.Status.Phase = v1.Failed
	}
	describeMigratability(vmi)
	controller.NewVirtualMachineInstanceConditionManager().CheckFailure(vmi, syncErr, "Synchronizing with the Domain failed.")
	controller.SetVMIPhaseTransitionTimestamp(before, &vmi.Status)
	return nil
}

func describeMemory(vmi *v1.VirtualMachineInstance, domain *api.Domain) {
	if domain.Spec.CurrentMemory == nil {
		return
	}
	if vmi.Status.Memory == nil {
		vmi.Status.Memory = &v1.MemoryStatus{}
	}
	vmi.Status.Memory.GuestCurrent = resource.NewQuantity(int64(domain.Spec.CurrentMemory.Value), resource.BinarySI)
}

// describeMigratability judges by the network alone: the rig's guests have no disks.
func describeMigratability(vmi *v1.VirtualMachineInstance) {
	condition := v1.VirtualMachineInstanceCondition{Type: v1.VirtualMachineInstanceIsMigratable, Status: corev1.ConditionTrue}
	if err := vmispec.VerifyVMIMigratable(vmi, nil); err != nil {
		condition.Status = corev1.ConditionFalse
		condition.Reason, condition.Message = v1.VirtualMachineInstanceReasonInterfaceNotMigratable, err.Error()
	}
	vmi.Status.MigrationMethod = v1.LiveMigration
	manager := controller.NewVirtualMachineInstanceConditionManager()
	if current := manager.GetCondition(vmi, condition.Type); current != nil && equality.Semantic.DeepEqual(*current, condition) {
		return
	}
	manager.RemoveCondition(vmi, condition.Type)
	vmi.Status.Conditions = append(vmi.Status.Conditions, condition)
}

// tellPhase makes the events of a change of phase (vm.go, recordPhaseChangeEvent).
func (h *Handler) tellPhase(vmi *v1.VirtualMachineInstance) {
	switch vmi.Status.Phase {
	case v1.Running:
		h.recorder.Event(vmi, corev1.EventTypeNormal, v1.Started.String(), "VirtualMachineInstance started.")
	case v1.Succeeded:
		h.recorder.Event(vmi, corev1.EventTypeNormal, v1.Stopped.String(), "The VirtualMachineInstance was shut down.")
	case v1.Failed:
		h.recorder.Event(vmi, corev1.EventTypeWarning, v1.Stopped.String(), "The VirtualMachineInstance crashed.")
	}
}
