package admission

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"floatip.io/floatip"
)

// file writes a manifest where kubectl finds it.
func (n *tenant) file(manifest string) string {
	n.t.Helper()
	path := filepath.Join(n.folder(n.t), "vm.yaml")
	if err := os.WriteFile(path, []byte(manifest), 0o644); err != nil {
		n.t.Fatal(err)
	}
	return path
}

// keeps fails the test if floatip's annotations of a VM are not those of before.
func (n *tenant) keeps(what string, before map[string]string, name string) {
	n.t.Helper()
	now := n.get(name)
	for _, key := range []string{floatip.AnnotationAddress, floatip.AnnotationClaim} {
		if now.Annotations[key] != before[key] {
			n.t.Errorf("%s: %s is %q, was %q", what, key, now.Annotations[key], before[key])
		}
	}
	owned := false
	for _, entry := range now.ManagedFields {
		owned = owned || entry.Manager == "floatip-webhook"
	}
	if !owned {
		n.t.Errorf("%s: floatip owns nothing of %v", what, now.ManagedFields)
	}
}

// What GitOps tools do: the same manifest again changes nothing and differs from nothing, by either way of applying it;
// and an applier who drops his last annotation leaves floatip's.
func applyAgain(t *testing.T, w *world) {
	for _, way := range []struct {
		name  string
		flags []string
	}{
		{"client-side", nil},
		{"server-side", []string{"--server-side", "--field-manager=argocd-controller"}},
	} {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			n := w.tenant(t, 10)
			with := func(verb string, manifest string) []string {
				return append([]string{verb, "-f", n.file(manifest)}, way.flags...)
			}
			noDiff := func(when, manifest string) {
				t.Helper()
				if out, err := n.kubectl("", with("diff", manifest)...); err != nil || out != "" {
					t.Errorf("%s: kubectl diff: %v\n%s", when, err, out)
				}
			}
			full := n.manifest("vm", map[string]string{floatip.AnnotationPool: n.ns, "team": "blue"})
			n.mustKubectl("", with("apply", full)...)
			n.bound(n.get("vm"))
			first := n.settledVM("vm")
			noDiff("after the first apply", full)
			for range 2 {
				n.mustKubectl("", with("apply", full)...)
				noDiff("after another apply", full)
			}
			// KubeVirt may write a status meanwhile, late on a busy machine, and with it the VM's resourceVersion.
			if before, after := written(first), written(n.partial("vm")); before != after {
				t.Errorf("applying the same again wrote the VM (-before +after):\n%s", cmp.Diff(before, after))
			}
			n.keeps("the same again", first.Annotations, "vm")

			for _, annotations := range []map[string]string{{"team": "blue"}, nil} {
				less := n.manifest("vm", annotations)
				n.mustKubectl("", with("apply", less)...)
				n.keeps(fmt.Sprintf("annotations %v", annotations), first.Annotations, "vm")
				noDiff("after annotations were dropped", less)
			}
			if left := n.get("vm").Annotations["team"]; left != "" {
				t.Errorf("the applier's own annotation is still there: %q", left)
			}
		})
	}
}

// settledVM reads a VM once KubeVirt's controller has written what it writes into a new one.
func (n *tenant) settledVM(name string) *metav1.PartialObjectMetadata {
	n.t.Helper()
	var vm *metav1.PartialObjectMetadata
	n.wait("KubeVirt's controller to see VM "+name, func(context.Context) error {
		seen := n.get(name)
		if len(seen.Finalizers) == 0 || len(seen.Status.Conditions) == 0 {
			return fmt.Errorf("finalizers %v, conditions %v", seen.Finalizers, seen.Status.Conditions)
		}
		return nil
	})
	n.quiet("VM "+name, func() string {
		vm = n.partial(name)
		return vm.ResourceVersion
	})
	return vm
}

// partial reads the metadata of a VM.
func (n *tenant) partial(name string) *metav1.PartialObjectMetadata {
	n.t.Helper()
	vm := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "kubevirt.io/v1", Kind: "VirtualMachine"}}
	if err := n.admin.Get(n.ctx, types.NamespacedName{Namespace: n.ns, Name: name}, vm); err != nil {
		n.t.Fatal(err)
	}
	return vm
}

// written is what all but KubeVirt's controller wrote of a VM, with the time to the second, and its generation.
func written(vm *metav1.PartialObjectMetadata) string {
	text := fmt.Sprintln("generation", vm.Generation)
	for _, f := range vm.ManagedFields {
		if f.Manager != "virt-controller" {
			text += fmt.Sprintln(f.Manager, f.Operation, f.Time, f.FieldsV1)
		}
	}
	return text
}

