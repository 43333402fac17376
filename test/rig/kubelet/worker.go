package kubelet

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// refreshInterval is how often volumes with data of the API are read anew; a change of the pod's own object refreshes
// them at once.
const refreshInterval = 30 * time.Second

// problemRetry is how soon a step that failed, such as mounting a volume, is tried again.
const problemRetry = time.Second

// forcedGrace is what the containers of a pod get whose object vanished without notice.
const forcedGrace = time.Second

// worker runs one pod. Events of any kind only wake it; each round looks at everything anew.
type worker struct {
	k    *Kubelet
	wake chan struct{} // capacity 1

	mu         sync.Mutex // guards what follows
	pod        *corev1.Pod
	gone       bool // the object was deleted
	containers statuses
	problems   map[string]corev1.ContainerStateWaiting // containers that could not be started, and why
	stopProbes map[string]context.CancelFunc

	// Only the worker's own goroutine uses these.
	sandbox   *sandbox
	volumes   map[string]string
	mountedAt time.Time
	mountedBy string // resource version of the pod that volumes follow
	signalled map[string]bool
	killAt    time.Time // when what still runs gets SIGKILL; zero as long as nothing has to end
	published corev1.PodStatus
}

func newWorker(k *Kubelet, pod *corev1.Pod) *worker {
	return &worker{
		k: k, wake: make(chan struct{}, 1), pod: pod, containers: statuses{},
		problems: map[string]corev1.ContainerStateWaiting{}, stopProbes: map[string]context.CancelFunc{},
		signalled: map[string]bool{},
	}
}

// observe takes a newer version of the pod's object.
func (w *worker) observe(pod *corev1.Pod, gone bool) {
	w.mu.Lock()
	w.pod, w.gone = pod, w.gone || gone
	w.mu.Unlock()
	w.look()
}

// look makes the worker look again soon.
func (w *worker) look() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// snapshot returns copies that the worker may use without the lock.
func (w *worker) snapshot() (pod *corev1.Pod, gone bool, containers statuses) {
	w.mu.Lock()
	defer w.mu.Unlock()
	containers = statuses{}
	for name, status := range w.containers {
		containers[name] = status
	}
	return w.pod.DeepCopy(), w.gone, containers
}

// run works until the pod is gone or ctx ends.
func (w *worker) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		}
		again, over := w.round(ctx)
		if over {
			return
		}
		timer.Reset(time.Until(again))
	}
}

