package e2e

import (
	"context"
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/story"
)

// ovn is what Kube-OVN would see and do: its definitions are installed, itself it is not.
type ovn struct {
	*story.Story
	t *testing.T
}

// await reads an object of Kube-OVN until it fits; one that does not exist is nil.
func (o ovn) await(what, kind, name string, fits func(*unstructured.Unstructured) bool) *unstructured.Unstructured {
	o.t.Helper()
	var found *unstructured.Unstructured
	err := process.Wait(bounded(o.t), nil, what, func(ctx context.Context) error {
		object := ovnObject(kind, name)
		err := o.Client.Get(ctx, client.ObjectKey{Name: name}, object)
		if client.IgnoreNotFound(err) != nil {
			return err
		}
		if found = object; err != nil {
			found = nil
		}
		if !fits(found) {
			return fmt.Errorf("%s %s is %v", kind, name, found)
		}
		return nil
	})
	if err != nil {
		o.t.Fatal(err)
	}
	return found
}

func ovnObject(kind, name string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{}}}
	o.SetAPIVersion("kubeovn.io/v1")
	o.SetKind(kind)
	o.SetName(name)
	return o
}

func there(o *unstructured.Unstructured) bool { return o != nil }
func gone(o *unstructured.Unstructured) bool  { return o == nil }
func going(o *unstructured.Unstructured) bool { return o != nil && o.GetDeletionTimestamp() != nil }

// makeReady does what Kube-OVN does with an object that it has carried out.
func (o ovn) makeReady(object *unstructured.Unstructured) {
	o.t.Helper()
	ctx := bounded(o.t)
	finalizer := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":["kubeovn.io/kube-ovn-controller"]}}`))
	if err := o.Client.Patch(ctx, object, finalizer); err != nil {
		o.t.Fatal(err)
	}
	ready := client.RawPatch(types.MergePatchType, []byte(`{"status":{"ready":true}}`))
	if err := o.Client.Status().Patch(ctx, object, ready); err != nil {
		o.t.Fatal(err)
	}
}

