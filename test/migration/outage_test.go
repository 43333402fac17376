package migration

import (
	"context"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/story"
)

// askWithoutWebhook asks for a migration while floatip's webhook is away: the pod that the guest would move to is refused
// rather than made without the sidecar, and the guest runs on where it is, reached by its address. When the webhook is back
// the same migration goes on, without anybody asking again.
func askWithoutWebhook(ctx context.Context, t *testing.T, s *story.Story, all traffic, from *kubevirtv1.VirtualMachineInstance) {
	t.Helper()
	if err := s.ScaleWebhook(ctx, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Rig.KubeVirt.Migrate(ctx, story.Namespace, story.VMName); err != nil {
		t.Fatal(err)
	}
	err := process.Wait(ctx, nil, "KubeVirt to say that the pod is refused", func(ctx context.Context) error {
		var list corev1.EventList
		if err := s.Client.List(ctx, &list, client.InNamespace(story.Namespace)); err != nil {
			return err
		}
		for _, e := range list.Items {
			if e.Reason == "FailedCreate" && strings.Contains(e.Message, "pod-create.floatip.io") {
				return nil
			}
		}
		return errors.New("it does not")
	})
	if err != nil {
		t.Fatal(err)
	}
	all.await(ctx, t, all.marks())
	if now := testvm.instance(ctx, t, s); now.Status.NodeName != from.Status.NodeName || now.Status.Phase != kubevirtv1.Running {
		t.Errorf("the instance is %s on %s, was on %s", now.Status.Phase, now.Status.NodeName, from.Status.NodeName)
	}
	fip, err := s.FloatingIP(ctx, story.Floating)
	if err != nil {
		t.Fatal(err)
	}
	if fip.Status.Phase != v1alpha1.PhaseReady || fip.Status.Node != from.Status.NodeName {
		t.Errorf("the FloatingIP is %s on %s, want it Ready on %s", fip.Status.Phase, fip.Status.Node, from.Status.NodeName)
	}
	if pods, err := launchers(ctx, s, from); err != nil || len(pods) != 1 {
		t.Errorf("%d launchers while the webhook is away, %v; want the one that runs", len(pods), err)
	}
	if err := s.ScaleWebhook(ctx, 1); err != nil {
		t.Fatal(err)
	}
}
