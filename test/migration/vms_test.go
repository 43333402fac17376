package migration

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/story"
)

// vm is one of the test's virtual machines.
type vm struct {
	name     string
	floating []netip.Addr // as a fresh ledger gives them
	// allow says who may open connections to the guest. What else goes on elsewhere is known to the pod's kernel, or lost.
	allow string
}

var (
	testvm = vm{
		story.VMName, []netip.Addr{story.Floating, story.Floating6},
		fmt.Sprintf("tcp/%d, udp/%d, tcp/%d, tcp/22", echoPort, echoPort, passOnPort),
	}
	other = vm{"other", []netip.Addr{story.Floating.Next()}, fmt.Sprintf("tcp/%d", echoPort)}
)

// boot creates and starts the VMs, and waits until they are ready.
func boot(ctx context.Context, t *testing.T, s *story.Story) {
	t.Helper()
	manifest, err := s.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []vm{testvm, other} {
		annotations := map[string]string{floatip.AnnotationAllow: v.allow}
		if len(v.floating) > 1 {
			annotations[floatip.AnnotationPool] = story.Pool + "," + story.Pool6
		}
		text := migratesWhenEvicted(story.WithAnnotations(manifest, v.name, annotations))
		if out, err := s.Kubectl(ctx, text, "-n", story.Namespace, "apply", "-f", "-"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if err := s.Rig.KubeVirt.Start(ctx, story.Namespace, v.name); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range []vm{testvm, other} {
		for _, a := range v.floating {
			if _, err := s.WaitReady(ctx, a); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// migratesWhenEvicted returns the manifest with the eviction strategy LiveMigrate.
func migratesWhenEvicted(manifest string) string {
	const before = "    spec:\n      domain:\n"
	return strings.Replace(manifest, before, "    spec:\n      evictionStrategy: LiveMigrate\n      domain:\n", 1)
}

func (v vm) instance(ctx context.Context, t *testing.T, s *story.Story) *kubevirtv1.VirtualMachineInstance {
	t.Helper()
	vmi := new(kubevirtv1.VirtualMachineInstance)
	if err := s.Client.Get(ctx, client.ObjectKey{Namespace: story.Namespace, Name: v.name}, vmi); err != nil {
		t.Fatal(err)
	}
	return vmi
}

// arrived waits until KubeVirt has finished, and the VM's FloatingIPs are Ready on the other node, with so many connections at
// least that the old one has handed over.
func arrived(ctx context.Context, t *testing.T, s *story.Story, v vm, from *kubevirtv1.VirtualMachineInstance, connections int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	err := process.Wait(ctx, nil, "the guest on the other node", func(ctx context.Context) error {
		vmi := v.instance(ctx, t, s)
		state := vmi.Status.MigrationState
		if vmi.Status.NodeName == from.Status.NodeName || state == nil || !state.Completed {
			return fmt.Errorf("the instance is on %s: %+v", vmi.Status.NodeName, state)
		}
		for _, a := range v.floating {
			fip, err := s.FloatingIP(ctx, a)
			if err != nil {
				return err
			}
			if fip.Status.Node != vmi.Status.NodeName || fip.Status.Phase != v1alpha1.PhaseReady || fip.Status.Pod != state.TargetPod {
				return fmt.Errorf("%s is %s on %s, pod %s: %s", a, fip.Status.Phase, fip.Status.Node, fip.Status.Pod,
					story.Unmet(fip.Status.Conditions))
			}
			// The old node's word comes a moment after the rest.
			if m := fip.Status.LastMove; m == nil || m.To != vmi.Status.NodeName || int(m.Connections) < connections {
				return fmt.Errorf("%s tells of the move %+v", a, fip.Status.LastMove)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
