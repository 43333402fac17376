package kubelet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"floatip.io/floatip/test/rig/cgroup"
)

// containerID names a container for runc.
func containerID(pod *corev1.Pod, name string) string { return idOf(pod.UID, name) }

func idOf(pod types.UID, container string) string { return string(pod) + "." + container }

// startContainer starts a container and its probes. A container that cannot be started is shown as waiting, with the
// reason, and the error is returned.
func (w *worker) startContainer(ctx context.Context, pod *corev1.Pod, name string) error {
	c := findContainer(pod, name)
	image := w.k.images.find(c.Image, w.k.pause)
	reason, exit, err := w.launch(ctx, pod, c, image)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.problems[name] = corev1.ContainerStateWaiting{Reason: reason, Message: err.Error()}
		w.report(pod, corev1.EventTypeWarning, "Failed", fmt.Sprintf("container %s: %s: %v", name, reason, err))
		return err
	}
	delete(w.problems, name)
	delete(w.signalled, name)
	status := corev1.ContainerStatus{
		ContainerID: "runc://" + containerID(pod, name), ImageID: imageID(c.Image),
		State:   corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now()}},
		Started: new(c.StartupProbe == nil || image.StandIn && c.StartupProbe.Exec != nil),
	}
	status.Ready = *status.Started && (c.ReadinessProbe == nil || image.StandIn && c.ReadinessProbe.Exec != nil)
	if last, ran := w.containers[name]; ran {
		status.RestartCount = last.RestartCount + 1
		status.LastTerminationState = last.State
	}
	w.containers[name] = status
	w.probe(ctx, pod, c, image)
	go w.await(pod, c, exit)
	w.report(pod, corev1.EventTypeNormal, "Started", "Started container "+name)
	return nil
}

// launch runs the container. A failure comes with kubelet's word for it.
func (w *worker) launch(
	ctx context.Context, pod *corev1.Pod, c *corev1.Container, image Image,
) (reason string, exit <-chan int, err error) {
	env, err := w.k.environment(ctx, pod, c, image)
	if err != nil {
		return reasonConfig, nil, err
	}
	bundle := w.k.paths.bundle(pod.UID, c.Name)
	spec, err := ociSpec(containerInput{
		pod: pod, container: c, image: image, env: env, volumes: w.volumes, sandbox: *w.sandbox, bundle: bundle,
		cgroup: filepath.Join(cgroup.Of(w.k.paths.dir), containerID(pod, c.Name)),
	})
	if err != nil {
		return reasonConfig, nil, err
	}
	id := containerID(pod, c.Name)
	if err := w.k.runc.remove(ctx, id); err != nil {
		return reasonCreateError, nil, err
	}
	exit, err = w.k.runc.start(ctx, id, bundle, w.k.paths.log(pod.UID, c.Name), spec)
	return reasonRunError, exit, err
}

// await notes the container's end when it comes.
func (w *worker) await(pod *corev1.Pod, c *corev1.Container, exit <-chan int) {
	code := <-exit
	if err := os.RemoveAll(filepath.Join(w.k.paths.bundle(pod.UID, c.Name), pidFile)); err != nil {
		w.k.log.Error("cannot remove the container's pid file", "container", c.Name, "error", err)
	}
	message := w.terminationMessage(pod, c, code)
	w.unprobe(c.Name)
	w.mu.Lock()
	defer w.mu.Unlock()
	status := w.containers[c.Name]
	end := &corev1.ContainerStateTerminated{
		ExitCode: int32(code), Reason: "Completed", Message: message, ContainerID: status.ContainerID,
		StartedAt: status.State.Running.StartedAt, FinishedAt: now(),
	}
	if code != 0 {
		end.Reason = "Error"
	}
	status.State, status.Ready, status.Started = corev1.ContainerState{Terminated: end}, false, new(false)
	w.containers[c.Name] = status
	w.k.log.Info("container ended", "pod", pod.Namespace+"/"+pod.Name, "container", c.Name, "code", code)
	w.look()
}

