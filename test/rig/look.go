package rig

import (
	corev1 "k8s.io/api/core/v1"

	"floatip.io/floatip/test/rig/kubelet"
)

// Kubectl is the path of the real kubectl.
func (r *Rig) Kubectl() string { return r.binaries.kubectl() }

// PodNetNS returns the path of a running pod's network namespace.
func (r *Rig) PodNetNS(pod *corev1.Pod) (string, error) {
	return kubelet.PodNetNS(nodeDir(r.Dir, pod.Spec.NodeName), pod.UID)
}

// ContainerPID returns the process on this machine that is the first one of a running container.
func (r *Rig) ContainerPID(pod *corev1.Pod, container string) (int, error) {
	return kubelet.ContainerPID(nodeDir(r.Dir, pod.Spec.NodeName), pod.UID, container)
}
