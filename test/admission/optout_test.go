package admission

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
)

// optOutPolicy: with manifests/opt-out, a VM that opted out by its own annotation starts while the webhook is down; what
// GitOps tools apply differs from nothing; and nobody else's template is touched.
func optOutPolicy(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	out := map[string]string{floatip.LabelEnabled: "false"}
	before := n.create("before", out)
	held := n.create("held", nil)
	address := n.bound(held)
	dying := n.create("dying", out)
	if n.settledVM("dying"); templateOut(n.get("dying")) { // with KubeVirt's finalizer
		t.Fatal("the template has the mark before there is a policy, so this shows nothing")
	}
	if err := n.patch("dying", `{"metadata":{"finalizers":["example.com/one"]}}`); err != nil {
		t.Fatal(err)
	}
	if err := n.admin.Delete(n.ctx, dying); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(w.root, "manifests", "opt-out")
	if _, err := w.cluster.Kubectl(n.ctx, nil, "apply", "-k", dir); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := w.cluster.Kubectl(context.WithoutCancel(n.ctx), nil, "delete", "-k", dir); err != nil {
			t.Error(err)
		}
	}()
	n.wait("the policy to count", func(ctx context.Context) error {
		probe := n.newVM("probe", out)
		if err := n.admin.Create(ctx, probe, client.DryRunAll); err != nil || !templateOut(probe) {
			return fmt.Errorf("the template has %v (%v)", probe.Spec.Template.ObjectMeta.Annotations, err)
		}
		return nil
	})

	for name, template := range map[string]map[string]string{"bare": nil, "annotated": {"x": "y"}, "says-so": {floatip.LabelEnabled: "true"}} {
		vm := n.newVM(name, out)
		vm.Spec.Template.ObjectMeta.Annotations = template
		if err := n.admin.Create(n.ctx, vm); err != nil {
			t.Fatal(err)
		}
		if got, want := templateOut(vm), template[floatip.LabelEnabled] == ""; got != want {
			t.Errorf("%s: the template has %v", name, vm.Spec.Template.ObjectMeta.Annotations)
		}
		for key, value := range template {
			if got := vm.Spec.Template.ObjectMeta.Annotations[key]; got != value {
				t.Errorf("%s: the template's %s is %q, was %q", name, key, got, value)
			}
		}
	}
	labelled := n.newVM("labelled", out)
	labelled.Spec.Template.ObjectMeta.Labels = map[string]string{"x": "y"}
	if err := n.admin.Create(n.ctx, labelled); err != nil {
		t.Fatal(err)
	}
	if got := labelled.Spec.Template.ObjectMeta; !templateOut(labelled) || got.Labels["x"] != "y" {
		t.Errorf("a template with labels alone has %v and %v", got.Labels, got.Annotations)
	}
	if vm := n.create("in", nil); templateOut(vm) || n.bound(vm) == "" {
		t.Errorf("a VM that did not opt out: %v", vm.Spec.Template.ObjectMeta.Annotations)
	}
	if err := n.patch("held", `{"metadata":{"annotations":{"floatip.io/enabled":"false"}}}`); err != nil {
		t.Error(err)
	}
	if vm := n.get("held"); templateOut(vm) || n.bound(vm) != address {
		t.Errorf("a VM that holds an address: %v, template %v", vm.Annotations, vm.Spec.Template.ObjectMeta.Annotations)
	}
	n.awaitCachedDeletion("dying")
	if err := n.patch("dying", `{"metadata":{"labels":{"a":"b"}}}`); err != nil {
		t.Error(err)
	}
	if vm := n.get("dying"); templateOut(vm) {
		t.Errorf("a VM that is being deleted: template %v", vm.Spec.Template.ObjectMeta.Annotations)
	}
	if err := n.patch("dying", `{"metadata":{"finalizers":null}}`); err != nil {
		t.Error(err)
	}
	for name, flags := range map[string][]string{"client-side": nil, "server-side": {"--server-side", "--field-manager=argocd-controller"}} {
		n.appliesAgain(name, n.manifest(name, out), flags)
	}

	if err := w.stopWebhook(n.ctx); err != nil {
		t.Fatal(err)
	}
	running := n.newVM("running", out)
	running.Spec.RunStrategy = new(kubevirtv1.RunStrategyAlways)
	if err := n.admin.Create(n.ctx, running); err != nil {
		t.Error(err)
	}
	n.awaitPod(n.ns, "running")
	if err := w.kubevirt.Start(n.ctx, n.ns, before.Name); err != nil { // a change of the VM, by which it gets the mark too
		t.Error(err)
	}
	n.awaitPod(n.ns, before.Name)
	if err := w.startWebhook(n.ctx); err != nil {
		t.Fatal(err)
	}
}

func templateOut(vm *kubevirtv1.VirtualMachine) bool {
	return vm.Spec.Template.ObjectMeta.Annotations[floatip.LabelEnabled] == "false"
}

// appliesAgain applies a manifest, and again: nothing is written then, and nothing differs.
func (n *tenant) appliesAgain(name, manifest string, flags []string) {
	n.t.Helper()
	line := func(verb string) []string { return append([]string{verb, "-f", n.file(manifest)}, flags...) }
	n.mustKubectl("", line("apply")...)
	if !templateOut(n.get(name)) {
		n.t.Errorf("%s: the template has %v", name, n.get(name).Spec.Template.ObjectMeta.Annotations)
	}
	first := n.settledVM(name)
	for range 2 {
		n.mustKubectl("", line("apply")...)
		if out, err := n.kubectl("", line("diff")...); err != nil || out != "" {
			n.t.Errorf("%s: kubectl diff: %v\n%s", name, err, out)
		}
	}
	if before, after := written(first), written(n.partial(name)); before != after {
		n.t.Errorf("%s: applying the same again wrote the VM (-before +after):\n%s", name, cmp.Diff(before, after))
	}
}
