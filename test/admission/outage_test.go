package admission

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/webhook/admin"
)

// etcdAnswerWithheld: the API server gives a create up, and says so, while etcd has stored it. The VM holds its address,
// once, also after the promise got old while nobody could tell whether there is such a VM.
func etcdAnswerWithheld(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	n.bound(n.create("first", nil)) // what admission reads is cached now
	n.settledVM("first")
	set, err := kubernetes.NewForConfig(w.cluster.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(n.newVM("vm", request(n.address(5))))
	if err != nil {
		t.Fatal(err)
	}
	release := w.etcd.hold()
	defer release()
	err = set.Discovery().RESTClient().Post().AbsPath("/apis/kubevirt.io/v1/namespaces/"+n.ns+"/virtualmachines").
		SetHeader("Content-Type", "application/json").Param("timeout", "3s").Body(body).Do(n.ctx).Error()
	if !apierrors.IsTimeout(err) {
		t.Fatalf("create while etcd does not answer: %v, want a timeout", err)
	}
	pending := n.lines(ipam.Pending)
	if len(pending) != 1 || pending[0].Address.String() != n.address(5) {
		t.Fatalf("the ledger has %v, want %s Pending", pending, n.address(5))
	}
	for time.Since(pending[0].Since) < pendingAge+pendingAge/2 {
		if now := n.lines(ipam.Pending); len(now) != 1 {
			t.Fatalf("nobody can tell whether the VM is stored, and the ledger has %v", now)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-n.ctx.Done():
			t.Fatal(n.ctx.Err())
		}
	}
	release()
	vm := new(kubevirtv1.VirtualMachine)
	n.wait("the VM", func(ctx context.Context) error {
		return n.admin.Get(ctx, client.ObjectKey{Namespace: n.ns, Name: "vm"}, vm)
	})
	if got := n.bound(vm); got != n.address(5) || string(vm.UID) != pending[0].VM.UID {
		t.Errorf("the VM holds %s with UID %s, the promise was %v", got, vm.UID, pending[0])
	}
	if err := n.admin.Create(n.ctx, n.newVM("vm", request(n.address(5)))); !apierrors.IsAlreadyExists(err) {
		t.Errorf("whoever tries again: %v, want that it exists", err)
	}
	if lines := n.lines(ipam.Pending, ipam.Bound); len(lines) != 2 {
		t.Errorf("two VMs, and the ledger has %v", lines)
	}
}

// webhookDown: without floatip nobody is affected who did not ask, and what is there can be changed and deleted.
func webhookDown(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	open := n.ns + "-open"
	n.addNamespace(open, false)
	held, going := n.create("held", nil), n.create("going", nil)
	address := n.bound(held)
	n.bound(going)
	running := n.newVM("running", nil)
	running.Spec.RunStrategy = new(kubevirtv1.RunStrategyAlways)
	if err := n.admin.Create(n.ctx, running); err != nil {
		t.Fatal(err)
	}
	n.awaitPod(n.ns, "running")
	// Between an instance and its pod: the pod is not made before the webhook is away.
	between := w.tenant(t, 10)
	quota := between.noPods()
	waiting := between.newVM("waiting", nil)
	waiting.Spec.RunStrategy = new(kubevirtv1.RunStrategyAlways)
	if err := n.admin.Create(n.ctx, waiting); err != nil {
		t.Fatal(err)
	}
	between.awaitKubeVirt("waiting", "exceeded quota: no-pods")
	if err := w.stopWebhook(n.ctx); err != nil {
		t.Fatal(err)
	}
	if err := n.admin.Delete(n.ctx, quota); err != nil {
		t.Error(err)
	}
	between.awaitKubeVirt("waiting", "pod-create.floatip.io")
	elsewhere := n.newVM("vm", nil)
	elsewhere.Namespace = open
	elsewhere.Spec.RunStrategy = new(kubevirtv1.RunStrategyAlways)
	if err := n.admin.Create(n.ctx, elsewhere); err != nil {
		t.Errorf("a VM of a namespace that did not opt in: %v", err)
	}
	n.awaitPod(open, "vm") // it starts, too
	n.create("opted-out", map[string]string{floatip.LabelEnabled: "false"})
	out := n.optedOut("started") // it starts, too, with a template that opts out
	if err := n.admin.Create(n.ctx, out); err != nil {
		t.Errorf("a VM whose template opted out: %v", err)
	}
	n.awaitPod(n.ns, "started")
	if err := n.admin.Create(n.ctx, n.bare("bare", nil)); err != nil {
		t.Errorf("an instance that no VM made: %v", err)
	}
	n.awaitPod(n.ns, "bare") // it starts, too
	err := n.admin.Create(n.ctx, n.newVM("refused", nil))
	wantRefusal(t, "a VM that asks", err, `"vm-create.floatip.io"`, "floatip-webhook.floatip-system.svc")
	wantRefusal(t, "a change of a pool", n.setPool(n.ns, map[string]any{"drain": true}), `"pool.floatip.io"`)

	for what, do := range map[string]func() error{
		"a label":      func() error { return n.patch("held", `{"metadata":{"labels":{"a":"b"}}}`) },
		"a finalizer":  func() error { return n.patch("held", `{"metadata":{"finalizers":["example.com/one"]}}`) },
		"the template": func() error { return n.patch("held", `{"spec":{"template":{"metadata":{"annotations":{"a":"b"}}}}}`) },
		"no finalizer": func() error { return n.patch("held", `{"metadata":{"finalizers":null}}`) },
		"the status": func() error {
			return n.admin.Status().Patch(n.ctx, held.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(`{"status":{"created":false}}`)))
		},
	} {
		if err := do(); err != nil {
			t.Errorf("change %s of a VM that holds an address: %v", what, err)
		}
	}
	err = n.patch("held", `{"metadata":{"annotations":{"floatip.io/address":"`+n.address(9)+`"}}}`)
	wantRefusal(t, "a change of floatip's key", err, "metadata.annotations[floatip.io/address] is written by floatip only")
	err = n.patch("held", `{"metadata":{"annotations":{"floatip.io/claim":null}}}`)
	wantRefusal(t, "a removal of floatip's key", err, "metadata.annotations[floatip.io/claim] is written by floatip only")
	n.remove(going)
	n.remove(running) // instance and pod go first
	if err := w.kubevirt.Start(n.ctx, n.ns, "held"); err != nil {
		t.Errorf("start a VM that holds an address: %v", err)
	}
	n.awaitKubeVirt("held", "vmi-create.floatip.io")

	if err := w.startWebhook(n.ctx); err != nil {
		t.Fatal(err)
	}
	if got := n.bound(n.get("held")); got != address {
		t.Errorf("the VM had %s, has %s", address, got)
	}
	n.free(going.Annotations[floatip.AnnotationAddress])
	n.free(running.Annotations[floatip.AnnotationAddress])
	if pod := n.awaitPod(n.ns, "held"); pod.Annotations[floatip.AnnotationNAT] == "" {
		t.Errorf("the pod of the VM that had to wait has no %s: %v", floatip.AnnotationNAT, pod.Annotations)
	}
	if pod := n.awaitPod(between.ns, "waiting"); pod.Annotations[floatip.AnnotationNAT] == "" {
		t.Errorf("the pod that had to wait has no %s: %v", floatip.AnnotationNAT, pod.Annotations)
	}
	n.bound(n.create("refused", nil))
}