// round does what is to be done now. It returns when to look again at the latest, and whether the pod is gone for good.
func (w *worker) round(ctx context.Context) (again time.Time, over bool) {
	pod, gone, containers := w.snapshot()
	switch {
	case pod.DeletionTimestamp != nil || gone:
		return w.terminate(ctx, pod, gone, containers)
	case finished(w.published.Phase):
		// Its last container may have ended after the plan was made, and before the status was written.
		if w.sandbox != nil {
			w.release(pod)
		}
		return time.Now().Add(refreshInterval), false
	}
	if err := w.prepare(ctx, pod); err != nil {
		w.report(pod, corev1.EventTypeWarning, "FailedMount", err.Error())
		w.publish(ctx, pod)
		return time.Now().Add(problemRetry), false
	}
	again = time.Now().Add(refreshInterval)
	next := planSteps(pod, containers, time.Now(), w.k.maxRestartPeriod)
	for _, name := range next.Start {
		if err := w.startContainer(ctx, pod, name); err != nil {
			again = time.Now().Add(problemRetry)
		}
	}
	if !next.Retry.IsZero() && next.Retry.Before(again) {
		again = next.Retry
	}
	if len(next.Signal) > 0 {
		again = earlier(again, w.end(ctx, pod, next.Signal, gracePeriod(pod.Spec.TerminationGracePeriodSeconds)))
	}
	if next.Done {
		w.release(pod)
	}
	if len(next.Start) > 0 {
		w.look() // what was started may allow the next step
	}
	w.publish(ctx, pod)
	return again, false
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func gracePeriod(seconds *int64) time.Duration {
	return time.Duration(deref(seconds, 30)) * time.Second
}

// prepare makes the pod's sandbox and volumes, and refreshes the volumes when they are due.
func (w *worker) prepare(ctx context.Context, pod *corev1.Pod) error {
	if w.sandbox == nil {
		s, err := w.k.makeSandbox(ctx, pod)
		if err != nil {
			return err
		}
		w.sandbox = &s
	}
	setAddresses(&pod.Status, w.k.node.Address, w.k.node.Address6, w.sandbox.Addresses)
	if pod.ResourceVersion == w.mountedBy && time.Since(w.mountedAt) < refreshInterval && w.volumes != nil {
		return nil
	}
	volumes, err := w.k.mountVolumes(ctx, pod)
	if err != nil && w.volumes != nil {
		// Running containers keep what they have.
		w.report(pod, corev1.EventTypeWarning, "FailedMount", err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	w.volumes, w.mountedAt, w.mountedBy = volumes, time.Now(), pod.ResourceVersion
	return nil
}

// terminate ends the pod's containers in order, then the rest of the pod, and at last its object.
func (w *worker) terminate(
	ctx context.Context, pod *corev1.Pod, gone bool, containers statuses,
) (again time.Time, over bool) {
	grace := gracePeriod(pod.DeletionGracePeriodSeconds)
	if gone && pod.DeletionTimestamp == nil {
		grace = forcedGrace
	}
	if order := signalOrder(pod, containers); len(order) > 0 {
		again = w.end(ctx, pod, order, grace)
		w.publish(ctx, pod)
		return again, false
	}
	w.release(pod)
	if !gone {
		w.publish(ctx, pod)
		if err := w.k.deleteObject(ctx, pod); err != nil {
			w.k.log.Warn("cannot delete the pod's object, trying again", "pod", pod.Name, "error", err)
			return time.Now().Add(problemRetry), false
		}
	}
	if err := os.RemoveAll(w.k.paths.pod(pod.UID)); err != nil {
		w.k.log.Error("cannot remove the pod's folder", "pod", pod.Name, "error", err)
	}
	w.k.log.Info("pod is gone", "pod", pod.Namespace+"/"+pod.Name)
	return time.Time{}, true
}

// end tells containers to end, once each, and kills whatever of the pod still runs when the grace period is over. It
// returns when that is.
func (w *worker) end(ctx context.Context, pod *corev1.Pod, names []string, grace time.Duration) time.Time {
	if deadline := time.Now().Add(grace); w.killAt.IsZero() || deadline.Before(w.killAt) {
		w.killAt = deadline
	}
	for _, name := range names {
		if w.signalled[name] {
			continue
		}
		w.signalled[name] = true
		w.unprobe(name)
		w.report(pod, corev1.EventTypeNormal, "Killing", "Stopping container "+name)
		w.signal(ctx, pod, name, syscall.SIGTERM)
	}
	if time.Now().Before(w.killAt) {
		return w.killAt
	}
	for _, name := range names {
		w.signal(ctx, pod, name, syscall.SIGKILL)
	}
	return time.Now().Add(problemRetry)
}

func (w *worker) signal(ctx context.Context, pod *corev1.Pod, name string, signal syscall.Signal) {
	if signal == syscall.SIGTERM {
		awaitHandler(ctx, filepath.Join(w.k.paths.bundle(pod.UID, name), pidFile))
	}
	if err := w.k.runc.signal(ctx, containerID(pod, name), signal); err != nil {
		w.k.log.Warn("cannot signal container", "pod", pod.Name, "container", name, "error", err)
	}
}

// release gives back the pod's network namespace and address.
func (w *worker) release(pod *corev1.Pod) {
	if err := w.k.removeSandbox(pod); err != nil {
		w.k.log.Error("cannot remove the pod's sandbox", "pod", pod.Name, "error", err)
	}
	w.sandbox = nil
}

// report writes an event on the pod, and a line to the log.
func (w *worker) report(pod *corev1.Pod, kind, reason, message string) {
	w.k.log.Info(message, "pod", pod.Namespace+"/"+pod.Name, "reason", reason)
	w.k.events.Event(pod, kind, reason, message)
}
