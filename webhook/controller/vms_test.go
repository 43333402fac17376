package controller

import (
	"context"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
)

// A stored VM: its address is Bound, its owner is told once, and the FloatingIP object shows it.
func TestBind(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.create(vm("a", "uid-a", w.commit("a", "uid-a")))
	if got := w.state(); got != "Pending uid-a" {
		t.Fatal(got)
	}
	for range 3 {
		w.look()
	}
	if got := w.state(); got != "Bound uid-a" {
		t.Error(got)
	}
	if diff := cmp.Diff([]string{"192.168.100.50 uid-a Bound"}, w.floatingIPs()); diff != "" {
		t.Errorf("FloatingIPs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"Normal FloatingIPAllocated floating IP 192.168.100.50 of pool provider"}, w.events()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// The API server chose another name after the last validation that answered: the claim in the stored object decides.
func TestBindByClaim(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.create(vm("a", "uid-stored", w.commit("a", "uid-tried")))
	w.look()
	if got := w.state(); got != "Bound uid-stored" {
		t.Error(got)
	}
}

// What the node agent writes stays: the webhook sets the first phase only.
func TestStatusOfTheAgentStays(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.create(vm("a", "uid-a", w.commit("a", "uid-a")))
	w.look()
	ip := &v1alpha1.FloatingIP{ObjectMeta: metav1.ObjectMeta{Name: "192.168.100.50"}}
	patch := mergeStatus(t, map[string]any{"phase": "Ready", "node": "node1", "pod": "virt-launcher-a-1"})
	if err := w.client.Status().Patch(t.Context(), ip, patch); err != nil {
		t.Fatal(err)
	}
	w.look()
	if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(ip), ip); err != nil {
		t.Fatal(err)
	}
	if ip.Status.Phase != v1alpha1.PhaseReady || ip.Status.Node != "node1" || ip.Status.Pod != "virt-launcher-a-1" {
		t.Errorf("%+v", ip.Status)
	}
}

// An address is released when VM, VMI and every pod that translates it are gone, in whatever order they go.
func TestRelease(t *testing.T) {
	for _, order := range [][]string{{"vm", "vmi", "pod"}, {"pod", "vmi", "vm"}, {"vmi", "vm", "pod"}} {
		t.Run(order[0]+" first", func(t *testing.T) {
			w := newWorld(t)
			w.start()
			objects := map[string]client.Object{
				"vm": vm("a", "uid-a", w.commit("a", "uid-a")), "vmi": vmi("a", "uid-a"), "pod": launcher(t, "virt-launcher-a-1", "uid-a"),
			}
			for _, o := range objects {
				w.create(o)
			}
			w.look()
			for i, name := range order {
				if got := w.state(); got != "Bound uid-a" {
					t.Fatalf("after %v: %s", order[:i], got)
				}
				w.remove(objects[name])
				w.look()
			}
			if got := w.state(); got != "Released uid-a" {
				t.Error(got)
			}
			if got := w.floatingIPs(); len(got) > 0 {
				t.Errorf("still shown: %v", got)
			}
		})
	}
}

// A pod whose description a later release wrote carries its address, though what stands there is not understood.
func TestPodOfALaterReleaseKeepsItsAddress(t *testing.T) {
	w := newWorld(t)
	w.start()
	object, pod := vm("a", "uid-a", w.commit("a", "uid-a")), launcher(t, "virt-launcher-a-1", "uid-a")
	pod.Annotations[floatip.AnnotationNAT] = strings.Replace(pod.Annotations[floatip.AnnotationNAT], `"bindings":[{`, `"bindings":[{"novel":1,`, 1)
	if _, err := floatip.ParsePodNAT([]byte(pod.Annotations[floatip.AnnotationNAT])); err == nil {
		t.Fatal("the description is understood")
	}
	w.create(object, pod)
	w.look()
	w.remove(object)
	w.look()
	if got := w.state(); got != "Bound uid-a" {
		t.Errorf("while the pod is there: %s", got)
	}
	w.remove(pod)
	w.look()
	if got := w.state(); got != "Released uid-a" {
		t.Errorf("after it: %s", got)
	}
}

// kubectl delete --cascade=orphan takes the owner reference from the VMI and leaves guest and pod running.
func TestOrphanedGuestKeepsItsAddress(t *testing.T) {
	w := newWorld(t)
	w.start()
	object := vm("a", "uid-a", w.commit("a", "uid-a"))
	w.create(object, vmi("a", ""), launcher(t, "virt-launcher-a-1", "uid-a"))
	w.look()
	w.remove(object)
	w.look()
	if got := w.state(); got != "Bound uid-a" {
		t.Error(got)
	}
}

// A pod that was deleted by force, on a node that nobody reaches, may run on, and that node's agent answers for the address
// without the API server. Until it says that it stopped, or somebody says that the node is off, the address is held.
func TestForcedDeletionKeepsTheAddress(t *testing.T) {
	node := func() *corev1.Node { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}} }
	for name, tc := range map[string]struct {
		before, after func(w *world) // what is so when the pod is deleted, and what ends the waiting
		waits         bool
	}{
		"the agent says that it stopped": {
			func(w *world) { w.create(node()); w.announced("node1") }, func(w *world) { w.announced("") }, true,
		},
		"the Node object is deleted": {
			func(w *world) { w.create(node()); w.announced("node1") }, func(w *world) { w.remove(node()) }, true,
		},
		"the node is declared to be off": {
			func(w *world) { w.create(node()); w.announced("node1") },
			func(w *world) {
				off := node()
				patch := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"taints":[{"key":"node.kubernetes.io/out-of-service","effect":"NoExecute"}]}}`))
				if err := w.client.Patch(w.t.Context(), off, patch); err != nil {
					w.t.Fatal(err)
				}
			}, true,
		},
		"no node has it":       {func(w *world) { w.create(node()); w.announced("") }, nil, false},
		"its node is gone":     {func(w *world) { w.announced("node1") }, nil, false},
		"it was never carried": {func(w *world) { w.create(node()) }, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.start()
			object, pod := vm("a", "uid-a", w.commit("a", "uid-a")), launcher(t, "virt-launcher-a-1", "uid-a")
			w.create(object, pod)
			w.look()
			tc.before(w)
			w.remove(object, pod)
			again := w.look()
			if tc.waits {
				if got := w.state(); got != "Bound uid-a" || again.RequeueAfter == 0 {
					t.Fatalf("while a node may answer: %s, looks again after %s", got, again.RequeueAfter)
				}
				var ip v1alpha1.FloatingIP
				if err := w.client.Get(t.Context(), types.NamespacedName{Name: "192.168.100.50"}, &ip); err != nil {
					t.Fatal(err)
				}
				c := meta.FindStatusCondition(ip.Status.Conditions, v1alpha1.ConditionAllocated)
				if c == nil || c.Reason != v1alpha1.ReasonWaitsForNode || !strings.Contains(c.Message, "node1") || !strings.Contains(c.Message, "--stopped-on") {
					t.Errorf("the object says %+v", c)
				}
				w.vms.Cluster.Live = onlyNodesFail{w.client}
				if _, err := w.vms.Reconcile(t.Context(), requestOf("a")); err == nil || w.state() != "Bound uid-a" {
					t.Errorf("when the node cannot be read: %s, %v", w.state(), err)
				}
				w.vms.Cluster.Live = w.client
				tc.after(w)
				w.look()
			}
			if got := w.state(); got != "Released uid-a" {
				t.Error(got)
			}
		})
	}
}

// onlyNodesFail is an API server that answers about everything but nodes.
type onlyNodesFail struct{ client.Reader }

func (r onlyNodesFail) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	if _, ok := o.(*corev1.Node); ok {
		return context.DeadlineExceeded
	}
	return r.Reader.Get(ctx, key, o, opts...)
}

// announced is what the node's agent writes into the object of 192.168.100.50.
func (w *world) announced(node string) {
	w.t.Helper()
	ip := &v1alpha1.FloatingIP{ObjectMeta: metav1.ObjectMeta{Name: "192.168.100.50"}}
	if err := w.client.Status().Patch(w.t.Context(), ip, mergeStatus(w.t, map[string]any{"node": node})); err != nil {
		w.t.Fatal(err)
	}
}

// A new VM of the old name: what the old one held goes, what the new one holds stays.
func TestNameReuse(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.deleted("a", "uid-old")
	w.create(vm("a", "uid-new", w.commit("a", "uid-new")))
	w.look()
	w.look() // the object of the old one is gone, that of the new one is there
	if diff := cmp.Diff([]string{"192.168.100.51 uid-new Bound"}, w.floatingIPs()); diff != "" {
		t.Errorf("FloatingIPs (-want +got):\n%s", diff)
	}
	if got := w.state(); got != "Released uid-old" {
		t.Error(got)
	}
}

// The cache has not seen the VM yet: nothing is taken from it.
func TestPendingIsNotReleased(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.commit("a", "uid-a")
	w.look()
	if got := w.state(); got != "Pending uid-a" {
		t.Error(got)
	}
}

// lagging is a cache that has lost an object which the API server still has.
type lagging struct {
	client.Reader
	without types.UID
}

func (l lagging) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	if err := l.Reader.Get(ctx, key, o, opts...); err != nil {
		return err
	}
	if o.GetUID() == l.without {
		return notFound("virtualmachines", key.Name)
	}
	return nil
}

func TestCacheThatLagsReleasesNothing(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.create(vm("a", "uid-a", w.commit("a", "uid-a")))
	w.look()
	w.vms.Cluster.Cached = lagging{w.client, "uid-a"}
	_, err := w.vms.Reconcile(t.Context(), requestOf("a"))
	if err == nil {
		t.Error("no error, so nobody looks again")
	}
	if got := w.state(); got != "Bound uid-a" {
		t.Error(got)
	}
}

// A pool revision of KubeVirt rewrites the annotations of its VMs; floatip puts its own back and leaves the others.
func TestAnnotationsArePutBack(t *testing.T) {
	w := newWorld(t)
	w.start()
	own := w.commit("a", "uid-a")
	w.create(vm("a", "uid-a", map[string]string{"revision": "2", floatip.AnnotationAddress: "192.168.100.99"}))
	if _, err := w.ledger.Bind(t.Context(), floatip.Claim{}, floatip.Owner{Namespace: "vms", Name: "a", UID: "uid-a"}, ipam.Cause{}); err != nil {
		t.Fatal(err)
	}
	w.look()
	want := maps.Clone(own)
	want["revision"] = "2"
	if diff := cmp.Diff(want, w.vmAnnotations()); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
}

// Somebody deletes a FloatingIP object: it comes back. Somebody makes one that the ledger knows nothing of: it goes.
// TestAllocatedIsShown beside what the agent wrote.
func TestAllocatedIsShown(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.create(vm("a", "uid-a", w.commit("a", "uid-a")))
	for range 2 {
		w.look()
		var ip v1alpha1.FloatingIP
		if err := w.client.Get(t.Context(), types.NamespacedName{Name: "192.168.100.50"}, &ip); err != nil {
			t.Fatal(err)
		}
		c := meta.FindStatusCondition(ip.Status.Conditions, v1alpha1.ConditionAllocated)
		if c == nil || c.Status != metav1.ConditionTrue || c.Reason != "Bound" || !strings.Contains(c.Message, "vms/a") {
			t.Errorf("conditions %+v, want Allocated with the VM's name", ip.Status.Conditions)
		}
		status := map[string]any{"phase": "Ready", "conditions": append(ip.Status.Conditions, metav1.Condition{
			Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready", LastTransitionTime: metav1.NewTime(epoch),
		})}
		if err := w.client.Status().Patch(t.Context(), &ip, mergeStatus(t, status)); err != nil {
			t.Fatal(err)
		}
	}
	if have := w.floatingIPs(); len(have) != 1 || have[0] != "192.168.100.50 uid-a Ready" {
		t.Errorf("objects %v: the agent's word was taken back", have)
	}
}

func TestFloatingIPsFollowTheLedger(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.create(vm("a", "uid-a", w.commit("a", "uid-a")))
	w.look()
	w.remove(&v1alpha1.FloatingIP{ObjectMeta: metav1.ObjectMeta{Name: "192.168.100.50"}})
	w.create(&v1alpha1.FloatingIP{
		ObjectMeta: metav1.ObjectMeta{Name: "192.168.100.58"},
		Spec: v1alpha1.FloatingIPSpec{
			Address: "192.168.100.58", Pool: "provider", VM: v1alpha1.VMReference{Namespace: "vms", Name: "a", UID: "uid-a"},
		},
	})
	w.look()
	if diff := cmp.Diff([]string{"192.168.100.50 uid-a Bound"}, w.floatingIPs()); diff != "" {
		t.Errorf("FloatingIPs (-want +got):\n%s", diff)
	}
}

func TestSweep(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.commit("a", "uid-a")
	stored := w.commit("b", "uid-b")
	w.create(vm("b", "uid-b", stored), vm("a", "uid-of-another-a", nil))
	for _, tc := range []struct {
		after time.Duration
		want  string
	}{{80 * time.Second, "Pending uid-a"}, {100 * time.Second, "Released uid-a"}} {
		w.now = epoch.Add(tc.after)
		if err := w.pending.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := w.state(); got != tc.want {
			t.Errorf("after %s: %s, want %s", tc.after, got, tc.want)
		}
	}
	if line, _ := w.ledger.Lookup(address(51)); line.State != ipam.Bound {
		t.Errorf("the VM that exists: %+v", line)
	}
}

// Of two tries to create one VM the ledger knows the last one, and the API server may have stored the other: it shows the
// claim.
func TestSweepFindsTheOtherTry(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.create(vm("a", "uid-1", w.commit("a", "uid-2")))
	w.now = epoch.Add(100 * time.Second)
	if err := w.pending.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if line, _ := w.ledger.Lookup(address(50)); line.State != ipam.Bound || line.Owner.UID != "uid-1" {
		t.Errorf("the ledger has %+v", line)
	}
}

// unreachable is an API server that does not answer.
type unreachable struct{ client.Reader }

func (unreachable) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	return context.DeadlineExceeded
}

func (unreachable) List(context.Context, client.ObjectList, ...client.ListOption) error {
	return context.DeadlineExceeded
}

// meanwhile does something before each read of an object.
type meanwhile struct {
	client.Reader
	do func()
}

func (m meanwhile) Get(ctx context.Context, key client.ObjectKey, o client.Object, options ...client.GetOption) error {
	m.do()
	return m.Reader.Get(ctx, key, o, options...)
}

// TestSweepOfWhatWasBound: a VM is found at last, bound, and deleted while the sweep looks for it. That it is gone says nothing of its
// pods, and of the node that answers for the address: whoever releases what is Bound looks for these.
func TestSweepOfWhatWasBound(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.commit("a", "uid-a")
	w.now = epoch.Add(100 * time.Second)
	w.pending.Cluster.Live = meanwhile{w.pending.Cluster.Live, func() {
		owner := floatip.Owner{Namespace: "vms", Name: "a", UID: "uid-a"}
		if _, err := w.ledger.Bind(t.Context(), floatip.Claim{}, owner, ipam.Cause{Reason: "VM is stored"}); err != nil {
			t.Error(err)
		}
	}}
	if err := w.pending.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.state(); got != "Bound uid-a" {
		t.Errorf("after the sweep: %s, want it Bound", got)
	}
}

func TestSweepWithoutAnAnswerFreesNothing(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.commit("a", "uid-a")
	w.now = epoch.Add(time.Hour)
	w.pending.Cluster.Live = unreachable{}
	if err := w.pending.Sweep(t.Context()); err == nil {
		t.Error("no error")
	}
	if got := w.state(); got != "Pending uid-a" {
		t.Error(got)
	}
}

// quorum is an API server that must be asked for what is so now: a read with a resource version may be answered from a
// cache of the API server (Kubernetes API concepts, resource versions).
type quorum struct {
	client.Reader
	t    *testing.T
	gets *int
}

func (q quorum) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	*q.gets++
	if options := (&client.GetOptions{}).ApplyOptions(opts); options.Raw != nil && options.Raw.ResourceVersion != "" {
		q.t.Errorf("%s is read at version %q", key, options.Raw.ResourceVersion)
	}
	return q.Reader.Get(ctx, key, o, opts...)
}

// emptied is a cache that shows nothing, as after a list that came back empty.
type emptied struct{ client.Reader }

func (emptied) Get(_ context.Context, key client.ObjectKey, _ client.Object, _ ...client.GetOption) error {
	return notFound("anything", key.Name)
}

func (emptied) List(context.Context, client.ObjectList, ...client.ListOption) error { return nil }

// What an old promise is for is asked of the API server itself, whatever the cache shows.
func TestSweepAsksForAQuorum(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.create(vm("a", "uid-a", w.commit("a", "uid-a")))
	gets := 0
	w.pending.Cluster = Cluster{Cached: emptied{}, Live: quorum{w.client, t, &gets}}
	w.now = epoch.Add(91 * time.Second)
	if err := w.pending.Sweep(t.Context()); err != nil || gets == 0 {
		t.Errorf("%v, %d reads", err, gets)
	}
	if got := w.state(); got != "Bound uid-a" {
		t.Errorf("a VM that is stored: %s", got)
	}
}

// A cache that shows nothing at all releases nothing, and forgets no object that is shown.
func TestEmptyListReleasesNothing(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.create(vm("a", "uid-a", w.commit("a", "uid-a")), vmi("a", "uid-a"), launcher(t, "virt-launcher-a-1", "uid-a"))
	w.look()
	gets := 0
	w.vms.Cluster = Cluster{Cached: emptied{}, Live: quorum{w.client, t, &gets}}
	if _, err := w.vms.Reconcile(t.Context(), requestOf("a")); err == nil || gets == 0 {
		t.Errorf("%v after %d live reads, want an error, so that somebody looks again", err, gets)
	}
	if got := w.state(); got != "Bound uid-a" {
		t.Error(got)
	}
	if got := w.floatingIPs(); len(got) != 1 {
		t.Errorf("shown: %v", got)
	}
}

// withoutLists is an API server that answers about single objects only.
type withoutLists struct{ client.Reader }

func (withoutLists) List(context.Context, client.ObjectList, ...client.ListOption) error {
	return context.DeadlineExceeded
}

// VM and VMI are gone, and whether a pod is left cannot be listed: nothing is released.
func TestFailedListReleasesNothing(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.deleted("a", "uid-a")
	for name, cluster := range map[string]Cluster{
		"cache": {Cached: withoutLists{w.client}, Live: w.client}, "API server": {Cached: w.client, Live: withoutLists{w.client}},
	} {
		w.vms.Cluster = cluster
		if _, err := w.vms.Reconcile(t.Context(), requestOf("a")); err == nil {
			t.Errorf("%s: no error, so nobody looks again", name)
		}
		if got := w.state(); got != "Bound uid-a" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// The VM is gone from the cache, and the API server does not answer: nothing is released.
func TestReleaseWithoutAnAnswer(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.deleted("a", "uid-a")
	w.vms.Cluster.Live = unreachable{}
	if _, err := w.vms.Reconcile(t.Context(), requestOf("a")); err == nil {
		t.Error("no error, so nobody looks again")
	}
	if got := w.state(); got != "Bound uid-a" {
		t.Error(got)
	}
	w.vms.Cluster.Live = w.client
	w.look()
	if got := w.state(); got != "Released uid-a" {
		t.Error(got)
	}
}
