package controller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
)

func requestOf(name string) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Namespace: "vms", Name: name}}
}

func floatingIP(last, vmName, uid string) *v1alpha1.FloatingIP {
	address := "192.168.100." + last
	return &v1alpha1.FloatingIP{
		ObjectMeta: metav1.ObjectMeta{Name: address},
		Spec:       v1alpha1.FloatingIPSpec{Address: address, Pool: "provider", VM: v1alpha1.VMReference{Namespace: "vms", Name: vmName, UID: types.UID(uid)}},
	}
}

func ownKeys(address string) map[string]string {
	return map[string]string{floatip.AnnotationAddress: address, floatip.AnnotationClaim: floatip.NewClaim().String()}
}

// The file is lost: addresses come back from FloatingIP objects, then from VMs; nobody's address moves.
func TestLedgerIsRebuilt(t *testing.T) {
	copied := ownKeys("192.168.100.50")
	w := newWorld(t,
		floatingIP("50", "a", "uid-a"), vm("a", "uid-a", copied),
		vm("b", "uid-b", ownKeys("192.168.100.51")), // its object was not written yet
		vm("clone", "uid-clone", copied),            // carries the address of a
		vm("forged", "uid-forged", map[string]string{floatip.AnnotationAddress: "192.168.100.52"}),
	)
	if w.gate.Ready(nil) == nil {
		t.Error("the gate is open before the comparison")
	}
	w.start()
	if err := w.gate.Ready(nil); err != nil {
		t.Error(err)
	}
	var lines []string
	for line := range w.ledger.All() {
		lines = append(lines, line.Address.String()+" "+line.Owner.UID+" "+line.State.String())
	}
	if diff := cmp.Diff([]string{"192.168.100.50 uid-a Bound", "192.168.100.51 uid-b Bound"}, lines); diff != "" {
		t.Errorf("ledger (-want +got):\n%s", diff)
	}
	offer, err := w.ledger.Reserve(t.Context(), ipam.Request{Claim: floatip.NewClaim(), Namespace: "vms"})
	if err != nil || offer.Addresses[0] != address(52) {
		t.Errorf("next address: %v, %v", offer.Addresses, err)
	}
}

// Two FloatingIP objects cannot have one name, but ledger and object may disagree: the ledger keeps, both are told.
func TestDisagreementIsNotDecided(t *testing.T) {
	w := newWorld(t, floatingIP("50", "b", "uid-b"))
	w.ledger.SetPools(valid(mustPools(t, w)))
	w.commit("a", "uid-a")
	w.start()
	if got := w.state(); got != "Pending uid-a" {
		t.Error(got)
	}
	if disputes := w.ledger.Disputes(); len(disputes) != 1 {
		t.Errorf("disputes: %+v", disputes)
	}
	if got := w.events(); len(got) != 2 {
		t.Errorf("events: %q", got)
	}
}

func mustPools(t *testing.T, w *world) []poolObject {
	t.Helper()
	pools, err := readPools(t.Context(), w.client)
	if err != nil {
		t.Fatal(err)
	}
	return pools
}

// The cluster knows nothing of a VM that the ledger knows, as after a restored backup of etcd: a day passes before its
// address is given back. If its FloatingIP object is still there, the VM was deleted while floatip was away.
func TestUnknownVMs(t *testing.T) {
	for name, tc := range map[string]struct {
		objects []client.Object
		want    string
		again   bool
	}{
		"restored backup":         {nil, "Bound uid-a", true},
		"deleted while away":      {[]client.Object{floatingIP("50", "a", "uid-a")}, "Released uid-a", false},
		"VM there, object not":    {[]client.Object{vm("a", "uid-a", nil)}, "Bound uid-a", false},
		"VMI there, VM is not":    {[]client.Object{vmi("a", "uid-a")}, "Bound uid-a", false},
		"another VM of that name": {[]client.Object{vm("a", "uid-later", nil), floatingIP("50", "a", "uid-a")}, "Released uid-a", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tc.objects...)
			w.ledger.SetPools(valid(mustPools(t, w)))
			w.commit("a", "uid-a")
			if _, err := w.ledger.Bind(t.Context(), floatip.Claim{}, floatip.Owner{Namespace: "vms", Name: "a", UID: "uid-a"}, ipam.Cause{}); err != nil {
				t.Fatal(err)
			}
			w.start()
			again := w.look()
			if got := w.state(); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
			if (again.RequeueAfter > 0) != tc.again || again.RequeueAfter > orphanHold {
				t.Errorf("looks again after %s", again.RequeueAfter)
			}
		})
	}
}

