package admission

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
)

// call is a hook that was called, and for whom.
type call struct{ handler, user string }

// calls returns the hooks that were called for objects of a namespace, in order, by the webhook's log: a decision is
// logged before it is answered.
func (n *tenant) calls(namespace string) (calls []call) {
	n.t.Helper()
	raw, err := os.ReadFile(n.cluster.Log("floatip-webhook"))
	if err != nil {
		n.t.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(raw)); lines.Scan(); {
		var line struct{ Msg, Handler, Namespace, User string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Namespace == namespace && strings.HasPrefix(line.Msg, "admission ") {
			calls = append(calls, call{line.Handler, line.User})
		}
	}
	return calls
}

const kubevirtController = "system:serviceaccount:kubevirt:kubevirt-controller"

// handlers returns what was called on purpose. KubeVirt's controller updates VMs as it last saw them: where somebody has
// changed one of floatip's keys meanwhile, such an update would change it back, so a hook is asked before the API server
// finds that the version is old and refuses it. That may be at any time. The API server also asks again where it repeats a
// patch, since KubeVirt wrote the VM in between.
func handlers(calls []call) (handlers []string) {
	for _, c := range calls {
		if c != (call{"vm-update", kubevirtController}) {
			handlers = append(handlers, c.handler)
		}
	}
	return slices.Compact(handlers)
}

// optedOut is a VM that runs, whose template opted out.
func (n *tenant) optedOut(name string) *kubevirtv1.VirtualMachine {
	n.t.Helper()
	vm := n.newVM(name, nil)
	vm.Spec.RunStrategy = new(kubevirtv1.RunStrategyAlways)
	vm.Spec.Template.ObjectMeta.Annotations = map[string]string{floatip.LabelEnabled: "false"}
	return vm
}

// bare is an instance that nobody but a person made.
func (n *tenant) bare(name string, annotations map[string]string) *kubevirtv1.VirtualMachineInstance {
	n.t.Helper()
	vmi := &kubevirtv1.VirtualMachineInstance{Spec: n.newVM(name, nil).Spec.Template.Spec}
	vmi.Namespace, vmi.Name, vmi.Annotations = n.ns, name, annotations
	return vmi
}

// awaitCachedDeletion returns once the API server's own cache shows that a VM is being deleted. A patch is first tried
// on what the cache holds (Cacher.GuaranteedUpdate in k8s.io/apiserver), hooks and all, and again on what etcd holds
// when the two differ: right after a deletion a hook may still be asked about the VM as it was.
func (n *tenant) awaitCachedDeletion(name string) {
	n.t.Helper()
	n.wait("the deletion of "+name+" in the API server's cache", func(ctx context.Context) error {
		var vm kubevirtv1.VirtualMachine
		err := n.admin.Get(ctx, client.ObjectKey{Namespace: n.ns, Name: name}, &vm,
			&client.GetOptions{Raw: &metav1.GetOptions{ResourceVersion: "0"}})
		if err == nil && vm.DeletionTimestamp.IsZero() {
			err = errors.New("it is not being deleted there")
		}
		return err
	})
}

// notAsked: VMs that ask for nothing, and everything about the others that is not floatip's, never reach floatip.
func notAsked(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	quiet := n.ns + "-quiet"
	n.addNamespace(quiet, false)
	controller := w.as(t, kubevirtController, "system:masters")
	another := w.as(t, "system:serviceaccount:kubevirt:kubevirt-handler", "system:masters") // may write floatip's keys too
	inQuiet := func(name string) *kubevirtv1.VirtualMachine {
		vm := n.newVM(name, map[string]string{floatip.AnnotationPool: n.ns}) // a wish where nobody listens
		vm.Namespace = quiet
		return vm
	}
	pod := func(name string, labels, annotations map[string]string) *corev1.Pod {
		p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "compute", Image: "example/guest"}}}}
		p.Namespace, p.Name, p.Labels, p.Annotations = n.ns, name, labels, annotations
		return p
	}
	var held *kubevirtv1.VirtualMachine
	launcher := map[string]string{"kubevirt.io": "virt-launcher"}
	target := map[string]string{"kubevirt.io": "virt-launcher", "kubevirt.io/migrationJobUID": "job"}
	always := kubevirtv1.RunStrategyAlways
	asked := []string{"vm-update"}
	changes := func(annotation string) func() error {
		return func() error { return n.patch("held", `{"metadata":{"annotations":{`+annotation+`}}}`) }
	}
	owned := func(kind string, controller bool) func() error {
		return func() error {
			o := n.bare("owned", nil)
			o.OwnerReferences = []metav1.OwnerReference{{
				APIVersion: "kubevirt.io/v1", Kind: kind, Name: "owned", UID: "of-nobody", Controller: &controller,
			}}
			return n.admin.Create(n.ctx, o, client.DryRunAll)
		}
	}
	for _, tc := range []struct {
		name string
		do   func() error
		want []string
	}{
		{"a VM that asks", func() error { held = n.create("held", nil); n.bound(held); return nil }, []string{"vm-create", "vm-commit"}},
		{"a label", func() error { return n.patch("held", `{"metadata":{"labels":{"a":"b"}}}`) }, nil},
		{"another annotation", func() error { return n.patch("held", `{"metadata":{"annotations":{"a":"b"}}}`) }, nil},
		{"the template", func() error { return n.patch("held", `{"spec":{"template":{"metadata":{"annotations":{"a":"b"}}}}}`) }, nil},
		{"the status", func() error {
			return n.admin.Status().Patch(n.ctx, n.newVM("held", nil), client.RawPatch("application/merge-patch+json", []byte(`{"status":{"created":false}}`)))
		}, nil},
		{"a finalizer", func() error { return n.patch("held", `{"metadata":{"finalizers":["example.com/one"]}}`) }, nil},
		{"the pool", changes(`"floatip.io/pool":"` + n.ns + `"`), asked},
		{"the request", changes(`"floatip.io/request":"` + n.address(1) + `"`), asked},
		{"an allow list", changes(`"floatip.io/allow":"tcp/22"`), asked},
		{"no allow list", changes(`"floatip.io/allow":null`), asked},
		{"an empty allow list, which is another thing than none", func() error {
			wantRefusal(t, "an empty allow list", changes(`"floatip.io/allow":""`)(), "floatip.io/allow is empty")
			return nil
		}, asked},
		{"what opts in", changes(`"floatip.io/enabled":"true"`), asked},
		{"that the address is needed", changes(`"floatip.io/require":"false"`), asked},
		{"the guest's data", changes(`"floatip.io/user-data":"false"`), asked},
		{"the address", changes(`"floatip.io/address":null`), asked},
		{"the claim", changes(`"floatip.io/claim":null`), asked},
		{"what the template opts in", func() error {
			return n.patch("held", `{"spec":{"template":{"metadata":{"annotations":{"floatip.io/enabled":"true"}}}}}`)
		}, asked},
		{"floatip's own change", func() error {
			return w.as(t, webhookUser).Patch(n.ctx, n.newVM("held", nil), client.RawPatch("application/merge-patch+json",
				[]byte(`{"metadata":{"annotations":{"floatip.io/claim":null}}}`)), client.DryRunAll)
		}, nil},
		{"the deletion", func() error {
			if err := n.admin.Delete(n.ctx, n.newVM("held", nil)); err != nil {
				return err
			}
			n.awaitCachedDeletion("held")
			return nil
		}, nil},
		{"floatip's keys of a VM that is being deleted", func() error {
			return another.Patch(n.ctx, n.newVM("held", nil), client.RawPatch("application/merge-patch+json",
				[]byte(`{"metadata":{"annotations":{"floatip.io/address":null,"floatip.io/claim":null}}}`)))
		}, nil},
		{"the last finalizer", func() error {
			if err := n.patch("held", `{"metadata":{"finalizers":null}}`); err != nil {
				return err
			}
			n.awaitGone(held)
			return nil
		}, nil},
		{"a VM that opted out", func() error { n.create("out", map[string]string{floatip.LabelEnabled: "false"}); return nil }, nil},
		{"a VM whose template opted out, and that starts", func() error {
			if err := n.admin.Create(n.ctx, n.optedOut("started")); err != nil {
				return err
			}
			n.awaitPod(n.ns, "started")
			return nil
		}, nil},
		{"a dry run that asks", func() error { return n.admin.Create(n.ctx, n.newVM("dry", nil), client.DryRunAll) }, []string{"vm-create", "vm-commit"}},
		{"a pod", func() error { return n.admin.Create(n.ctx, pod("plain", nil, nil)) }, nil},
		{"a pod that looks like a launcher", func() error {
			return n.admin.Create(n.ctx, pod("like", launcher, map[string]string{floatip.AnnotationAddress: n.address(1)}))
		}, nil},
		{"the target of a migration without an address", func() error { return controller.Create(n.ctx, pod("target", target, nil)) }, nil},
		{"a hotplug pod", func() error {
			return controller.Create(n.ctx, pod("hp-volume-x", map[string]string{"kubevirt.io": "hotplug-disk"},
				map[string]string{floatip.AnnotationAddress: n.address(1)}))
		}, nil},
		{"an instance that no VM made", func() error { return n.admin.Create(n.ctx, n.bare("bare", nil)) }, nil},
		{"an instance that a VM made", owned("VirtualMachine", true), []string{"vmi-create"}},
		{"an instance that a VM owns and did not make", owned("VirtualMachine", false), nil},
		{"an instance that something else made", owned("VirtualMachineInstanceReplicaSet", true), nil},
		{"an instance that opted out, with a forged key", func() error {
			forged := n.bare("forged", map[string]string{floatip.LabelEnabled: "false", floatip.AnnotationAddress: n.address(1)})
			err := n.admin.Create(n.ctx, forged, client.DryRunAll)
			if err == nil && forged.Annotations[floatip.AnnotationAddress] != "" {
				err = fmt.Errorf("the instance has %v", forged.Annotations)
			}
			return err
		}, []string{"vmi-create"}},
		{"the same with a forged key", func() error {
			forged := n.bare("forged", map[string]string{floatip.AnnotationAddress: n.address(1)})
			err := n.admin.Create(n.ctx, forged)
			if err == nil && forged.Annotations[floatip.AnnotationAddress] != "" {
				err = fmt.Errorf("the instance has %v", forged.Annotations)
			}
			return err
		}, []string{"vmi-create"}},
		{"a temporary pod", func() error {
			return controller.Create(n.ctx, pod("temporary", launcher, map[string]string{
				floatip.AnnotationAddress: n.address(1), "kubevirt.io/ephemeral-provisioning": "true",
			}))
		}, nil},
		{"a launcher with a description alone", func() error {
			p := pod("described", launcher, map[string]string{floatip.AnnotationNAT: "{}"})
			err := controller.Create(n.ctx, p, client.DryRunAll)
			if err == nil && p.Annotations[floatip.AnnotationNAT] != "" {
				err = fmt.Errorf("the pod has %v", p.Annotations)
			}
			return err
		}, []string{"pod-create"}},
		{"the target of a migration with an address", func() error {
			return controller.Create(n.ctx, pod("carrying", target, map[string]string{floatip.AnnotationAddress: n.address(1)}))
		}, []string{"pod-create"}},
	} {
		before := n.calls(n.ns)
		if err := tc.do(); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		now := n.calls(n.ns)[len(before):]
		if diff := cmp.Diff(tc.want, handlers(now), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: hooks that were called (-want +got):\n%s\nin all: %q", tc.name, diff, now)
		}
	}
	// The system's namespaces are left alone, whatever their labels say.
	for _, system := range []string{"floatip-system", "kubevirt", "kube-system", "kube-public", "kube-node-lease"} {
		n.mustKubectl("", "label", "namespace", system, floatip.LabelEnabled+"=true")
		defer n.mustKubectl("", "label", "namespace", system, floatip.LabelEnabled+"-")
		before := n.calls(system)
		vm := n.newVM("system", map[string]string{floatip.AnnotationPool: n.ns})
		vm.Namespace = system
		if err := n.admin.Create(n.ctx, vm, client.DryRunAll); err != nil || vm.Annotations[floatip.AnnotationAddress] != "" {
			t.Errorf("a VM in %s: %v, annotations %v", system, err, vm.Annotations)
		}
		forged := n.newVM("forged", map[string]string{floatip.AnnotationAddress: n.address(1)})
		forged.Namespace = system
		wantRefusal(t, "a forged key in "+system, n.admin.Create(n.ctx, forged, client.DryRunAll), "is written by floatip only")
		trusted := n.newVM("trusted", map[string]string{floatip.AnnotationAddress: n.address(1), floatip.AnnotationClaim: strings.Repeat("0", 32)})
		trusted.Namespace = system
		if err := another.Create(n.ctx, trusted, client.DryRunAll); err != nil {
			t.Errorf("a VM with floatip's keys in %s, by KubeVirt: %v", system, err)
		}
		instance := n.bare("forged", map[string]string{floatip.AnnotationAddress: n.address(1)})
		instance.Namespace = system
		wantRefusal(t, "a forged key of an instance in "+system, n.admin.Create(n.ctx, instance, client.DryRunAll), "is written by floatip only")
		if calls := n.calls(system)[len(before):]; len(calls) > 0 {
			t.Errorf("%s: %q were called", system, calls)
		}
	}
	// The whole life of a VM where nobody opted in: it starts, KubeVirt makes instance and pod, it goes.
	running := inQuiet("running")
	running.Spec.RunStrategy = &always
	if err := n.admin.Create(n.ctx, running); err != nil {
		t.Fatal(err)
	}
	n.wait("the pod of a VM that asks for nothing", func(ctx context.Context) error {
		var pods corev1.PodList
		err := n.admin.List(ctx, &pods, client.InNamespace(quiet))
		if err == nil && len(pods.Items) == 0 {
			err = errors.New("there is none")
		}
		return err
	})
	if err := n.admin.Delete(n.ctx, running); err != nil {
		t.Error(err)
	}
	// A launcher that carries an address, as the target of a migration after the namespace lost its label.
	lost := pod("lost", target, map[string]string{floatip.AnnotationAddress: n.address(1)})
	lost.Namespace = quiet
	if err := controller.Create(n.ctx, lost, client.DryRunAll); err != nil {
		t.Error(err)
	}
	if calls := n.calls(quiet); len(calls) > 0 {
		t.Errorf("a namespace that did not opt in: %q were called", calls)
	}
}
