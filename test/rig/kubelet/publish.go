package kubelet

import (
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// setAddresses fills in where the pod is.
func setAddresses(status *corev1.PodStatus, node, node6 netip.Addr, pod []netip.Addr) {
	status.HostIP = node.String()
	status.HostIPs = []corev1.HostIP{{IP: node.String()}, {IP: node6.String()}}
	status.PodIP, status.PodIPs = pod[0].String(), nil
	for _, a := range pod {
		status.PodIPs = append(status.PodIPs, corev1.PodIP{IP: a.String()})
	}
}

// ownConditions are those that kubelet writes. A patch with others could undo what their owners wrote meanwhile.
var ownConditions = []corev1.PodConditionType{
	corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady,
}

// publish writes the pod's status if it has changed. What could not be written is tried again in the next round, which
// it makes come soon.
func (w *worker) publish(ctx context.Context, pod *corev1.Pod) {
	_, _, containers := w.snapshot()
	status := podStatus(pod, containers, now())
	if status.StartTime == nil {
		start := now()
		status.StartTime = &start
	}
	w.mu.Lock()
	showProblems(status.InitContainerStatuses, w.problems)
	showProblems(status.ContainerStatuses, w.problems)
	w.mu.Unlock()
	status.Conditions = slices.DeleteFunc(status.Conditions, func(c corev1.PodCondition) bool {
		return !slices.Contains(ownConditions, c.Type)
	})
	if status.StartTime != nil && w.published.StartTime != nil {
		status.StartTime = w.published.StartTime
	}
	if equality.Semantic.DeepEqual(status, w.published) {
		return
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": status})
	if err != nil {
		w.k.log.Error("cannot encode the pod's status", "pod", pod.Name, "error", err)
		return
	}
	pods := w.k.client.CoreV1().Pods(pod.Namespace)
	_, err = pods.Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil && !apierrors.IsNotFound(err) {
		w.k.log.Warn("cannot write the pod's status, trying again", "pod", pod.Name, "error", err)
		time.AfterFunc(problemRetry, w.look)
		return
	}
	w.published = status
}

// showProblems lets containers that could not be started say why.
func showProblems(list []corev1.ContainerStatus, problems map[string]corev1.ContainerStateWaiting) {
	for i := range list {
		if waiting, ok := problems[list[i].Name]; ok && list[i].State.Running == nil {
			list[i].State = corev1.ContainerState{Waiting: &waiting}
		}
	}
}

// deleteObject removes the pod's object for good, unless it is another pod's by now.
func (k *Kubelet) deleteObject(ctx context.Context, pod *corev1.Pod) error {
	err := k.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: new(int64(0)), Preconditions: &metav1.Preconditions{UID: &pod.UID},
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}
