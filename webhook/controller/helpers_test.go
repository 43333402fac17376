package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook"
	"floatip.io/floatip/webhook/kubevirt"
)

// world is a cluster's store, a real ledger in a file, and the controllers between them.
type world struct {
	t        *testing.T
	client   client.WithWatch
	ledger   *ipam.Ledger
	now      time.Time // of the ledger
	recorder *events.FakeRecorder
	starter  *Starter
	gate     *webhook.Gate
	vms      *VMs
	pools    *Pools
	pending  *Pending
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// newWorld has the pool "provider" with 192.168.100.50 to .59, the opted-in namespace "vms", and the objects. The starter has not run.
func newWorld(t *testing.T, objects ...client.Object) *world {
	t.Helper()
	return newWorldOn(t, filepath.Join(t.TempDir(), "ledger.db"), objects...)
}

// newWorldOn is newWorld with the ledger at path, which an earlier process may have left.
func newWorldOn(t *testing.T, path string, objects ...client.Object) *world {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme, kubevirt.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	scheme.AddKnownTypeWithName(vmKind, &unstructured.Unstructured{})
	scheme.AddKnownTypeWithName(kubevirt.GroupVersion.WithKind("VirtualMachineList"), &unstructured.UnstructuredList{})
	w := &world{t: t, now: epoch, recorder: events.NewFakeRecorder(100), gate: &webhook.Gate{}}
	w.client = fake.NewClientBuilder().WithScheme(scheme).
		WithStatusSubresource(&v1alpha1.FloatingIP{}, &v1alpha1.FloatingIPPool{}).
		WithIndex(&v1alpha1.FloatingIP{}, indexVM, func(o client.Object) []string {
			vm := o.(*v1alpha1.FloatingIP).Spec.VM
			return []string{vm.Namespace + "/" + vm.Name}
		}).
		WithIndex(metadataOf(podKind), indexRefused, refusedPods).
		WithObjects(append(objects, pool("provider", "192.168.100.50-192.168.100.59"), namespace("vms", "true"))...).Build()
	ledger, err := ipam.Open(path, ipam.Options{Now: func() time.Time { return w.now }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		report, err := ledger.Check(context.Background(), ipam.Against{})
		if err := errors.Join(err, report.Err()); err != nil && !errors.Is(err, ipam.ErrClosed) {
			t.Error(err)
		}
		ledger.Close()
	})
	w.ledger = ledger

	reader := Cluster{Cached: w.client, Live: w.client}
	metrics := NewMetrics(prometheus.NewRegistry(), ledger)
	told := Events{Recorder: w.recorder}
	w.starter = NewStarter()
	w.starter.Ledger, w.starter.Cluster, w.starter.Events, w.starter.Gate, w.starter.Log = ledger, reader, told, w.gate, logr.Discard()
	w.vms = &VMs{Ledger: ledger, Cluster: reader, Writer: w.client, Events: told, Metrics: metrics, Started: w.starter}
	w.pools = &Pools{Ledger: ledger, Cached: w.client, Writer: w.client, Events: told, Started: w.starter}
	w.pending = &Pending{Ledger: ledger, Cluster: reader, Metrics: metrics, Started: w.starter, Log: logr.Discard(), Age: 90 * time.Second}
	return w
}

// start runs the starter; nobody listens to what it wants looked at.
func (w *world) start() {
	w.t.Helper()
	go func() {
		for range w.starter.look {
		}
	}()
	if err := w.starter.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func pool(name string, addresses ...string) *v1alpha1.FloatingIPPool {
	return &v1alpha1.FloatingIPPool{
		ObjectMeta: metav1.ObjectMeta{Name: name, Generation: 1, CreationTimestamp: metav1.NewTime(epoch)},
		Spec:       v1alpha1.FloatingIPPoolSpec{Addresses: addresses},
	}
}

func namespace(name, enabled string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{floatip.LabelEnabled: enabled}}}
}

func vm(name, uid string, annotations map[string]string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{Object: map[string]any{}}
	o.SetGroupVersionKind(vmKind)
	o.SetNamespace("vms")
	o.SetName(name)
	o.SetUID(types.UID(uid))
	o.SetAnnotations(annotations)
	return o
}