func (o ovn) finalize(object *unstructured.Unstructured) {
	o.t.Helper()
	none := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`))
	if err := o.Client.Patch(bounded(o.t), object, none); client.IgnoreNotFound(err) != nil {
		o.t.Fatal(err)
	}
}

// awaitNAT waits until the address says this reason.
func (o ovn) awaitNAT(address, reason string) {
	o.t.Helper()
	err := process.Wait(bounded(o.t), nil, address+" to be "+reason, func(ctx context.Context) error {
		var f v1alpha1.FloatingIP
		if err := o.Client.Get(ctx, client.ObjectKey{Name: address}, &f); err != nil {
			return err
		}
		if c := meta.FindStatusCondition(f.Status.Conditions, v1alpha1.ConditionNATReady); c == nil || c.Reason != reason {
			return fmt.Errorf("%s is %+v", v1alpha1.ConditionNATReady, c)
		}
		return nil
	})
	if err != nil {
		o.t.Fatal(err)
	}
}

// kubeOVN: the driver's objects on the real API server, from a cluster without Kube-OVN's definitions to a deleted VM.
func kubeOVN(t *testing.T, s *story.Story) {
	ctx, o := bounded(t), ovn{s, t}
	no := false
	pool := &v1alpha1.FloatingIPPool{ObjectMeta: metav1.ObjectMeta{Name: "ovn"}, Spec: v1alpha1.FloatingIPPoolSpec{
		Addresses: []string{"192.168.100.120-192.168.100.121"}, AutoAssign: &no, Delivery: floatip.DeliveryKubeOVN,
	}}
	wantRefusal(t, "a pool without a subnet", s.Client.Create(ctx, pool), "spec.kubeOVN.externalSubnet")
	pool.Spec.KubeOVN = &v1alpha1.KubeOVN{ExternalSubnet: "external"}
	if err := s.Client.Create(ctx, pool); err != nil {
		t.Fatal(err)
	}
	delivered := func(want metav1.ConditionStatus) func(v1alpha1.FloatingIPPoolStatus) bool {
		return func(p v1alpha1.FloatingIPPoolStatus) bool {
			return meta.IsStatusConditionPresentAndEqual(p.Conditions, "DeliveryReady", want)
		}
	}
	awaitPool(t, s, "ovn", delivered(metav1.ConditionFalse)) // and the webhook lives on
	for _, args := range [][]string{{"-f", s.Path("test", "testdata", "kubeovn.yaml")}, {"-k", s.Path("manifests", "kubeovn")}} {
		if _, err := s.Kubectl(ctx, "", append([]string{"apply"}, args...)...); err != nil {
			t.Fatal(err)
		}
	}
	awaitPool(t, s, "ovn", delivered(metav1.ConditionTrue))

	_, err := createVM(ctx, s, story.Namespace, "ovn-listed", map[string]string{
		floatip.AnnotationPool: "ovn", floatip.AnnotationAllow: "tcp/22",
	})
	wantRefusal(t, "an allow list that nobody enforces", err, "metadata.annotations[floatip.io/allow]", "every host reaches the VM")
	foreign := ovnObject("OvnEip", "floatip-192.168.100.121")
	if err := s.Client.Create(ctx, foreign); err != nil {
		t.Fatal(err)
	}
	second, err := createVM(ctx, s, story.Namespace, "ovn-foreign", map[string]string{
		floatip.AnnotationPool: "ovn", floatip.AnnotationRequest: "192.168.100.121",
	})
	if err != nil {
		t.Fatal(err)
	}
	vm, err := createVM(ctx, s, story.Namespace, "ovn", fromPool("ovn"))
	if err != nil {
		t.Fatal(err)
	}
	const address, name = "192.168.100.120", "floatip-192.168.100.120"
	eip := o.await("the address in Kube-OVN", "OvnEip", name, there)
	if got, _, _ := unstructured.NestedString(eip.Object, "spec", "v4Ip"); got != address {
		t.Errorf("the OvnEip is for %s, want %s", got, address)
	}
	o.awaitNAT(address, "WaitingForKubeOVN")
	o.makeReady(eip)
	o.awaitNAT(address, "NotRunning")
	o.awaitNAT("192.168.100.121", "ForeignObject")

	if err := s.Rig.KubeVirt.Start(ctx, vm.Namespace, vm.Name); err != nil {
		t.Fatal(err)
	}
	if err := s.Client.Create(ctx, ovnObject("IP", "ovn."+story.Namespace)); err != nil {
		t.Fatal(err)
	}
	fip := o.await("the translation", "OvnFip", name, there)
	if got, _, _ := unstructured.NestedString(fip.Object, "spec", "ipName"); got != "ovn."+story.Namespace {
		t.Errorf("the OvnFip leads to %s, want the VM's IP object", got)
	}
	o.makeReady(fip)
	o.awaitNAT(address, "Translated")

	if err := s.KillWebhook(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Client.Delete(ctx, vm); err != nil {
		t.Fatal(err)
	}
	o.await("the translation to go", "OvnFip", name, going)
	if o.await("the address", "OvnEip", name, there).GetDeletionTimestamp() != nil {
		t.Error("the address was given back before the translation was gone")
	}
	o.finalize(fip)
	o.await("the address to be given back", "OvnEip", name, going)
	o.finalize(eip)
	o.await("nothing to stay", "OvnEip", name, gone)
	o.await("nothing to stay", "OvnFip", name, gone)

	if err := s.Client.Delete(ctx, second); err != nil {
		t.Fatal(err)
	}
	if still := o.await("the foreign object", "OvnEip", foreign.GetName(), there); still.GetUID() != foreign.GetUID() || going(still) {
		t.Error("floatip touched an OvnEip that is not its own")
	}
}