// noPods keeps pods from being made in the tenant's namespace.
func (n *tenant) noPods() *corev1.ResourceQuota {
	n.t.Helper()
	quota := &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Namespace: n.ns, Name: "no-pods"},
		Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}},
	}
	if err := n.admin.Create(n.ctx, quota); err != nil {
		n.t.Fatal(err)
	}
	probe := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: n.ns, Name: "probe"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "none"}}},
	}
	n.wait("the quota to count", func(ctx context.Context) error {
		err := n.admin.Create(ctx, probe.DeepCopy(), client.DryRunAll)
		if err == nil || !strings.Contains(err.Error(), "exceeded quota") {
			return fmt.Errorf("a pod: %v", err)
		}
		return nil
	})
	return quota
}

// awaitKubeVirt waits until KubeVirt says about a VM, or its instance, that it could not make what it needs, and why.
func (n *tenant) awaitKubeVirt(vm, why string) {
	n.t.Helper()
	n.wait("KubeVirt to say "+why+" about "+vm, func(ctx context.Context) error {
		var list corev1.EventList
		if err := n.admin.List(ctx, &list, client.InNamespace(n.ns)); err != nil {
			return err
		}
		for _, e := range list.Items {
			if e.InvolvedObject.Name == vm && e.Reason == "FailedCreate" && strings.Contains(e.Message, why) {
				return nil
			}
		}
		return errors.New("it does not")
	})
}

// awaitPod waits for the virt-launcher pod of a VM.
func (n *tenant) awaitPod(namespace, vm string) (pod corev1.Pod) {
	n.t.Helper()
	n.wait("the pod of VM "+vm, func(ctx context.Context) error {
		var pods corev1.PodList
		if err := n.admin.List(ctx, &pods, client.InNamespace(namespace)); err != nil {
			return err
		}
		for _, pod = range pods.Items {
			if owner := metav1.GetControllerOf(&pod); owner != nil && owner.Name == vm {
				return nil
			}
		}
		return fmt.Errorf("none among %d", len(pods.Items))
	})
	return pod
}

func (n *tenant) patch(vm, merge string) error {
	return n.admin.Patch(n.ctx, n.newVM(vm, nil), client.RawPatch("application/merge-patch+json", []byte(merge)))
}

// webhookSlow: slow answers delay a create; an answer that is too late is a refusal that costs nobody the address, also
// if the ledger had it already.
func webhookSlow(t *testing.T, w *world) {
	n := w.tenant(t, 10, noRest)
	w.hook.slow(500 * time.Millisecond)
	begun := time.Now()
	n.bound(n.create("slow", nil))
	t.Logf("with answers that are late by 0.5 s a create took %s", time.Since(begun).Round(100*time.Millisecond))
	w.hook.slow(0)

	// After the mutating call, the validating one is answered too late.
	var release func()
	n.mutating(func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		if r.Name == "late" && release == nil {
			release = w.hook.hold()
		}
		return allowed()
	})
	err := n.admin.Create(n.ctx, n.newVM("late", request(n.address(5))))
	release()
	wantRefusal(t, "a commit whose answer is too late", err, `"vm-commit.floatip.io"`, "deadline exceeded")
	tried := func(l admin.Line) bool { return l.Address.String() == n.address(5) && l.VM.Name == "late" }
	if lines := n.lines(); !slices.ContainsFunc(lines, tried) { // Pending, or freed already
		t.Errorf("the ledger has %v, want %s of VM late", lines, n.address(5))
	}
	n.free(n.address(5))
	vm := n.create("late", request(n.address(5)))
	n.bound(vm)
}
