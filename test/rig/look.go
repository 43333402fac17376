package rig

import (
	"context"

	corev1 "k8s.io/api/core/v1"
)

// Kubectl is the path of the real kubectl.
func (r *Rig) Kubectl() string { return r.binaries.kubectl() }

// PodNetNS returns the path of a running pod's network namespace.
func (r *Rig) PodNetNS(pod *corev1.Pod) (string, error) {
	return r.runtime.podNetNS(pod)
}

// ContainerPID returns the process on this machine that is the first one of a running container.
func (r *Rig) ContainerPID(pod *corev1.Pod, container string) (int, error) {
	return r.runtime.containerPID(pod, container)
}

// Exec runs a command in a running container and returns what it wrote.
func (r *Rig) Exec(ctx context.Context, pod *corev1.Pod, container string, command ...string) (string, error) {
	return r.runtime.exec(ctx, pod, container, command...)
}

// VolumePath returns where this machine has the persistent volume of a node.
func (r *Rig) VolumePath(node string) string {
	return r.runtime.path(node, volumePath)
}
