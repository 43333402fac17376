package kubelet

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Reasons that kubelet gives for a container that does not run.
const (
	reasonInitializing = "PodInitializing"
	reasonCreating     = "ContainerCreating"
	reasonBackOff      = "CrashLoopBackOff"
	reasonConfig       = "CreateContainerConfigError"
	reasonCreateError  = "CreateContainerError"
	reasonRunError     = "RunContainerError"
)

// podStatus returns the status of a pod: its phase, conditions and containers. Conditions of others, such as a
// readiness gate's, are read from the pod and kept.
func podStatus(pod *corev1.Pod, s statuses, now metav1.Time) corev1.PodStatus {
	status := *pod.Status.DeepCopy()
	waiting := reasonCreating
	if len(pod.Spec.InitContainers) > 0 && !initialized(pod, s) {
		waiting = reasonInitializing
	}
	status.InitContainerStatuses = listStatuses(pod, pod.Spec.InitContainers, s, reasonInitializing)
	status.ContainerStatuses = listStatuses(pod, pod.Spec.Containers, s, waiting)
	status.Phase = phase(pod, s)
	containersReady := status.Phase == corev1.PodRunning && allReady(status.ContainerStatuses) && sidecarsReady(pod, s)
	ready := containersReady && gatesOpen(pod)
	for _, c := range []struct {
		kind corev1.PodConditionType
		is   bool
		why  string
	}{
		{corev1.PodReadyToStartContainers, status.PodIP != "" && !finished(status.Phase), ""},
		{corev1.PodInitialized, initialized(pod, s), "ContainersNotInitialized"},
		{corev1.ContainersReady, containersReady, notReadyReason(status.Phase, "ContainersNotReady")},
		{corev1.PodReady, ready, notReadyReason(status.Phase, readyReason(containersReady))},
	} {
		setCondition(&status, c.kind, c.is, c.why, now)
	}
	return status
}

func finished(p corev1.PodPhase) bool { return p == corev1.PodSucceeded || p == corev1.PodFailed }

func notReadyReason(p corev1.PodPhase, reason string) string {
	if p == corev1.PodSucceeded {
		return "PodCompleted"
	}
	if p == corev1.PodFailed {
		return "PodFailed"
	}
	return reason
}

func readyReason(containersReady bool) string {
	if containersReady {
		return "ReadinessGatesNotReady"
	}
	return "ContainersNotReady"
}

func setCondition(status *corev1.PodStatus, kind corev1.PodConditionType, is bool, reason string, now metav1.Time) {
	value := corev1.ConditionFalse
	if is {
		value, reason = corev1.ConditionTrue, ""
	}
	condition := corev1.PodCondition{Type: kind, Status: value, Reason: reason, LastTransitionTime: now}
	for i, old := range status.Conditions {
		if old.Type != kind {
			continue
		}
		if old.Status == value {
			condition.LastTransitionTime = old.LastTransitionTime
		}
		status.Conditions[i] = condition
		return
	}
	status.Conditions = append(status.Conditions, condition)
}

// phase follows getPhase of kubelet (pkg/kubelet/kubelet_pods.go): a pod is Pending until its main containers have
// started, Running while anything runs or will run again, then Succeeded or Failed.
func phase(pod *corev1.Pod, s statuses) corev1.PodPhase {
	switch {
	case over(pod, s) && noneRuns(pod, s):
		return outcome(pod, s)
	case initialized(pod, s) && allRan(pod, s):
		return corev1.PodRunning
	}
	return corev1.PodPending
}

// allRan reports whether every main container has started at least once.
func allRan(pod *corev1.Pod, s statuses) bool {
	return !slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool { _, ran := s[c.Name]; return !ran })
}

func outcome(pod *corev1.Pod, s statuses) corev1.PodPhase {
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if end := s.ended(c.Name); !isSidecar(c) && (end == nil || end.ExitCode != 0) {
			return corev1.PodFailed
		}
	}
	for _, c := range pod.Spec.Containers {
		if end := s.ended(c.Name); end == nil || end.ExitCode != 0 {
			return corev1.PodFailed
		}
	}
	return corev1.PodSucceeded
}

// initialized reports whether all init containers have done their part: ended well, or started, for sidecars.
func initialized(pod *corev1.Pod, s statuses) bool {
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if isSidecar(c) {
			if _, ran := s[c.Name]; !ran || s[c.Name].RestartCount == 0 && s.running(c.Name) && !s.started(c.Name) {
				return false
			}
			continue
		}
		if end := s.ended(c.Name); end == nil || end.ExitCode != 0 {
			return false
		}
	}
	return true
}

func listStatuses(pod *corev1.Pod, containers []corev1.Container, s statuses, waiting string) []corev1.ContainerStatus {
	var list []corev1.ContainerStatus
	for i := range containers {
		c := &containers[i]
		status, ran := s[c.Name]
		status.Name, status.Image = c.Name, c.Image
		end := status.State.Terminated
		switch {
		case !ran:
			status.State.Waiting, status.Started = &corev1.ContainerStateWaiting{Reason: waiting}, new(false)
		case end == nil || over(pod, s) || pod.DeletionTimestamp != nil:
		case isPlainInit(pod, c.Name) && end.ExitCode == 0:
			status.Ready = true
		case isSidecar(c) || isPlainInit(pod, c.Name) || restarts(pod, end):
			status.LastTerminationState = status.State
			status.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reasonBackOff}}
		}
		list = append(list, status)
	}
	return list
}

func allReady(list []corev1.ContainerStatus) bool {
	return !slices.ContainsFunc(list, func(s corev1.ContainerStatus) bool { return !s.Ready })
}

func sidecarsReady(pod *corev1.Pod, s statuses) bool {
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; isSidecar(c) && !s[c.Name].Ready {
			return false
		}
	}
	return true
}

func gatesOpen(pod *corev1.Pod) bool {
	for _, gate := range pod.Spec.ReadinessGates {
		if !slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == gate.ConditionType && c.Status == corev1.ConditionTrue
		}) {
			return false
		}
	}
	return true
}
