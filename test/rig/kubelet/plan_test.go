package kubelet

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// begin is the time in these tests, and when everything that runs has started.
var begin = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func runs(started bool) corev1.ContainerStatus {
	return corev1.ContainerStatus{
		State:   corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(begin)}},
		Started: &started, Ready: started,
	}
}

func ended(code int32, restarts int32) corev1.ContainerStatus {
	end := &corev1.ContainerStateTerminated{
		ExitCode: code, StartedAt: metav1.NewTime(begin), FinishedAt: metav1.NewTime(begin),
	}
	return corev1.ContainerStatus{RestartCount: restarts, State: corev1.ContainerState{Terminated: end}}
}

// allRun is a samplePod that is well.
func allRun() statuses {
	return statuses{
		"nat": runs(true), "init": ended(0, 0), "console": runs(true), "compute": runs(true), "disk": runs(true),
	}
}

// allEnded is a samplePod that has done its work.
func allEnded() statuses {
	all := statuses{}
	for name := range allRun() {
		all[name] = ended(0, 0)
	}
	return all
}

// with changes one container.
func (s statuses) with(name string, status corev1.ContainerStatus) statuses {
	s[name] = status
	return s
}

// samplePod has a sidecar, an init container, a second sidecar, and two main containers.
func samplePod(policy corev1.RestartPolicy) *corev1.Pod {
	always := corev1.ContainerRestartPolicyAlways
	return &corev1.Pod{Spec: corev1.PodSpec{
		RestartPolicy: policy,
		InitContainers: []corev1.Container{
			{Name: "nat", RestartPolicy: &always}, {Name: "init"}, {Name: "console", RestartPolicy: &always},
		},
		Containers: []corev1.Container{{Name: "compute"}, {Name: "disk"}},
	}}
}

