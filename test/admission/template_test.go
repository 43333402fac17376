package admission

import (
	"strings"
	"testing"

	kubevirtv1 "kubevirt.io/api/core/v1"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
)

// templateOptsOut: what the template says counts when the VM is created, and at each start. A VM that opts out later keeps
// its address and runs without it, and loses it to nobody.
func templateOptsOut(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	out := n.optedOut("out")
	if err := n.admin.Create(n.ctx, out); err != nil {
		t.Fatal(err)
	}
	if got := out.Annotations[floatip.AnnotationAddress]; got != "" {
		t.Errorf("a VM whose template opted out has %s", got)
	}
	// Forged keys of the VM or its template make floatip look, and come to nothing.
	forged := n.optedOut("forged")
	forged.Annotations = map[string]string{floatip.AnnotationAddress: n.address(5), floatip.AnnotationClaim: strings.Repeat("0", 32)}
	forged.Spec.Template.ObjectMeta.Annotations[floatip.AnnotationAddress] = n.address(5)
	if err := n.admin.Create(n.ctx, forged); err != nil {
		t.Fatal(err)
	}
	pod := n.awaitPod(n.ns, "forged")
	if forged.Annotations[floatip.AnnotationAddress]+pod.Annotations[floatip.AnnotationAddress]+pod.Annotations[floatip.AnnotationNAT] != "" {
		t.Errorf("forged keys came through: VM %v, pod %v", forged.Annotations, pod.Annotations)
	}
	misspelt := n.optedOut("misspelt")
	misspelt.Spec.Template.ObjectMeta.Annotations[floatip.LabelEnabled] = "no"
	wantRefusal(t, "a value that is none", n.admin.Create(n.ctx, misspelt), "spec.template.metadata.annotations[floatip.io/enabled]")
	unquoted := `{"apiVersion":"kubevirt.io/v1","kind":"VirtualMachine","metadata":{"name":"unquoted"},"spec":{"runStrategy":"Halted",
		"template":{"metadata":{"annotations":{"floatip.io/enabled":false}},"spec":{"domain":{"devices":{}}}}}}`
	_, err := n.kubectl(unquoted, "create", "--validate=ignore", "-f", "-")
	wantRefusal(t, "false without quotes, which is no annotation", err, "annotations")
	null := strings.Replace(unquoted, `{"annotations":{"floatip.io/enabled":false}}`, "null", 1)
	_, err = n.kubectl(null, "create", "--validate=ignore", "-f", "-")
	wantRefusal(t, "metadata that are null", err, "spec.template.metadata in body must be of type object") // by the schema
	bare := n.newVM("bare", nil)                                                                           // a template without metadata
	if err := n.admin.Create(n.ctx, bare); err != nil {
		t.Fatal(err)
	}
	n.bound(bare)
	if err := n.patch("bare", `{"spec":{"template":{"metadata":{"annotations":{"floatip.io/enabled":"true"}}}}}`); err != nil {
		t.Error(err)
	}

	later := n.create("later", nil)
	address := n.bound(later)
	n.awaitCarried(address, "", "")
	if err := n.patch("later", `{"spec":{"runStrategy":"Always","template":{"metadata":{"annotations":{"floatip.io/enabled":"false"}}}}}`); err != nil {
		t.Fatal(err)
	}
	n.awaitCarried(address, v1alpha1.ReasonOptedOut, "spec.template.metadata.annotations[floatip.io/enabled]")
	if got := n.bound(n.get("later")); got != address {
		t.Errorf("the VM holds %s, had %s", got, address)
	}
	wantRefusal(t, "somebody else who asks for it", n.admin.Create(n.ctx, n.newVM("rival", request(address))), "is held by VM "+n.ns+"/later")
	n.restartWith("later", func(vm *kubevirtv1.VirtualMachine) { vm.Spec.Template.ObjectMeta.Annotations = nil })
	n.awaitCarried(address, v1alpha1.ReasonCarried, "")
	n.remove(n.get("later"))
	n.free(address)
}
