package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/story"
)

const restrictedNamespace = "restricted"

// restrictedNodeNAT: in a namespace that enforces the restricted Pod Security level a VM of a pool that the node
// translates is reached on the LAN, and its pod is as KubeVirt made it.
func restrictedNodeNAT(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	seccomp(ctx, t, s)
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: restrictedNamespace, Labels: map[string]string{
		floatip.LabelEnabled: "true", "pod-security.kubernetes.io/enforce": "restricted",
	}}}
	no := false
	pool := &v1alpha1.FloatingIPPool{ObjectMeta: metav1.ObjectMeta{Name: "on-node"}, Spec: v1alpha1.FloatingIPPoolSpec{
		Addresses: []string{"192.168.100.110-192.168.100.112"}, Networks: []string{"192.168.100.0/24"},
		Gateways: []string{"192.168.100.1"}, AutoAssign: &no, Delivery: floatip.DeliveryNodeNAT,
	}}
	for _, object := range []client.Object{namespace, pool} {
		if err := s.Client.Create(ctx, object); err != nil {
			t.Fatal(err)
		}
	}
	awaitPool(t, s, "on-node", func(p v1alpha1.FloatingIPPoolStatus) bool {
		return meta.IsStatusConditionTrue(p.Conditions, "Ready")
	})
	vm, err := createVM(ctx, s, restrictedNamespace, "on-node", fromPool("on-node"))
	if err != nil {
		t.Fatal(err)
	}
	address, err := netip.ParseAddr(vm.Annotations[floatip.AnnotationAddress])
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Rig.KubeVirt.Start(ctx, vm.Namespace, vm.Name); err != nil {
		t.Fatal(err)
	}
	ip, err := s.WaitReady(ctx, address)
	if err != nil {
		t.Fatal(err)
	}
	if c := meta.FindStatusCondition(ip.Status.Conditions, v1alpha1.ConditionNATReady); c == nil || c.Reason != "Translated" {
		t.Errorf("%s is %+v, want the node to say that it translates", v1alpha1.ConditionNATReady, c)
	}
	asKubeVirtMadeIt(ctx, t, s, vm)
	to := netip.AddrPortFrom(address, 22)
	for _, host := range []string{s.Rig.LAN.ProviderHost.Namespace, s.Rig.LAN.OutsideHost.Namespace} {
		if _, _, err := story.WaitBanner(ctx, host, to); err != nil {
			t.Error(err)
		}
	}
	seenOutside(ctx, t, s, vm, address)

	other := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"delivery":"Leg"}}`))
	wantRefusal(t, "another delivery of a pool in use", s.Client.Patch(ctx, pool, other),
		"from NodeNAT to Leg", address.String(), "restricted/on-node")
	if err := s.Client.Delete(ctx, vm); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitReleased(ctx, address); err != nil {
		t.Error(err)
	}
}

// seccomp has KubeVirt give its pods a seccomp profile, without which the level refuses them, whatever floatip does.
func seccomp(ctx context.Context, t *testing.T, s *story.Story) {
	t.Helper()
	var list kubevirtv1.KubeVirtList
	if err := s.Client.List(ctx, &list); err != nil || len(list.Items) != 1 {
		t.Fatalf("%d objects KubeVirt, %v", len(list.Items), err)
	}
	const profile = `{"virtualMachineInstanceProfile":{"customProfile":{"runtimeDefaultProfile":true}}}`
	patch := `{"spec":{"configuration":{"seccompConfiguration":` + profile + `}}}`
	if err := s.Client.Patch(ctx, &list.Items[0], client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		t.Fatal(err)
	}
}

// asKubeVirtMadeIt wants a launcher without container, volume or capability of floatip's.
func asKubeVirtMadeIt(ctx context.Context, t *testing.T, s *story.Story, vm *kubevirtv1.VirtualMachine) {
	t.Helper()
	pod, err := s.LauncherPod(ctx, vm.Namespace, vm.Name)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		can := c.SecurityContext.Capabilities
		if c.Name == floatip.SidecarContainer || can != nil && slices.Contains(can.Add, "NET_ADMIN") {
			t.Errorf("container %s is floatip's, or may do what the level forbids", c.Name)
		}
	}
	for _, v := range pod.Spec.Volumes {
		if v.Name == floatip.SocketVolume || v.Name == floatip.NATVolume {
			t.Errorf("the pod has the volume %s", v.Name)
		}
	}
}

// seenOutside wants the guest to be seen under its floating address on the provider LAN.
func seenOutside(ctx context.Context, t *testing.T, s *story.Story, vm *kubevirtv1.VirtualMachine, address netip.Addr) {
	t.Helper()
	channel, err := s.Guest(ctx, vm.Namespace, vm.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer channel.Close()
	witness, err := story.NewWitness(s.Rig.LAN.ProviderHost.Namespace, s.Rig.LAN.ProviderHost.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer witness.Close()
	err = process.Wait(ctx, nil, "the guest's call", func(ctx context.Context) error {
		seen, err := witness.Sees(ctx, channel)
		if err == nil && seen != address {
			return fmt.Errorf("the guest is seen as %s", seen)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