func TestPlanSteps(t *testing.T) {
	never, always := corev1.RestartPolicyNever, corev1.RestartPolicyAlways
	for _, c := range []struct {
		name   string
		policy corev1.RestartPolicy
		have   statuses
		want   steps
	}{
		{"the first init container comes first", never, statuses{}, steps{Start: []string{"nat"}}},
		{"the next waits for a sidecar's startup", never, statuses{"nat": runs(false)}, steps{}},
		{"and goes on after it", never, statuses{"nat": runs(true)}, steps{Start: []string{"init"}}},
		{"an init container has to end", never, statuses{"nat": runs(true), "init": runs(true)}, steps{}},
		{"and then the next one starts", never, statuses{"nat": runs(true), "init": ended(0, 0)},
			steps{Start: []string{"console"}}},
		{"main containers start together", never,
			statuses{"nat": runs(true), "init": ended(0, 0), "console": runs(true)}, steps{Start: []string{"compute", "disk"}}},
		{"all is well", never,
			allRun(), steps{}},
		{"a crashed sidecar restarts beside the main containers", never,
			allRun().with("nat", ended(1, 0)),
			steps{Start: []string{"nat"}}},
		{"a sidecar that crashed again backs off", never,
			allRun().with("nat", ended(1, 1)),
			steps{Retry: begin.Add(firstBackOff)}},
		{"a main container that ended is left alone with policy Never", never,
			allRun().with("compute", ended(1, 0)), steps{}},
		{"and restarted with policy Always", always,
			allRun().with("compute", ended(0, 0)),
			steps{Start: []string{"compute"}}},
		{"sidecars end after the main containers, the last first", never,
			allRun().with("compute", ended(0, 0)).with("disk", ended(0, 0)),
			steps{Signal: []string{"console"}}},
		{"then the first", never,
			allRun().with("console", ended(0, 0)).with("compute", ended(0, 0)).with("disk", ended(0, 0)),
			steps{Signal: []string{"nat"}}},
		{"then the pod is done", never,
			allEnded(),
			steps{Done: true}},
		{"a failed init container ends a pod with policy Never", never, statuses{"nat": runs(true), "init": ended(1, 0)},
			steps{Signal: []string{"nat"}}},
		{"and is repeated otherwise", always, statuses{"nat": runs(true), "init": ended(1, 0)},
			steps{Start: []string{"init"}}},
	} {
		if diff := cmp.Diff(c.want, planSteps(samplePod(c.policy), c.have, begin, defaultBackOff)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestBackOff(t *testing.T) {
	long := ended(1, 7)
	long.State.Terminated.FinishedAt = metav1.NewTime(begin.Add(healthyRun + time.Second))
	for _, c := range []struct {
		status corev1.ContainerStatus
		want   time.Duration
	}{
		{ended(1, 0), 0},
		{ended(1, 1), 10 * time.Second},
		{ended(1, 2), 20 * time.Second},
		{ended(1, 5), 160 * time.Second},
		{ended(1, 6), 5 * time.Minute},
		{ended(1, 60), 5 * time.Minute},
		{long, 0},
	} {
		if got := backOff(c.status, defaultBackOff); got != c.want {
			t.Errorf("back-off after %d restarts: %s, want %s", c.status.RestartCount, got, c.want)
		}
		if got, want := backOff(c.status, time.Second), min(c.want, time.Second); got != want {
			t.Errorf("back-off after %d restarts on a node that allows a second: %s, want %s", c.status.RestartCount, got, want)
		}
	}
}

func TestPhase(t *testing.T) {
	for _, c := range []struct {
		name string
		have statuses
		want corev1.PodPhase
	}{
		{"nothing runs yet", statuses{}, corev1.PodPending},
		{"init containers run", statuses{"nat": runs(true), "init": runs(true)}, corev1.PodPending},
		{"one main container is missing",
			statuses{"nat": runs(true), "init": ended(0, 0), "console": runs(true), "compute": runs(true)}, corev1.PodPending},
		{"all run",
			allRun(), corev1.PodRunning},
		{"the main containers ended but a sidecar runs",
			allRun().with("console", ended(0, 0)).with("compute", ended(0, 0)).with("disk", ended(0, 0)), corev1.PodRunning},
		{"all ended well",
			allEnded(), corev1.PodSucceeded},
		{"a sidecar's code does not count",
			allEnded().with("nat", ended(137, 0)), corev1.PodSucceeded},
		{"a main container failed",
			allEnded().with("compute", ended(1, 0)), corev1.PodFailed},
		{"an init container failed", statuses{"nat": ended(0, 0), "init": ended(1, 0)}, corev1.PodFailed},
	} {
		if got := phase(samplePod(corev1.RestartPolicyNever), c.have); got != c.want {
			t.Errorf("%s: phase %s, want %s", c.name, got, c.want)
		}
	}
}

// A readiness gate that somebody else sets holds back Ready, not ContainersReady, and its condition is kept.
func TestReadinessGate(t *testing.T) {
	const unpaused corev1.PodConditionType = "kubevirt.io/virtual-machine-unpaused"
	all := allRun()
	pod := samplePod(corev1.RestartPolicyNever)
	pod.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: unpaused}}
	pod.Status.PodIP = "100.0.1.2"
	want := map[corev1.PodConditionType]corev1.ConditionStatus{
		corev1.PodReadyToStartContainers: corev1.ConditionTrue, corev1.PodInitialized: corev1.ConditionTrue,
		corev1.ContainersReady: corev1.ConditionTrue, corev1.PodReady: corev1.ConditionFalse,
	}
	pod.Status = podStatus(pod, all, metav1.NewTime(begin))
	if diff := cmp.Diff(want, conditions(pod)); diff != "" {
		t.Errorf("conditions before the gate opens (-want +got):\n%s", diff)
	}
	open := corev1.PodCondition{Type: unpaused, Status: corev1.ConditionTrue}
	pod.Status.Conditions = append(pod.Status.Conditions, open)
	want[corev1.PodReady], want[unpaused] = corev1.ConditionTrue, corev1.ConditionTrue
	pod.Status = podStatus(pod, all, metav1.NewTime(begin.Add(time.Second)))
	if diff := cmp.Diff(want, conditions(pod)); diff != "" {
		t.Errorf("conditions after the gate opened (-want +got):\n%s", diff)
	}
	if at := pod.Status.Conditions[1].LastTransitionTime; !at.Time.Equal(begin) {
		t.Errorf("an unchanged condition: transition at %s, want %s", at, begin)
	}
}

func TestProbeThresholds(t *testing.T) {
	probe := &corev1.Probe{SuccessThreshold: 2, FailureThreshold: 3}
	var results tally
	var got []bool
	for _, passed := range []bool{true, true, true, false, false, true, false, false, false} {
		got = append(got, results.count(passed, probe))
	}
	if diff := cmp.Diff([]bool{false, true, true, false, false, false, false, false, true}, got); diff != "" {
		t.Errorf("when results settle (-want +got):\n%s", diff)
	}
}
