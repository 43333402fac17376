package admission

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/webhook/kubevirt"
)

const webhookUser = "system:serviceaccount:floatip-system:floatip-webhook"

// keyPolicies: floatip's keys of VMs and instances are written by nobody but those whom the policies name. Where the hooks
// are asked they replace or restore the keys before a policy sees them, so this is shown where they are not.
func keyPolicies(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	quiet := n.ns + "-quiet"
	n.addNamespace(quiet, false)
	n.runs("vm", nil, func(*kubevirtv1.VirtualMachine) {})
	vmi := n.instance("vm")
	n.injected("vm")
	going := n.create("going", nil)
	n.bound(going)
	n.settledVM("going")
	if err := n.patch("going", `{"metadata":{"finalizers":["example.com/one"]}}`); err != nil {
		t.Fatal(err)
	}
	if err := n.admin.Delete(n.ctx, going); err != nil {
		t.Fatal(err)
	}
	n.awaitCachedDeletion("going")
	defer func() { _ = n.patch("going", `{"metadata":{"finalizers":null}}`) }()

	forged := map[string]string{floatip.AnnotationAddress: n.address(9), floatip.AnnotationClaim: strings.Repeat("0", 32), floatip.AnnotationNAT: "{}"}
	newVM := func(key string) client.Object {
		vm := n.newVM("forged", map[string]string{key: forged[key]})
		vm.Namespace = quiet
		return vm
	}
	newVMI := func(key string) client.Object {
		o := n.bare("forged", map[string]string{key: forged[key]})
		o.Namespace = quiet
		return o
	}
	change := func(o client.Object, key string) func(client.Client) error {
		text := `{"metadata":{"annotations":{"` + key + `":"` + forged[key] + `"}}}`
		return func(c client.Client) error {
			return c.Patch(n.ctx, o.DeepCopyObject().(client.Object), client.RawPatch(types.MergePatchType, []byte(text)), client.DryRunAll)
		}
	}
	create := func(o client.Object) func(client.Client) error {
		return func(c client.Client) error {
			return c.Create(n.ctx, o.DeepCopyObject().(client.Object), client.DryRunAll)
		}
	}
	const address, claim, nat = floatip.AnnotationAddress, floatip.AnnotationClaim, floatip.AnnotationNAT
	theirs := kubevirt.Users(kubevirt.DefaultNamespace)
	for _, tc := range []struct {
		what, key string
		write     func(client.Client) error
		may       []string
	}{
		{"a new VM", address, create(newVM(address)), append(theirs, webhookUser)},
		{"a new VM", claim, create(newVM(claim)), append(theirs, webhookUser)},
		{"a VM that is being deleted", address, change(going, address), append(theirs, webhookUser)},
		{"a VM that is being deleted", claim, change(going, claim), append(theirs, webhookUser)},
		{"a new instance", address, create(newVMI(address)), theirs},
		{"an instance that runs", address, change(vmi, address), theirs},
		{"a new instance", nat, create(newVMI(nat)), nil},
		{"an instance that runs", nat, change(vmi, nat), nil},
	} {
		for _, user := range append([]string{"administrator", webhookUser}, theirs...) {
			err := tc.write(w.as(t, user, "system:masters"))
			refused := err != nil && strings.Contains(err.Error(), "metadata.annotations["+tc.key+"] is written by floatip only")
			may := slices.Contains(tc.may, user)
			if may && err != nil || !may && !refused {
				t.Errorf("%s writes %s of %s: %v, want that it may: %t", user, tc.key, tc.what, err, may)
			}
		}
	}
	// An instance that somebody makes by hand for his VM carries its address, since the hook wrote it.
	halted := n.create("halted", nil)
	held := n.bound(halted)
	byHand := n.bare("halted", nil)
	byHand.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(halted, kubevirtv1.VirtualMachineGroupVersionKind)}
	if err := n.admin.Create(n.ctx, byHand, client.DryRunAll); err != nil || byHand.Annotations[address] != held {
		t.Errorf("an instance made by hand: %v, annotations %v, want %s", err, byHand.Annotations, held)
	}
	// A VM that opted out and brings one of the keys is looked at all the same, and loses it.
	for _, key := range []string{address, claim} {
		vm := n.newVM("out", map[string]string{floatip.LabelEnabled: "false", key: forged[key]})
		if err := n.admin.Create(n.ctx, vm, client.DryRunAll); err != nil || vm.Annotations[key] != "" {
			t.Errorf("a VM that opted out with %s: %v, annotations %v", key, err, vm.Annotations)
		}
	}
}

// policyCameLater: an instance that has floatip.io/nat from a time without floatip's policies is not stuck: it changes as
// before, the key stays what it is or goes.
func policyCameLater(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	quiet := n.ns + "-quiet"
	n.addNamespace(quiet, false)
	described := func(name string) *kubevirtv1.VirtualMachineInstance {
		o := n.bare(name, map[string]string{floatip.AnnotationNAT: "{}"})
		o.Namespace = quiet
		return o
	}
	refused := func(want bool) {
		t.Helper()
		n.wait("the policy to count or not", func(ctx context.Context) error {
			if err := n.admin.Create(ctx, described("probe"), client.DryRunAll); (err != nil) != want {
				return fmt.Errorf("an instance with %s: %w", floatip.AnnotationNAT, err)
			}
			return nil
		})
	}
	binding := new(admissionregistrationv1.ValidatingAdmissionPolicyBinding)
	if err := n.admin.Get(n.ctx, client.ObjectKey{Name: "virtualmachineinstances.floatip.io"}, binding); err != nil {
		t.Fatal(err)
	}
	bind := func(ctx context.Context) {
		again := &admissionregistrationv1.ValidatingAdmissionPolicyBinding{Spec: binding.Spec}
		again.Name, again.Labels, again.Annotations = binding.Name, binding.Labels, binding.Annotations
		if err := n.admin.Create(ctx, again); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Error(err)
		}
	}
	if err := n.admin.Delete(n.ctx, binding); err != nil {
		t.Fatal(err)
	}
	defer bind(context.WithoutCancel(n.ctx))
	refused(false)
	before := described("before")
	if err := n.admin.Create(n.ctx, before); err != nil {
		t.Fatal(err)
	}
	bind(n.ctx)
	refused(true)
	change := func(metadata string) error {
		return n.admin.Patch(n.ctx, before.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(`{"metadata":{`+metadata+`}}`)))
	}
	if err := change(`"labels":{"a":"b"}`); err != nil {
		t.Errorf("another change: %v", err)
	}
	wantRefusal(t, "another description", change(`"annotations":{"floatip.io/nat":"{ }"}`), "is written by floatip only")
	if err := change(`"annotations":{"floatip.io/nat":null}`); err != nil {
		t.Errorf("the description taken away: %v", err)
	}
	wantRefusal(t, "the description written back", change(`"annotations":{"floatip.io/nat":"{}"}`), "is written by floatip only")
}