// A file whose indexes contradict each other is noticed before anything is built on it: floatip ends, says what to do, and
// leaves the file as it is.
func TestDamagedLedgerIsNotServed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "damaged.db")
	open := func() *ipam.Ledger {
		ledger, err := ipam.Open(path, ipam.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return ledger
	}
	ledger := open()
	owner := floatip.Owner{Namespace: "vms", Name: "a", UID: "uid-a"}
	_, err := ledger.Adopt(t.Context(), []ipam.Sighting{{Address: address(50), Owner: owner, Source: "FloatingIP"}}, false)
	if err := errors.Join(err, ledger.Close()); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	forget := func(tx *bbolt.Tx) error {
		owners := tx.Bucket([]byte("owners"))
		key, _ := owners.Cursor().First()
		return owners.Delete(key)
	}
	if err := errors.Join(db.Update(forget), db.Close()); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, floatingIP("50", "a", "uid-a"))
	w.starter.Ledger = open()
	err = w.starter.Start(t.Context())
	for _, text := range []string{"192.168.100.50", "the owner index does not list it under vms/a", "keep a copy"} {
		if !errors.Is(err, ipam.ErrDamaged) || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want damage with %q", err, text)
		}
	}
	if w.gate.Ready(nil) == nil {
		t.Error("it serves")
	}
	if err := w.starter.Ledger.Close(); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file was changed, %v", err)
	}
}

// An old copy of the file has the VM with the address that it had before another host took that one: the VM keeps what the
// cluster shows, the other one is shown nowhere, and its people are told.
func TestEarlierAddressIsNotShown(t *testing.T) {
	w := newWorld(t, floatingIP("51", "a", "uid-a"), vm("a", "uid-a", ownKeys("192.168.100.51")))
	w.ledger.SetPools(valid(mustPools(t, w)))
	w.bound("a", "uid-a") // 192.168.100.50
	w.start()
	w.look()
	if diff := cmp.Diff([]string{"192.168.100.51 uid-a Bound"}, w.floatingIPs()); diff != "" {
		t.Errorf("FloatingIPs (-want +got):\n%s", diff)
	}
	if got := w.vmAnnotations()[floatip.AnnotationAddress]; got != "192.168.100.51" {
		t.Errorf("the VM shows %s", got)
	}
	if line, _ := w.ledger.Lookup(address(50)); line.State != ipam.Bound || !line.Superseded {
		t.Errorf("the ledger has %+v", line)
	}
	if told := w.events(); len(told) != 1 || !strings.Contains(told[0], EventSuperseded) || !strings.Contains(told[0], "192.168.100.50") {
		t.Errorf("events %q", told)
	}
	w.remove(vm("a", "uid-a", nil))
	w.look()
	if got := w.state(); got != "Released uid-a" {
		t.Errorf("after the VM: %s", got)
	}
}

// Before ledger and cluster were compared, nothing is bound or released.
func TestControllersWaitForTheStart(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.vms.Reconcile(ctx, requestOf("a")); err == nil {
		t.Error("VMs were looked at")
	}
	if _, err := w.pools.Reconcile(ctx, reconcile.Request{}); err == nil {
		t.Error("pools were looked at")
	}
}

