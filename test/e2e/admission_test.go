package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/story"
)

// createVM creates the mission's VM under another name and with annotations.
func createVM(ctx context.Context, s *story.Story, namespace, name string, annotations map[string]string) (*kubevirtv1.VirtualMachine, error) {
	manifest, err := s.Manifest()
	if err != nil {
		return nil, err
	}
	vm := new(kubevirtv1.VirtualMachine)
	if err := yaml.Unmarshal([]byte(manifest), vm); err != nil {
		return nil, err
	}
	vm.Namespace, vm.Name, vm.Annotations = namespace, name, annotations
	return vm, s.Client.Create(ctx, vm)
}

// holders maps each address that is held to its holder's UID, and fails the test if an address is held twice or a VM's
// annotation and the FloatingIP disagree.
func holders(t *testing.T, s *story.Story) map[string]*kubevirtv1.VirtualMachine {
	t.Helper()
	ctx := bounded(t)
	var vms kubevirtv1.VirtualMachineList
	if err := s.Client.List(ctx, &vms); err != nil {
		t.Fatal(err)
	}
	held := map[string]*kubevirtv1.VirtualMachine{}
	for i := range vms.Items {
		vm := &vms.Items[i]
		address := vm.Annotations[floatip.AnnotationAddress]
		if address == "" {
			continue
		}
		if other := held[address]; other != nil {
			t.Errorf("%s is held by %s and by %s", address, other.Name, vm.Name)
		}
		held[address] = vm
		if _, err := s.WaitBound(ctx, netip.MustParseAddr(address), vm); err != nil {
			t.Error(err)
		}
	}
	return held
}

func concurrentRequests(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	wanted := netip.MustParseAddr("192.168.100.70")
	const rivals = 8
	results := make([]error, rivals)
	var all sync.WaitGroup
	for i := range rivals {
		all.Go(func() {
			_, results[i] = createVM(ctx, s, story.Namespace, fmt.Sprintf("rival-%d", i),
				map[string]string{floatip.AnnotationRequest: wanted.String()})
		})
	}
	all.Wait()

	winner := ""
	for i, err := range results {
		if err == nil {
			if winner != "" {
				t.Errorf("%s and rival-%d both got %s", winner, i, wanted)
			}
			winner = fmt.Sprintf("rival-%d", i)
		}
	}
	if winner == "" {
		t.Fatalf("nobody got %s: %v", wanted, errors.Join(results...))
	}
	for i, err := range results {
		if err != nil && (!apierrors.IsConflict(err) || !strings.Contains(err.Error(), wanted.String())) {
			t.Errorf("rival-%d: %v, want a conflict about %s", i, err, wanted)
		}
	}
	if holder := holders(t, s)[wanted.String()]; holder == nil || holder.Name != winner {
		t.Errorf("%s is held by %v, want %s", wanted, holder, winner)
	}
	_, err := createVM(ctx, s, story.Namespace, "late", map[string]string{floatip.AnnotationRequest: wanted.String()})
	if err == nil || !strings.Contains(err.Error(), story.Namespace+"/"+winner) {
		t.Errorf("a later request: %v, want a refusal that names %s", err, winner)
	}
}

