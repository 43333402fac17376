package kubelet

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// statuses are what is known of a pod's containers, by name. A container that never ran has no entry.
type statuses map[string]corev1.ContainerStatus

func (s statuses) running(name string) bool { return s[name].State.Running != nil }

// ended returns how a container ended, or nil while it runs and before it ever ran.
func (s statuses) ended(name string) *corev1.ContainerStateTerminated {
	return s[name].State.Terminated
}

// started reports whether a running container has passed its startup probe.
func (s statuses) started(name string) bool { return s.running(name) && deref(s[name].Started, false) }

// steps is what to do next for a pod.
type steps struct {
	// Start are the containers to start now.
	Start []string
	// Signal are the containers to send SIGTERM now.
	Signal []string
	// Retry is when a container that backs off may start, zero for no such container.
	Retry time.Time
	// Done means that no container runs and none will.
	Done bool
}

// Back-off of restarts as kubelet has it (pkg/kubelet/kubelet.go): at once after the first end, then 10 s, doubled
// each time up to what the node's configuration says, and from the beginning after 10 minutes of running.
const (
	firstBackOff   = 10 * time.Second
	defaultBackOff = 5 * time.Minute // crashLoopBackOff.maxContainerRestartPeriod where it is not set
	healthyRun     = 10 * time.Minute
)

// backOff returns how long to wait after the container ended before it starts again, longest at most.
func backOff(s corev1.ContainerStatus, longest time.Duration) time.Duration {
	end := s.State.Terminated
	if end == nil || s.RestartCount == 0 || end.FinishedAt.Sub(end.StartedAt.Time) > healthyRun {
		return 0
	}
	delay := min(firstBackOff, longest)
	for range s.RestartCount - 1 {
		delay = min(2*delay, longest)
	}
	return delay
}

// planSteps decides for a pod that nobody deletes. Longest bounds the back-off of restarts. Native sidecars are init containers with restartPolicy Always.
func planSteps(pod *corev1.Pod, s statuses, now time.Time, longest time.Duration) steps {
	var next steps
	if over(pod, s) {
		next.Signal = signalOrder(pod, s)
		next.Done = noneRuns(pod, s)
		return next
	}
	// A crashed sidecar restarts whatever else goes on; init containers have their turn only once.
	begun := slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool { _, ran := s[c.Name]; return ran })
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if isSidecar(c) {
			next.startUnlessRunning(c.Name, s, now, longest)
			if !begun && !s.started(c.Name) {
				return next
			}
			continue
		}
		if end := s.ended(c.Name); begun || end != nil && end.ExitCode == 0 {
			continue
		}
		next.startUnlessRunning(c.Name, s, now, longest)
		return next
	}
	for _, c := range pod.Spec.Containers {
		if end := s.ended(c.Name); end == nil || restarts(pod, end) {
			next.startUnlessRunning(c.Name, s, now, longest)
		}
	}
	return next
}

func (next *steps) startUnlessRunning(name string, s statuses, now time.Time, longest time.Duration) {
	if s.running(name) {
		return
	}
	at := now
	if end := s.ended(name); end != nil {
		at = end.FinishedAt.Add(backOff(s[name], longest))
	}
	if at.After(now) {
		if next.Retry.IsZero() || at.Before(next.Retry) {
			next.Retry = at
		}
		return
	}
	next.Start = append(next.Start, name)
}

// over reports whether the pod has done its work, or failed for good: then only sidecars may still run.
func over(pod *corev1.Pod, s statuses) bool {
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		end := s.ended(c.Name)
		failed := !isSidecar(c) && end != nil && end.ExitCode != 0
		if failed && pod.Spec.RestartPolicy == corev1.RestartPolicyNever {
			return true
		}
	}
	for _, c := range pod.Spec.Containers {
		if end := s.ended(c.Name); end == nil || restarts(pod, end) {
			return false
		}
	}
	return true
}

func restarts(pod *corev1.Pod, end *corev1.ContainerStateTerminated) bool {
	switch pod.Spec.RestartPolicy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return end.ExitCode != 0
	}
	return true
}

// signalOrder returns the running containers that are to be told to end now: first all but the sidecars, then the
// sidecars one by one, the last one first (k8s.io/kubernetes pkg/kubelet/kuberuntime/kuberuntime_termination_order.go).
func signalOrder(pod *corev1.Pod, s statuses) []string {
	var now []string
	for _, c := range pod.Spec.Containers {
		if s.running(c.Name) {
			now = append(now, c.Name)
		}
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; !isSidecar(c) && s.running(c.Name) {
			now = append(now, c.Name)
		}
	}
	if len(now) > 0 {
		return now
	}
	for i := range slices.Backward(pod.Spec.InitContainers) {
		if c := &pod.Spec.InitContainers[i]; isSidecar(c) && s.running(c.Name) {
			return []string{c.Name}
		}
	}
	return nil
}

func noneRuns(pod *corev1.Pod, s statuses) bool {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		if slices.ContainsFunc(list, func(c corev1.Container) bool { return s.running(c.Name) }) {
			return false
		}
	}
	return true
}

func isSidecar(c *corev1.Container) bool {
	return deref(c.RestartPolicy, "") == corev1.ContainerRestartPolicyAlways
}

// isPlainInit reports whether the container is an init container that has to end before the others start.
func isPlainInit(pod *corev1.Pod, name string) bool {
	return slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == name && !isSidecar(&c)
	})
}