// Every way in which a person changes a VM leaves its address; who touches floatip's keys is told.
func edit(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	vm := n.create("vm", map[string]string{"team": "blue"})
	n.bound(vm)
	before := vm.Annotations
	editor := func(sed string) string {
		path := filepath.Join(n.folder(n.t), "edit")
		if err := os.WriteFile(path, []byte("#!/bin/sh\nsed -i -e '"+sed+"' \"$1\"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tc := range []struct {
		what string
		do   func() (string, error)
		says string // in the warnings or the error
	}{
		{"kubectl edit of something else", func() (string, error) {
			return n.edit(editor(`s/team: blue/team: red/`))
		}, ""},
		{"kubectl edit that removes floatip's keys", func() (string, error) {
			return n.edit(editor(`/floatip.io\/address/d; /floatip.io\/claim/d`))
		}, "written by floatip only; the change was undone"},
		{"kubectl edit that takes another address", func() (string, error) {
			return n.edit(editor(`s/` + n.address(1) + `/` + n.address(9) + `/`))
		}, "written by floatip only; the change was undone"},
		{"kubectl annotate with a request for another address", func() (string, error) {
			return n.kubectl("", "annotate", "vm", "vm", floatip.AnnotationRequest+"="+n.address(9))
		}, "an address does not change with an edit"},
		{"kubectl annotate with a request for its address", func() (string, error) {
			return n.kubectl("", "annotate", "vm", "vm", floatip.AnnotationRequest+"="+n.address(1))
		}, ""},
		{"kubectl annotate that removes the request", func() (string, error) {
			return n.kubectl("", "annotate", "vm", "vm", floatip.AnnotationRequest+"-")
		}, "the VM keeps " + n.address(1)},
		{"kubectl annotate with a value that is none", func() (string, error) {
			return n.kubectl("", "annotate", "vm", "vm", floatip.AnnotationRequire+"=yes", floatip.AnnotationUserData+"=no")
		}, `metadata.annotations[floatip.io/require]: Unsupported value: "yes"`},
		{"kubectl label", func() (string, error) { return n.kubectl("", "label", "vm", "vm", "a=b") }, ""},
		{"kubectl replace without annotations", func() (string, error) {
			return n.kubectl(n.manifest("vm", nil), "replace", "-f", "-")
		}, "written by floatip only; the change was undone"},
		{"a merge patch that empties the annotations", func() (string, error) {
			return n.kubectl("", "patch", "vm", "vm", "--type=merge", "-p", `{"metadata":{"annotations":null}}`)
		}, "written by floatip only; the change was undone"},
		{"a server-side apply that owns floatip's key", func() (string, error) {
			forged := n.manifest("vm", map[string]string{floatip.AnnotationAddress: n.address(9)})
			return n.kubectl(forged, "apply", "--server-side", "--field-manager=forger", "-f", "-")
		}, `conflict with "floatip-webhook"`},
	} {
		out, err := tc.do()
		if err != nil {
			out += err.Error()
		}
		if !strings.Contains(out, tc.says) || tc.says == "" && (err != nil || strings.Contains(out, "floatip:")) {
			t.Errorf("%s: %s (%v), want %q", tc.what, out, err, tc.says)
		}
		n.keeps(tc.what, before, "vm")
	}
	n.bound(n.get("vm"))
}

// edit runs kubectl edit with a script as the editor, and returns what a person reads.
func (n *tenant) edit(editor string) (string, error) {
	return n.person("", "env", "KUBE_EDITOR="+editor, "KUBECTL", "edit", "vm", "vm")
}

// Whoever sends a whole object back, as a program does that read it, may send an old one: what floatip wrote stays.
func updateByPrograms(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	vm := n.create("vm", nil)
	n.bound(vm)
	n.settledVM("vm")
	now := n.get("vm")
	now.Annotations = map[string]string{"by": "a program"}
	now.ManagedFields = nil
	if err := n.admin.Update(n.ctx, now); err != nil {
		t.Fatal(err)
	}
	n.keeps("update without annotations", vm.Annotations, "vm")

	// As Flux does it: a typed object, server-side, with force.
	raw := n.manifest("vm", map[string]string{"kustomize.toolkit.fluxcd.io/reconcile": "enabled"})
	object, err := yaml.YAMLToJSON([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	target := n.get("vm")
	versions := map[string]bool{}
	for range 3 {
		err := n.admin.Patch(n.ctx, target, client.RawPatch(types.ApplyPatchType, object),
			client.FieldOwner("kustomize-controller"), client.ForceOwnership)
		if err != nil {
			t.Fatal(err)
		}
		n.keeps("forced server-side apply", vm.Annotations, "vm")
		versions[writtenBy(n.settledVM("vm"), "kustomize-controller")] = true
	}
	if len(versions) != 1 {
		t.Errorf("three times the same apply wrote several versions: %v", versions)
	}
}

// writtenBy says what a manager wrote last, and when, to the second. KubeVirt writes the VM, too.
func writtenBy(vm *metav1.PartialObjectMetadata, manager string) (text string) {
	for _, f := range vm.ManagedFields {
		if f.Manager == manager {
			text += fmt.Sprint(f.Operation, f.Time, f.FieldsV1)
		}
	}
	return text
}
