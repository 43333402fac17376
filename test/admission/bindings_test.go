package admission

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook"
)

// awaitCarried waits until the FloatingIP says that its VM carries it, or with what reason it does not and what else; ""
// stands for no such condition.
func (n *tenant) awaitCarried(address, reason, text string) {
	n.t.Helper()
	n.wait("condition Carried of "+address, func(ctx context.Context) error {
		fip := new(v1alpha1.FloatingIP)
		if err := n.admin.Get(ctx, client.ObjectKey{Name: v1alpha1.Name(netip.MustParseAddr(address))}, fip); err != nil {
			return err
		}
		c := meta.FindStatusCondition(fip.Status.Conditions, v1alpha1.ConditionCarried)
		switch {
		case c == nil && reason == "":
			return nil
		case c == nil || c.Reason != reason || (c.Status == metav1.ConditionTrue) != (reason == v1alpha1.ReasonCarried):
			return fmt.Errorf("it is %+v, want the reason %q", c, reason)
		case !strings.Contains(c.Message, text):
			n.t.Fatalf("%s: %q does not say %q", address, c.Message, text)
		}
		return nil
	})
}

// runs starts a VM as the namespace's people do, and returns its address.
func (n *tenant) runs(name string, annotations map[string]string, change func(*kubevirtv1.VirtualMachine)) string {
	n.t.Helper()
	vm := n.newVM(name, annotations)
	vm.Spec.RunStrategy = new(kubevirtv1.RunStrategyAlways)
	change(vm)
	if err := n.admin.Create(n.ctx, vm); err != nil {
		n.t.Fatalf("%s: %v", name, err)
	}
	return n.bound(vm)
}

// restartWith replaces the VM's spec by what change makes of it, and ends the instance; KubeVirt starts another one.
func (n *tenant) restartWith(name string, change func(*kubevirtv1.VirtualMachine)) {
	n.t.Helper()
	before := n.get(name)
	after := before.DeepCopy()
	change(after)
	if err := n.admin.Patch(n.ctx, after, client.MergeFrom(before)); err != nil {
		n.t.Fatalf("%s: %v", name, err)
	}
	vmi := &kubevirtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: n.ns, Name: name}}
	if err := n.admin.Delete(n.ctx, vmi); err != nil {
		n.t.Fatalf("%s: %v", name, err)
	}
}

func interfaces(vm *kubevirtv1.VirtualMachine, nics []kubevirtv1.Interface, networks []kubevirtv1.Network) {
	vm.Spec.Template.Spec.Domain.Devices.Interfaces, vm.Spec.Template.Spec.Networks = nics, networks
}

// bindings: a VM that has no masquerade interface starts without its address and says so by warning, event and
// condition, and carries it after a restart with one; a VM that requires its address does not start.
func bindings(t *testing.T, w *world) {
	n := w.tenant(t, 20)
	pod := []kubevirtv1.Network{*kubevirtv1.DefaultPodNetwork()}
	nic := func(method kubevirtv1.InterfaceBindingMethod) []kubevirtv1.Interface {
		return []kubevirtv1.Interface{{Name: "default", InterfaceBindingMethod: method}}
	}
	masquerade := func(vm *kubevirtv1.VirtualMachine) {
		interfaces(vm, nic(kubevirtv1.InterfaceBindingMethod{Masquerade: &kubevirtv1.InterfaceMasquerade{}}), pod)
		vm.Spec.Template.Spec.Domain.Devices.AutoattachPodInterface = nil
	}
	rows := map[string]func(*kubevirtv1.VirtualMachine){
		"bridge": func(vm *kubevirtv1.VirtualMachine) {
			interfaces(vm, nic(kubevirtv1.InterfaceBindingMethod{Bridge: &kubevirtv1.InterfaceBridge{}}), pod)
		},
		"passt": func(vm *kubevirtv1.VirtualMachine) {
			interfaces(vm, nic(kubevirtv1.InterfaceBindingMethod{PasstBinding: &kubevirtv1.InterfacePasstBinding{}}), pod)
		},
		"sriov": func(vm *kubevirtv1.VirtualMachine) {
			interfaces(vm, nic(kubevirtv1.InterfaceBindingMethod{SRIOV: &kubevirtv1.InterfaceSRIOV{}}), []kubevirtv1.Network{{
				Name: "default", NetworkSource: kubevirtv1.NetworkSource{Multus: &kubevirtv1.MultusNetwork{NetworkName: "vf"}},
			}})
		},
		"none": func(vm *kubevirtv1.VirtualMachine) {
			interfaces(vm, nil, nil)
			vm.Spec.Template.Spec.Domain.Devices.AutoattachPodInterface = new(false)
		},
		"unnamed": func(vm *kubevirtv1.VirtualMachine) { interfaces(vm, nil, nil) }, // KubeVirt's default is bridge
	}
	addresses := map[string]string{}
	for name, change := range rows {
		addresses[name] = n.runs(name, nil, change)
	}
	const text = "no interface with masquerade binding on the pod network"
	for name, address := range addresses {
		n.awaitCarried(address, v1alpha1.ReasonUnsupportedBinding, text)
		n.awaitEvent("VirtualMachine", name, webhook.EventUnnatable, text)
		vmi := new(kubevirtv1.VirtualMachineInstance)
		if err := n.admin.Get(n.ctx, client.ObjectKey{Namespace: n.ns, Name: name}, vmi); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := vmi.Annotations[floatip.AnnotationAddress]; got != "" {
			t.Errorf("%s: the instance shows %s", name, got)
		}
	}
	if got := n.awaitPod(n.ns, "bridge").Annotations[floatip.AnnotationNAT]; got != "" {
		t.Errorf("the pod of the bridged VM has %s", got)
	}
	for name := range rows {
		n.restartWith(name, masquerade)
	}
	for _, address := range addresses {
		n.awaitCarried(address, v1alpha1.ReasonCarried, "")
	}
	halted := func(vm *kubevirtv1.VirtualMachine) { vm.Spec.RunStrategy = new(kubevirtv1.RunStrategyHalted) }
	n.restartWith("bridge", halted)
	n.awaitCarried(addresses["bridge"], "", "")

	n.runs("strict", map[string]string{floatip.AnnotationRequire: "true"}, rows["bridge"])
	n.awaitKubeVirt("strict", text)
}