func TestPoolStatus(t *testing.T) {
	young := pool("young", "192.168.100.58-192.168.100.65")
	young.CreationTimestamp = metav1.NewTime(epoch.Add(time.Hour))
	drained := pool("drained", "192.168.101.0/24")
	drained.Spec.Drain = true
	tiny := pool("tiny", "192.168.102.1-192.168.102.1")
	no := false
	tiny.Spec.AutoAssign = &no
	both := pool("both", "192.168.103.0/28", "2001:db8:1::/64", "2001:db8:2::/64")
	w := newWorld(t, young, drained, tiny, pool("broken", "nonsense"), pool("v6", "2001:db8::/64"), both)
	w.start()
	for i, pool := range []string{"tiny", "provider", "both", "both"} {
		claim := floatip.NewClaim()
		if _, err := w.ledger.Reserve(t.Context(), ipam.Request{Claim: claim, Namespace: "vms", Pools: []string{pool}}); err != nil {
			t.Fatal(err)
		}
		owner := floatip.Owner{Namespace: "vms", Name: pool, UID: fmt.Sprintf("uid-%d", i)}
		if _, err := w.ledger.Commit(t.Context(), claim, owner, nil, ipam.Cause{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.ledger.Bind(t.Context(), floatip.Claim{}, floatip.Owner{Namespace: "vms", Name: "both", UID: "uid-2"}, ipam.Cause{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.ledger.Release(t.Context(), "uid-3", ipam.Cause{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.pools.Reconcile(t.Context(), reconcile.Request{}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		pool                          string
		ready, overlapping, exhausted string // reasons
		ipv4, ipv6                    string // capacity, used, pending, quarantined
		usage, resting                string
	}{
		{"provider", "Serving", "NoOverlap", "FreeAddresses", "10 1 1 0", "", "1/10", "0"},
		{"young", "Serving", "OlderPool", "FreeAddresses", "6 0 0 0", "", "0/6", "0"},
		{"drained", "Draining", "NoOverlap", "FreeAddresses", "254 0 0 0", "", "0/254", "0"},
		{"tiny", "Exhausted", "NoOverlap", "NoFreeAddress", "1 1 1 0", "", "1/1", "0"},
		{"broken", "Invalid", "", "", "", "", "", ""},
		{"v6", "Serving", "NoOverlap", "FreeAddresses", "", "18446744073709551615 0 0 0", "0/2^64", "0"},
		{"both", "Serving", "NoOverlap", "FreeAddresses", "14 1 0 1", "36893488147419103230 1 0 1", "1/14,1/2^65", "1,1"},
	} {
		t.Run(tc.pool, func(t *testing.T) {
			var have v1alpha1.FloatingIPPool
			if err := w.client.Get(t.Context(), types.NamespacedName{Name: tc.pool}, &have); err != nil {
				t.Fatal(err)
			}
			got := []string{
				reason(have, ConditionReady), reason(have, ConditionOverlapping), reason(have, ConditionExhausted),
				counted(have.Status.IPv4), counted(have.Status.IPv6), have.Status.Usage, have.Status.Resting,
			}
			if diff := cmp.Diff([]string{tc.ready, tc.overlapping, tc.exhausted, tc.ipv4, tc.ipv6, tc.usage, tc.resting}, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func reason(p v1alpha1.FloatingIPPool, kind string) string {
	if c := meta.FindStatusCondition(p.Status.Conditions, kind); c != nil {
		return c.Reason
	}
	return ""
}

// What a node has itself is never handed out, from the moment it joins, which may be before its agent has started.
func TestNodesWithoutAnAgentKeepTheirAddresses(t *testing.T) {
	w := newWorld(t)
	w.start()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: "192.168.100.50"},
		{Type: corev1.NodeExternalIP, Address: "192.168.100.51"},
		{Type: corev1.NodeHostName, Address: "192.168.100.52"},
	}}}
	w.create(node)
	if _, err := w.pools.Reconcile(t.Context(), reconcile.Request{}); err != nil {
		t.Fatal(err)
	}
	offer, err := w.ledger.Reserve(t.Context(), ipam.Request{Namespace: "vms", Claim: floatip.NewClaim()})
	if got := fmt.Sprint(offer.Addresses, err); !strings.Contains(got, "192.168.100.52") {
		t.Errorf("handed out %s, want the first that no node has", got)
	}
	beat, moved := node.DeepCopy(), node.DeepCopy()
	beat.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	moved.Status.Addresses[0].Address = "192.168.100.53"
	if ownAddressesChanged.Update(event.UpdateEvent{ObjectOld: node, ObjectNew: beat}) {
		t.Error("a node's heartbeat has all pools looked at")
	}
	if !ownAddressesChanged.Update(event.UpdateEvent{ObjectOld: node, ObjectNew: moved}) ||
		!ownAddressesChanged.Create(event.CreateEvent{Object: node}) {
		t.Error("a node's address is not seen")
	}
	beat.Spec.ProviderID = "cloud://1"
	kept, err := slimNode(beat)
	if slim, ok := kept.(*corev1.Node); err != nil || !ok || slim.Spec.ProviderID != "" || slim.Status.Conditions != nil ||
		len(addressesOf(slim)) != 2 {
		t.Errorf("the cache keeps %+v, %v", kept, err)
	}
}

// What a node has itself on the provider network is never handed out, from the moment its agent says so.
func TestNodesKeepTheirAddresses(t *testing.T) {
	w := newWorld(t)
	w.start()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Annotations: map[string]string{
		floatip.AnnotationProviderAddresses: "192.168.100.50,nonsense,192.168.100.7,2001:db8::1",
	}}}
	w.create(node)
	if _, err := w.pools.Reconcile(t.Context(), reconcile.Request{}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		ask  ipam.Request
		want string
	}{
		{ipam.Request{}, "192.168.100.51"},
		{ipam.Request{Addresses: []netip.Addr{address(50)}}, ipam.ErrNeverGiven.Error()},
	} {
		tc.ask.Namespace, tc.ask.Claim = "vms", floatip.NewClaim()
		offer, err := w.ledger.Reserve(t.Context(), tc.ask)
		if got := fmt.Sprint(offer.Addresses, err); !strings.Contains(got, tc.want) {
			t.Errorf("asked for %v: %s, want %s", tc.ask.Addresses, got, tc.want)
		}
	}
	var have v1alpha1.FloatingIPPool
	if err := w.client.Get(t.Context(), types.NamespacedName{Name: "provider"}, &have); err != nil || counted(have.Status.IPv4) != "9 0 0 0" {
		t.Errorf("status: %s, %v; want a capacity of 9", counted(have.Status.IPv4), err)
	}
	// Another node joins: only a change of the annotation is worth a look at the pools.
	later := node.DeepCopy()
	later.Labels = map[string]string{"a": "b"}
	if ownAddressesChanged.Update(event.UpdateEvent{ObjectOld: node, ObjectNew: later}) {
		t.Error("a label of a node has all pools looked at")
	}
	later.Annotations = nil
	if !ownAddressesChanged.Update(event.UpdateEvent{ObjectOld: node, ObjectNew: later}) {
		t.Error("a lost annotation is not seen")
	}
}
