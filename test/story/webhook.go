package story

import (
	"context"
	"fmt"
	"syscall"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip/test/rig/process"
)

// webhookPods lists the pods of the webhook.
func (s *Story) webhookPods(ctx context.Context) ([]corev1.Pod, error) {
	var deployment appsv1.Deployment
	if err := s.get(ctx, systemNamespace, webhookName, &deployment); err != nil {
		return nil, err
	}
	var pods corev1.PodList
	err := s.Client.List(ctx, &pods, client.InNamespace(systemNamespace),
		client.MatchingLabels(deployment.Spec.Selector.MatchLabels))
	return pods.Items, err
}

// KillWebhook kills the webhook's process with SIGKILL and returns at once.
func (s *Story) KillWebhook(ctx context.Context) error {
	pods, err := s.webhookPods(ctx)
	if err != nil {
		return err
	}
	if len(pods) != 1 {
		return fmt.Errorf("%d pods of the webhook, want 1", len(pods))
	}
	pid, err := s.Rig.ContainerPID(&pods[0], pods[0].Spec.Containers[0].Name)
	if err != nil {
		return err
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

// ScaleWebhook sets how many pods of the webhook there shall be, 0 or 1, and waits until it is so.
func (s *Story) ScaleWebhook(ctx context.Context, replicas int) error {
	_, err := s.Kubectl(ctx, "", "-n", systemNamespace, "scale", "deployment", webhookName, fmt.Sprintf("--replicas=%d", replicas))
	if err != nil {
		return err
	}
	if replicas > 0 {
		return process.Wait(ctx, s.progress, "floatip's webhook", s.installed)
	}
	return process.Wait(ctx, s.progress, "the webhook to end", func(ctx context.Context) error {
		pods, err := s.webhookPods(ctx)
		if err == nil && len(pods) > 0 {
			err = fmt.Errorf("%d pods are left", len(pods))
		}
		return err
	})
}
