package cluster

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/nat/node"
)

var (
	compareNet = cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
	fifty = netip.MustParseAddr("192.168.100.50")
	yes   = true
)

func launcher(change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "virt-launcher-web", Namespace: "prod", UID: "pod-1", ResourceVersion: "7",
			CreationTimestamp: metav1.Unix(100, 0),
			Labels:            map[string]string{"kubevirt.io": "virt-launcher"},
			Annotations:       map[string]string{floatip.AnnotationNAT: "{}", "other": "x"},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "kubevirt.io/v1", Kind: machineKind, Name: "web", UID: "vmi-1", Controller: &yes,
			}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{
			{Name: "compute", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}},
		}},
	}
	if change != nil {
		change(p)
	}
	return p
}

// read is what the agent makes of a pod that the API server sends. A copy of it is as good.
func read(t *testing.T, sent *corev1.Pod) *pod {
	t.Helper()
	raw, err := json.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{}
	if err := json.Unmarshal(raw, p); err != nil {
		t.Fatal(err)
	}
	return p.DeepCopyObject().(*pod)
}

// TestPods: what is read of a pod, and that nothing of it is lost when the pod is stripped for the store.
func TestPods(t *testing.T) {
	base := node.Pod{
		UID: "pod-1", Namespace: "prod", Name: "virt-launcher-web", Machine: node.Reference{Name: "web", UID: "vmi-1"}, NAT: "{}",
		Created: 100 * int64(time.Second),
	}
	with := func(change func(*node.Pod)) node.Pod {
		p := base
		change(&p)
		return p
	}
	for _, tt := range []struct {
		name   string
		change func(*corev1.Pod)
		want   node.Pod
	}{
		{"as it is", nil, base},
		{"an owner that does not control", func(p *corev1.Pod) { p.OwnerReferences[0].Controller = nil },
			with(func(p *node.Pod) { p.Machine = node.Reference{} })},
		{"an owner of the same kind in another group", func(p *corev1.Pod) { p.OwnerReferences[0].APIVersion = "evil.io/v1" },
			with(func(p *node.Pod) { p.Machine = node.Reference{} })},
		{"the pod has its addresses", func(p *corev1.Pod) {
			p.Status.PodIPs = []corev1.PodIP{{IP: "100.0.0.5"}, {IP: "fd30::5"}}
		}, with(func(p *node.Pod) {
			p.IPv4, p.IPv6 = netip.MustParseAddr("100.0.0.5"), netip.MustParseAddr("fd30::5")
		})},
		{"a deleted pod whose guest still shuts down", func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Unix(200, 0)} },
			base},
		{"compute has terminated", func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}
		}, with(func(p *node.Pod) { p.Final = true })},
		{"another container has terminated", func(p *corev1.Pod) {
			p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{
				Name: "volumedisk", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}},
			})
		}, base},
		{"the pod has failed", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, with(func(p *node.Pod) { p.Final = true })},
		{"the pod is to receive a guest", func(p *corev1.Pod) { p.Labels[migrationLabel] = "job" },
			with(func(p *node.Pod) { p.MigrationTarget = true })},
		{"the guest arrived", func(p *corev1.Pod) {
			p.Labels[migrationLabel], p.Annotations[arrivedAnnotation] = "job", "2026-01-01T00:00:00Z"
		}, with(func(p *node.Pod) { p.MigrationTarget, p.GuestArrived = true, true })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stripped, err := strip(read(t, launcher(tt.change)))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, podOf(stripped.(*pod)), compareNet); diff != "" {
				t.Errorf("pod (-want +got):\n%s", diff)
			}
		})
	}
}

// TestStripForeignPod: pods that have nothing to do with floating addresses cost their name only.
func TestStripForeignPod(t *testing.T) {
	p := launcher(func(p *corev1.Pod) { delete(p.Annotations, floatip.AnnotationNAT) })
	want := &pod{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, UID: p.UID, ResourceVersion: "7"}}
	got, err := strip(read(t, p))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stripped (-want +got):\n%s", diff)
	}
}

