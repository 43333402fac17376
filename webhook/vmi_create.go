package webhook

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"floatip.io/floatip"
	"floatip.io/floatip/webhook/kubevirt"
)

// vmiView is what the hook reads of a VirtualMachineInstance.
type vmiView struct {
	Metadata metadata         `json:"metadata"`
	Spec     kubevirt.VMISpec `json:"spec"`
}

// createVMI answers VirtualMachineInstance CREATE, mutating. Only now the network binding is known: KubeVirt fills in
// defaults, preferences and the cluster's choice. The VMI gets what the ledger holds for its VM, and nothing that
// somebody wrote into the VM's template: KubeVirt copies a VMI's annotations to its pods.
func (h *Hooks) createVMI(ctx context.Context, req admission.Request) Decision {
	var vmi vmiView
	if err := decode(req.Object.Raw, &vmi); err != nil {
		return refuse(malformed(req, err), err)
	}
	if optsOut(vmi.Metadata.Annotations) {
		return uncarried(vmi, Decision{Action: OptedOut, Reason: "the VM's template opted out"})
	}
	vm, ok := kubevirt.VMOf(vmi.Metadata.Name, vmi.Metadata.OwnerReferences)
	if !ok {
		return uncarried(vmi, Decision{Action: Ignored, Reason: "the VMI has no VM of its name"})
	}
	owner := floatip.Owner{Namespace: req.Namespace, Name: vm.Name, UID: string(vm.UID)}
	lines, err := h.heldBy(ctx, req, owner)
	if err != nil {
		return refuse(internal(req), err)
	}
	have := holdingOf(lines)
	if len(have.addresses) == 0 {
		return uncarried(vmi, Decision{Action: Ignored, Reason: "the VM has no address"})
	}
	delivery, obstacle, err := carriage(ctx, h.Cluster, owner, have, vmi.Spec, h.Options.ClusterNetworks)
	if err != nil {
		return unread(req, err)
	}
	if obstacle != nil {
		return h.unnatable(ctx, req, vmi, owner, have, *obstacle)
	}
	if delivery.InPod() {
		if err := volumeNames(vmi.Spec); err != nil {
			return refuse(invalid(req, field.ErrorList{err}), nil)
		}
	}
	d := have.decision(Carried, "address of VM "+owner.String())
	d.Patches = setAnnotations(vmi.Metadata, map[string]string{
		floatip.AnnotationAddress: have.address(), floatip.AnnotationNAT: "", floatip.AnnotationClaim: "",
	})
	h.giveHints(ctx, &d, vmi.Spec, hinted{owner: owner, address: have.address(), dryRun: isDryRun(req)})
	return d
}

// uncarried removes floatip's keys from a VMI that carries no address.
func uncarried(vmi vmiView, d Decision) Decision {
	d.Patches = setAnnotations(vmi.Metadata, map[string]string{
		floatip.AnnotationAddress: "", floatip.AnnotationNAT: "", floatip.AnnotationClaim: "",
	})
	return d
}

// unnatable serves a VM that holds an address which its instance cannot carry. The VM starts without it, and its owner is
// told by an event, and later by the FloatingIP's condition Carried, unless the VM says that it needs the address.
func (h *Hooks) unnatable(ctx context.Context, req admission.Request, vmi vmiView, owner floatip.Owner, have holding,
	obstacle Obstacle,
) Decision {
	text := fmt.Sprintf("%s cannot be translated to VM %s: %v", have.address(), owner, obstacle.Cause)
	required, err := h.requires(ctx, owner)
	if err != nil {
		return refuse(internal(req), err)
	}
	if required {
		path := field.NewPath("spec", "domain", "devices", "interfaces")
		return refuse(invalid(req, field.ErrorList{field.Forbidden(path, text)}), nil)
	}
	if !isDryRun(req) {
		h.Events.Warn(owner, obstacle.Event, text)
	}
	d := have.decision(Unnatable, obstacle.Cause.Error())
	d.Warnings = []string{"floatip: " + text}
	return uncarried(vmi, d)
}

// requires reads the VM's wish: its own annotations never reach the VMI.
func (h *Hooks) requires(ctx context.Context, owner floatip.Owner) (bool, error) {
	annotations, err := h.annotationsOf(ctx, owner)
	return annotations[floatip.AnnotationRequire] == "true", err
}

// errVolumeName refuses a VMI whose volumes would meet the sidecar's in the pod.
var errVolumeName = errors.New("the name is taken by a volume of floatip's sidecar")

func volumeNames(spec kubevirt.VMISpec) *field.Error {
	for i, v := range spec.Volumes {
		if v.Name == floatip.SocketVolume || v.Name == floatip.NATVolume {
			return field.Invalid(field.NewPath("spec", "volumes").Index(i).Child("name"), v.Name, errVolumeName.Error())
		}
	}
	return nil
}