func vmi(name, vmUID string) *kubevirt.VirtualMachineInstance {
	controller := true
	o := &kubevirt.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "vms", Name: name, UID: "vmi-" + types.UID(name)}}
	if vmUID != "" {
		o.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: "kubevirt.io/v1", Kind: "VirtualMachine", Name: name, UID: types.UID(vmUID), Controller: &controller,
		}}
	}
	return o
}

// launcher is a pod that translates the address of the VM with that UID.
func launcher(t *testing.T, name, vmUID string) *corev1.Pod {
	t.Helper()
	nat, err := floatip.PodNAT{
		Version: floatip.PodNATVersion, Interface: floatip.DefaultGuestInterface,
		Owner:    floatip.Owner{Namespace: "vms", Name: "a", UID: vmUID},
		Bindings: []floatip.Binding{{Floating: address(50), Fixed: netip.MustParseAddr("10.0.2.2"), Gateway: netip.MustParseAddr("10.0.2.1"), GuestNetwork: netip.MustParsePrefix("10.0.2.0/24")}},
	}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "vms", Name: name, Labels: map[string]string{kubevirt.LabelApp: kubevirt.AppLauncher},
		Annotations: map[string]string{floatip.AnnotationNAT: nat},
	}}
}

func address(last int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("192.168.100.%d", last))
}

// commit gives the VM the next address, as admission does, and returns its annotations.
func (w *world) commit(name, uid string) map[string]string {
	w.t.Helper()
	claim := floatip.NewClaim()
	if _, err := w.ledger.Reserve(w.t.Context(), ipam.Request{Claim: claim, Namespace: "vms", Name: name}); err != nil {
		w.t.Fatal(err)
	}
	lines, err := w.ledger.Commit(w.t.Context(), claim, floatip.Owner{Namespace: "vms", Name: name, UID: uid}, nil, ipam.Cause{})
	if err != nil {
		w.t.Fatal(err)
	}
	return webhook.OwnKeys(lines)
}

func (w *world) create(objects ...client.Object) {
	w.t.Helper()
	for _, o := range objects {
		if err := w.client.Create(w.t.Context(), o); err != nil {
			w.t.Fatal(err)
		}
	}
}

// deleted has a VM hold an address, and deletes it before anybody looks.
func (w *world) deleted(name, uid string) {
	w.t.Helper()
	object := vm(name, uid, w.commit(name, uid))
	w.create(object)
	w.look()
	w.remove(object)
}

func (w *world) remove(objects ...client.Object) {
	w.t.Helper()
	for _, o := range objects {
		if err := w.client.Delete(w.t.Context(), o); err != nil {
			w.t.Fatal(err)
		}
	}
}

// look makes one round on the VM name "a".
func (w *world) look() reconcile.Result {
	w.t.Helper()
	again, err := w.vms.Reconcile(w.t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Namespace: "vms", Name: "a"}})
	if err != nil {
		w.t.Fatal(err)
	}
	return again
}

// state returns the state of 192.168.100.50 and who has it.
func (w *world) state() string {
	line, ok := w.ledger.Lookup(address(50))
	if !ok {
		return "free"
	}
	return line.State.String() + " " + line.Owner.UID
}

// floatingIPs returns the objects as "name uid phase".
func (w *world) floatingIPs() []string {
	w.t.Helper()
	var list v1alpha1.FloatingIPList
	if err := w.client.List(w.t.Context(), &list); err != nil {
		w.t.Fatal(err)
	}
	var all []string
	for _, ip := range list.Items {
		all = append(all, fmt.Sprintf("%s %s %s", ip.Name, ip.Spec.VM.UID, ip.Status.Phase))
	}
	return all
}

func (w *world) events() []string {
	var all []string
	for {
		select {
		case e := <-w.recorder.Events:
			all = append(all, e)
		default:
			return all
		}
	}
}

// vmAnnotations returns the annotations of the VM "a".
func (w *world) vmAnnotations() map[string]string {
	w.t.Helper()
	o := vm("a", "", nil)
	if err := w.client.Get(w.t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
		w.t.Fatal(err)
	}
	return o.GetAnnotations()
}

func mergeStatus(t *testing.T, status map[string]any) client.Patch {
	t.Helper()
	raw, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		t.Fatal(err)
	}
	return client.RawPatch(types.MergePatchType, raw)
}

// counted returns "capacity used pending quarantined".
func counted(c *v1alpha1.AddressCount) string {
	if c == nil {
		return ""
	}
	return fmt.Sprintf("%s %d %d %d", c.Capacity, c.Used, c.Pending, c.Quarantined)
}