// Limits of a termination message from the container's log (Kubernetes API, terminationMessagePolicy).
const (
	maxTerminationLog   = 2048
	maxTerminationLines = 80
)

// terminationMessage is what the container wrote for the purpose or, if it wants so and failed, the end of its log.
func (w *worker) terminationMessage(pod *corev1.Pod, c *corev1.Container, code int) string {
	text, err := os.ReadFile(filepath.Join(w.k.paths.bundle(pod.UID, c.Name), terminationLog))
	fallBack := code != 0 && c.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError
	if err == nil && len(text) > 0 || !fallBack {
		return tail(text)
	}
	text, err = os.ReadFile(w.k.paths.log(pod.UID, c.Name))
	if err != nil {
		return ""
	}
	return tail(text)
}

func tail(text []byte) string {
	if over := len(text) - maxTerminationLog; over > 0 {
		text = text[over:]
	}
	lines := strings.SplitAfter(string(text), "\n")
	return strings.Join(lines[max(0, len(lines)-maxTerminationLines):], "")
}

// probe starts the container's probes. The caller holds w.mu.
func (w *worker) probe(ctx context.Context, pod *corev1.Pod, c *corev1.Container, image Image) {
	probed := c.DeepCopy()
	if image.StandIn { // the program that an exec probe names is not there
		for _, p := range []**corev1.Probe{&probed.StartupProbe, &probed.ReadinessProbe, &probed.LivenessProbe} {
			if *p != nil && (*p).Exec != nil {
				*p = nil
			}
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	w.stopProbes[c.Name] = cancel
	id := containerID(pod, c.Name)
	p := prober{
		address: w.sandbox.Addresses[0].String(),
		exec:    func(ctx context.Context, command []string) error { return w.k.runc.exec(ctx, id, command) },
		report: func(kind probeKind, passed bool, detail error) {
			if ctx.Err() == nil {
				w.probed(ctx, pod, c.Name, kind, passed, detail)
			}
		},
	}
	go p.run(ctx, probed)
}

// unprobe stops the container's probes.
func (w *worker) unprobe(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if stop := w.stopProbes[name]; stop != nil {
		stop()
		delete(w.stopProbes, name)
	}
}

// probed notes what a probe has settled.
func (w *worker) probed(ctx context.Context, pod *corev1.Pod, name string, kind probeKind, passed bool, detail error) {
	if !passed {
		text := fmt.Sprintf("%s probe of container %s failed: %v", kind, name, detail)
		w.report(pod, corev1.EventTypeWarning, "Unhealthy", text)
	}
	w.mu.Lock()
	status := w.containers[name]
	switch {
	case kind == readinessProbe:
		status.Ready = passed
	case kind == startupProbe && passed:
		c := findContainer(pod, name)
		status.Started, status.Ready = new(true), c.ReadinessProbe == nil
	}
	w.containers[name] = status
	run := status.State.Running
	w.mu.Unlock()
	if kind != readinessProbe && !passed {
		w.kill(ctx, pod, name, run)
	}
	w.look()
}

// kill ends one run of a container that failed its probe; the plan starts it again.
func (w *worker) kill(ctx context.Context, pod *corev1.Pod, name string, run *corev1.ContainerStateRunning) {
	w.report(pod, corev1.EventTypeNormal, "Killing", "container "+name+" failed its probe and will be restarted")
	w.signal(ctx, pod, name, syscall.SIGTERM)
	time.AfterFunc(gracePeriod(pod.Spec.TerminationGracePeriodSeconds), func() {
		w.mu.Lock()
		same := w.containers[name].State.Running == run
		w.mu.Unlock()
		if same && ctx.Err() == nil {
			w.signal(ctx, pod, name, syscall.SIGKILL)
		}
	})
}