func TestMachines(t *testing.T) {
	m := &machine{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "prod", Name: "web", UID: "vmi-1", Labels: map[string]string{nodeLabel: "n1"},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "kubevirt.io/v1", Kind: vmKind, Name: "web", UID: "vm-1", Controller: &yes,
			}},
		},
		Status: machineStatus{
			Phase:          "Running",
			MigrationState: &migrationState{SourceNode: "n1", TargetNode: "n2", TargetPod: "b"},
			Interfaces:     []guestInterface{{MAC: "52:54:00:AA:BB:CC"}, {MAC: ""}},
		},
	}
	m.Status.ActivePods = map[types.UID]string{"p2": "n2", "p1": "n1"}
	want := node.Machine{
		Namespace: "prod", Name: "web", UID: "vmi-1", VM: "vm-1", Node: "n1", Running: true, Pods: []string{"p1", "p2"},
		MACs: []string{"52:54:00:aa:bb:cc"}, Migration: node.Migration{SourceNode: "n1", TargetNode: "n2", TargetPod: "b"},
	}
	if diff := cmp.Diff(want, machineOf(m.DeepCopyObject().(*machine))); diff != "" {
		t.Errorf("machine (-want +got):\n%s", diff)
	}
	m.Status.MigrationState.Failed, want.Migration.Failed = true, true
	m.Status.MigrationState.DomainReady, want.Migration.Arrived = &metav1.Time{Time: time.Unix(1, 0)}, true
	if diff := cmp.Diff(want, machineOf(m)); diff != "" {
		t.Errorf("machine after a failed migration (-want +got):\n%s", diff)
	}
}

func TestPools(t *testing.T) {
	p := &v1alpha1.FloatingIPPool{ObjectMeta: metav1.ObjectMeta{Name: "lan"}, Spec: v1alpha1.FloatingIPPoolSpec{
		Addresses: []string{"192.168.100.50-192.168.100.99", "2001:db8::/64", "192.168.101.0/24"},
		Networks:  []string{"192.168.100.0/24"}, Gateways: []string{"192.168.100.1"}, Interface: "eth1",
		NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"zone": "a"}}, ConflictDetection: v1alpha1.ConflictDetectionOff,
	}}
	if _, ok := poolOf(p, map[string]string{"zone": "b"}); ok {
		t.Error("a pool for zone a is for a node of zone b")
	}
	got, ok := poolOf(p, map[string]string{"zone": "a"})
	want := node.Pool{
		Name: "lan", Interface: "eth1", Delivery: floatip.DeliveryLeg, Unasked: true, Networks: []netip.Prefix{netip.MustParsePrefix("192.168.100.0/24")},
		Gateways: []netip.Addr{netip.MustParseAddr("192.168.100.1")},
		Sample:   []netip.Addr{fifty, netip.MustParseAddr("2001:db8::")},
	}
	if diff := cmp.Diff(want, got, compareNet); !ok || diff != "" {
		t.Errorf("pool (-want +got):\n%s", diff)
	}
}

func floatingIP(change func(*v1alpha1.FloatingIP)) *v1alpha1.FloatingIP {
	f := &v1alpha1.FloatingIP{
		ObjectMeta: metav1.ObjectMeta{Name: "192.168.100.50", Generation: 3},
		Spec: v1alpha1.FloatingIPSpec{
			Address: "192.168.100.50", Pool: "lan", VM: v1alpha1.VMReference{Namespace: "prod", Name: "web", UID: "vm-1"},
		},
		Status: v1alpha1.FloatingIPStatus{Phase: v1alpha1.PhaseBound},
	}
	if change != nil {
		change(f)
	}
	return f
}

func TestHeld(t *testing.T) {
	want := node.Held{Pool: "lan", Owner: floatip.Owner{Namespace: "prod", Name: "web", UID: "vm-1"}}
	a, held, ok := heldOf(floatingIP(nil))
	if diff := cmp.Diff(want, held); !ok || a != fifty || diff != "" {
		t.Errorf("%s (-want +got):\n%s", a, diff)
	}
	if _, held, _ := heldOf(floatingIP(func(f *v1alpha1.FloatingIP) { f.Status.Phase = v1alpha1.PhaseQuarantined })); !held.Released {
		t.Error("an address in quarantine is not released")
	}
	if _, _, ok := heldOf(floatingIP(func(f *v1alpha1.FloatingIP) { f.Name = "192.168.100.51" })); ok {
		t.Error("an object whose name is another address counts")
	}
}

// TestUnproven: what a migration may rely on.
func TestUnproven(t *testing.T) {
	for _, tt := range []struct {
		status metav1.ConditionStatus
		reason string
		want   bool
	}{
		{metav1.ConditionTrue, "NoConflict", false},
		{metav1.ConditionFalse, floatip.ReasonAddressContested, false},
		{metav1.ConditionFalse, floatip.ReasonAddressTaken, true},
		{metav1.ConditionFalse, "Probing", true},
		{metav1.ConditionUnknown, "NotRunning", true},
	} {
		_, held, _ := heldOf(floatingIP(func(f *v1alpha1.FloatingIP) {
			f.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionConflictFree, Status: tt.status, Reason: tt.reason}}
		}))
		if held.Unproven != tt.want {
			t.Errorf("%s (%s): unproven is %t, want %t", tt.status, tt.reason, held.Unproven, tt.want)
		}
	}
	if _, held, _ := heldOf(floatingIP(nil)); held.Unproven {
		t.Error("an object of an agent that did not ask is unproven: every migration during an upgrade would be probed")
	}
}