func killedWebhook(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	for round := range 3 {
		first, err := createVM(ctx, s, story.Namespace, fmt.Sprintf("first-%d", round), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.KillWebhook(ctx); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("second-%d", round)
		err = process.Wait(ctx, nil, "the webhook to be back", func(ctx context.Context) error {
			_, err := createVM(ctx, s, story.Namespace, name, nil)
			if apierrors.IsAlreadyExists(err) { // by an attempt whose answer was lost
				err = nil
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		held := holders(t, s)
		address := first.Annotations[floatip.AnnotationAddress]
		if holder := held[address]; holder == nil || holder.UID != first.UID {
			t.Errorf("round %d: %s was given to %s and is held by %v", round, address, first.Name, holder)
		}
	}
}

func webhookDown(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	if err := s.ScaleWebhook(ctx, 0); err != nil {
		t.Fatal(err)
	}
	vm, err := createVM(ctx, s, story.OtherNamespace, "while-down", nil)
	if err != nil {
		t.Errorf("a namespace that did not opt in: %v", err)
	} else if err := story.Untouched(vm); err != nil {
		t.Error(err)
	}
	if _, err := createVM(ctx, s, story.Namespace, "refused", nil); err == nil {
		t.Error("a VM without an address was created in a namespace that opted in")
	}
	if _, err := createVM(ctx, s, story.Namespace, "opted-out", map[string]string{floatip.LabelEnabled: "false"}); err != nil {
		t.Errorf("a VM that opted out: %v", err)
	}
	label := []byte(`{"metadata":{"labels":{"changed":"while-down"}}}`)
	testvm := &kubevirtv1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: story.Namespace, Name: story.VMName}}
	if err := s.Client.Patch(ctx, testvm, client.RawPatch("application/merge-patch+json", label)); err != nil {
		t.Errorf("change a label of a VM that holds an address: %v", err)
	}
	if _, err := story.Ping(ctx, s.Rig.LAN.ProviderHost.Namespace, story.Floating, 1); err != nil {
		t.Errorf("the data path without the webhook: %v", err)
	}
	// What KubeVirt's accounts write, which the policies let through, is put back once the webhook is back.
	forged := `{"metadata":{"annotations":{"floatip.io/address":"192.168.100.98","floatip.io/claim":null}}}`
	_, err = s.Kubectl(ctx, "", "-n", story.Namespace, "--as", "system:serviceaccount:kubevirt:kubevirt-controller",
		"patch", "vm", story.VMName, "--type=merge", "--patch", forged)
	if err != nil {
		t.Errorf("a controller of KubeVirt's: %v", err)
	}
	if err := s.ScaleWebhook(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := createVM(ctx, s, story.Namespace, "after-down", nil); err != nil {
		t.Errorf("once the webhook is back: %v", err)
	}
	err = process.Wait(ctx, nil, "floatip's annotations to be put back", func(ctx context.Context) error {
		vm, err := s.VM(ctx, story.Namespace, story.VMName)
		if err == nil && (vm.Annotations[floatip.AnnotationAddress] != story.Floating.String() || vm.Annotations[floatip.AnnotationClaim] == "") {
			err = fmt.Errorf("they are %v", vm.Annotations)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	holders(t, s)
}

func forgedAnnotations(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	vm, err := createVM(ctx, s, story.Namespace, "forger", map[string]string{
		floatip.AnnotationAddress: story.Floating.String(),
		floatip.AnnotationClaim:   floatip.NewClaim().String(),
	})
	if err == nil && vm.Annotations[floatip.AnnotationAddress] == story.Floating.String() {
		t.Errorf("a VM got %s by writing it into %s", story.Floating, floatip.AnnotationAddress)
	}
	victim, err := s.VM(ctx, story.Namespace, story.VMName)
	if err != nil {
		t.Fatal(err)
	}
	patch := []byte(`{"metadata":{"annotations":{"floatip.io/address":"192.168.100.99"}}}`)
	err = s.Client.Patch(ctx, victim.DeepCopy(), client.RawPatch("application/merge-patch+json", patch))
	if now, readErr := s.VM(ctx, story.Namespace, story.VMName); readErr != nil ||
		now.Annotations[floatip.AnnotationAddress] != story.Floating.String() {
		t.Errorf("after a patch of %s (%v) the VM has %v", floatip.AnnotationAddress, err, now.Annotations)
	}

	pod, err := s.LauncherPod(ctx, story.Namespace, story.VMName)
	if err != nil {
		t.Fatal(err)
	}
	twin := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: story.Namespace, Name: "virt-launcher-twin", Labels: pod.Labels,
			Annotations:     map[string]string{floatip.AnnotationNAT: pod.Annotations[floatip.AnnotationNAT]},
			OwnerReferences: pod.OwnerReferences,
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "compute", Image: "example/twin"}}},
	}
	if err := s.Client.Create(ctx, twin); err == nil {
		t.Errorf("a pod that looks like the VM's was created with %s", floatip.AnnotationNAT)
	}
	edit := []byte(`{"metadata":{"annotations":{"floatip.io/nat":"{}"}}}`)
	if err := s.Client.Patch(ctx, pod, client.RawPatch("application/merge-patch+json", edit)); err == nil {
		t.Errorf("%s of the running pod was changed", floatip.AnnotationNAT)
	}
}

// stop stops the mission's VM and waits until its instance is gone and its address is held by a VM that does not run.
func stop(ctx context.Context, s *story.Story) error {
	if err := s.Rig.KubeVirt.Stop(ctx, story.Namespace, story.VMName); err != nil {
		return err
	}
	err := process.Wait(ctx, nil, "the instance to be gone", func(ctx context.Context) error {
		vmi := new(kubevirtv1.VirtualMachineInstance)
		err := s.Client.Get(ctx, client.ObjectKey{Namespace: story.Namespace, Name: story.VMName}, vmi)
		if err == nil {
			return fmt.Errorf("it is %s", vmi.Status.Phase)
		}
		return client.IgnoreNotFound(err)
	})
	if err != nil {
		return err
	}
	// Whoever starts the VM again and waits for Ready must not see the Ready of before.
	return process.Wait(ctx, nil, "the address to be only held", func(ctx context.Context) error {
		fip, err := s.FloatingIP(ctx, story.Floating)
		if err == nil && fip.Status.Phase != v1alpha1.PhaseBound {
			err = fmt.Errorf("phase %s", fip.Status.Phase)
		}
		return err
	})
}

func stopAndStart(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	if err := stop(ctx, s); err != nil {
		t.Fatal(err)
	}
	if _, err := story.Knock(ctx, s.Rig.LAN.ProviderHost.Namespace, story.Floating, 1); err == nil {
		t.Errorf("%s answers for a VM that is stopped", story.Floating)
	}
	if err := s.Rig.KubeVirt.Start(ctx, story.Namespace, story.VMName); err != nil {
		t.Fatal(err)
	}
	if _, err := s.WaitReady(ctx, story.Floating); err != nil {
		t.Fatal(err)
	}
	if _, took, err := story.WaitBanner(ctx, s.Rig.LAN.ProviderHost.Namespace, netip.AddrPortFrom(story.Floating, 22)); err != nil {
		t.Error(err)
	} else if took > story.FirstAnswerWithin {
		t.Errorf("the first answer after Ready took %s", took)
	}
}

func release(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	vm, err := s.VM(ctx, story.Namespace, story.VMName)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Client.Delete(ctx, vm); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitReleased(ctx, story.Floating); err != nil {
		t.Fatal(err)
	}
	if _, err := story.Knock(ctx, s.Rig.LAN.ProviderHost.Namespace, story.Floating, 1); err == nil {
		t.Errorf("%s still answers", story.Floating)
	}
	next, err := createVM(ctx, s, story.Namespace, "next", nil)
	if err != nil {
		t.Fatal(err)
	}
	if next.Annotations[floatip.AnnotationAddress] == story.Floating.String() {
		t.Errorf("%s was handed out again at once", story.Floating)
	}
	again, err := createVM(ctx, s, story.Namespace, story.VMName, nil)
	if err != nil {
		t.Fatal(err)
	}
	if have := again.Annotations[floatip.AnnotationAddress]; have != story.Floating.String() {
		t.Errorf("the VM of the same name got %s, want its old address %s", have, story.Floating)
	}
}
