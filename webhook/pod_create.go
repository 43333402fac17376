package webhook

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"gomodules.xyz/jsonpatch/v2"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"floatip.io/floatip"
	"floatip.io/floatip/webhook/kubevirt"
)

// createPod answers Pod CREATE, mutating: the pod that carries the guest of a VM with a floating address gets the
// sidecar, the NAT description, and nodes that carry the provider network. Migration targets are such pods too.
//
// Labels and annotations prove nothing, since anybody who may create pods can write them. What counts: KubeVirt's
// controller makes the pod; it belongs to a VMI that exists, with that UID; the VMI belongs to the VM that holds the
// address in the ledger.
func (h *Hooks) createPod(ctx context.Context, req admission.Request) Decision {
	var pod podView
	if err := decode(req.Object.Raw, &pod); err != nil {
		return refuse(malformed(req, err), err)
	}
	if reason := h.notALauncher(req, pod); reason != "" {
		return plainPod(pod, Decision{Action: Ignored, Reason: reason})
	}
	ref, ok := kubevirt.OwnerOf(pod.Metadata.OwnerReferences, kubevirt.KindVMI)
	if !ok {
		return plainPod(pod, Decision{Action: Ignored, Reason: "the pod has no VMI"})
	}
	vmi, err := h.Cluster.VMI(ctx, req.Namespace, ref.Name, ref.UID)
	if err != nil {
		return unread(req, fmt.Errorf("VMI %s/%s with UID %s of the pod: %w", req.Namespace, ref.Name, ref.UID, err))
	}
	// What an instance carries was decided when it was created, and its floatip.io/address is frozen: an opt-out that is
	// written on an instance that runs does not take the address from the pod that it migrates to.
	if optsOut(vmi.Annotations) && vmi.Annotations[floatip.AnnotationAddress] == "" {
		return plainPod(pod, Decision{Action: OptedOut, Reason: "the VM's template opted out"})
	}
	vm, ok := kubevirt.VMOf(vmi.Name, vmi.OwnerReferences)
	if !ok {
		return plainPod(pod, Decision{Action: Ignored, Reason: "the VMI has no VM of its name"})
	}
	lines, err := h.heldBy(ctx, req, floatip.Owner{Namespace: req.Namespace, Name: vm.Name, UID: string(vm.UID)})
	if err != nil {
		return refuse(internal(req), err)
	}
	if len(lines) == 0 {
		return plainPod(pod, Decision{Action: Ignored, Reason: "the VM has no address"})
	}
	have := holdingOf(lines)
	delivery, err := DeliveryOf(ctx, h.Cluster, have.pools)
	if errors.Is(err, errDeliveries) {
		return plainPod(pod, have.decision(Unnatable, err.Error()))
	}
	if err != nil {
		return refuse(internal(req), err)
	}
	if delivery.InPod() {
		why, level, err := h.refused(ctx, lines[0].Owner, vmi)
		if err != nil {
			return unread(req, err)
		}
		if why != nil {
			return h.withoutSidecar(req, pod, lines[0].Owner, have.decision(Unnatable, why.Error()), level)
		}
	}
	return h.inject(ctx, req, launch{pod, vmi, lines[0].Owner, have, delivery})
}

// withoutSidecar leaves the pod without what it would be refused for. Of a label the VM's owner was told when the VMI was
// created; a level that only the refusal showed is told now, and noted on the pod for those that it migrates to.
func (h *Hooks) withoutSidecar(req admission.Request, pod podView, owner floatip.Owner, d Decision, level string) Decision {
	if level != "" && !isDryRun(req) {
		h.Events.Warn(owner, EventForbidden, d.Address+" cannot be translated to VM "+owner.String()+": "+d.Reason)
	}
	d.Patches = setAnnotations(pod.Metadata.metadata, map[string]string{
		floatip.AnnotationNAT: "", floatip.AnnotationPodSecurity: level,
	})
	return d
}

// launch is a launcher pod that is being created for a VM that holds addresses.
type launch struct {
	pod      podView
	vmi      *kubevirt.VirtualMachineInstance
	owner    floatip.Owner
	have     holding
	delivery floatip.Delivery
}

// inject returns the decision about a launcher pod: its description, nodes that carry the provider network where one of
// them answers for the address, and the sidecar where the pod translates.
func (h *Hooks) inject(ctx context.Context, req admission.Request, l launch) Decision {
	pod, have, owner := l.pod, l.have, l.owner
	g, err := guestOf(l.vmi.Spec)
	if err != nil {
		// The VM's owner was told when the VMI was created.
		return plainPod(pod, have.decision(Unnatable, err.Error()))
	}
	// What cannot be translated is told by the controller that keeps the firewall up to date, once the pod is stored.
	passes, _, err := FirewallOf(ctx, h.Cluster, Guarded{
		Owner: owner, Delivery: l.delivery, Pools: have.poolOf(), Labels: pod.Metadata.Labels, Spec: l.vmi.Spec,
	})
	if err != nil {
		return refuse(internal(req), fmt.Errorf("firewall of VM %s: %w", owner, err))
	}
	nat, err := podNAT(owner, l.delivery, have.addresses, g, h.Options.ClusterNetworks, passes)
	if err != nil {
		return plainPod(pod, have.decision(Unnatable, err.Error()))
	}
	d := have.decision(Injected, "address of VM "+owner.String())
	d.Patches = setAnnotations(pod.Metadata.metadata, map[string]string{
		floatip.AnnotationNAT: nat, floatip.AnnotationAddress: have.address(), floatip.AnnotationPodSecurity: "",
	})
	if !l.delivery.InPod() {
		d.Action = Described
		d.Patches = append(d.Patches, l.selectNodes()...)
		return d
	}
	if pod.injected() {
		d.Action, d.Reason = Kept, "called again for the same pod"
		return d
	}
	for _, name := range []string{floatip.SocketVolume, floatip.NATVolume} {
		if hasName(pod.Spec.Volumes, name) {
			err := fmt.Errorf("volume %s: %w", name, errVolumeName)
			return refuse(conflict(req, "spec.volumes", err), err)
		}
	}
	d.Patches = append(d.Patches, h.sidecar.inject(pod)...)
	d.Patches = append(d.Patches, l.selectNodes()...)
	return d
}

// selectNodes binds the pod to nodes that carry the pools' networks, where one of them answers for the addresses.
func (l launch) selectNodes() []jsonpatch.Operation {
	if !l.delivery.OnNode() {
		return nil
	}
	return selectNodes(l.pod, slices.Compact(slices.Sorted(slices.Values(l.have.pools))))
}

// notALauncher says why pod carries no guest; an empty text says that it may.
func (h *Hooks) notALauncher(req admission.Request, pod podView) string {
	switch {
	case req.UserInfo.Username != kubevirt.ControllerUser(h.Options.KubeVirtNamespace):
		return "not made by KubeVirt's controller"
	case len(pod.Spec.Containers) == 0:
		return "no containers"
	case pod.Metadata.Labels[kubevirt.LabelApp] != kubevirt.AppLauncher:
		return "not a launcher: label " + kubevirt.LabelApp + " is " + pod.Metadata.Labels[kubevirt.LabelApp]
	}
	if _, temporary := pod.Metadata.Annotations[kubevirt.AnnotationTemporary]; temporary {
		return "a temporary pod that carries no guest"
	}
	return ""
}

// plainPod removes floatip's key from a pod that gets no sidecar.
func plainPod(pod podView, d Decision) Decision {
	d.Patches = setAnnotations(pod.Metadata.metadata, map[string]string{floatip.AnnotationNAT: ""})
	return d
}
