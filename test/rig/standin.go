package rig

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"

	"floatip.io/floatip/test/rig/kubelet"
	"floatip.io/floatip/test/rig/lan"
)

// standIn runs pods by package kubelet.
type standIn struct{ r *Rig }

func (s standIn) dir(node string) string { return nodeDir(s.r.Dir, node) }

func (s standIn) images() string { return filepath.Join(s.r.Dir, "images.json") }

func (s standIn) prepare() error {
	raw, err := json.MarshalIndent(s.r.binaries.images(), "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(s.images(), raw, 0o644)
}

// maxRestartPeriod is the least that kubelet's configuration allows: tests kill containers again and again, and what they
// show is not kubelet's patience.
const maxRestartPeriod = time.Second

func (s standIn) start(_ context.Context, node lan.Node) error {
	kubeconfig, err := s.r.Cluster.NodeKubeconfig(node.Name)
	if err != nil {
		return err
	}
	dir := s.dir(node.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	_, err = s.r.startKubelet(node, filepath.Join(dir, "kubelet-standin.log"), s.r.binaries.kubelet(),
		"--node="+node.Name, "--lan="+s.r.Dir, "--dir="+dir, "--kubeconfig="+kubeconfig,
		"--images="+s.images(), "--pause="+s.r.binaries.pause(), "--max-restart-period="+maxRestartPeriod.String())
	return err
}

// settle has nothing to do: the stand-in told everything itself.
func (s standIn) settle(context.Context, lan.Node) error { return nil }

func (s standIn) handler(node lan.Node) (path string, args []string, kubeletDir string, err error) {
	return s.r.binaries.handler(), nil, s.path(node.Name, "/var/lib/kubelet"), nil
}

func (s standIn) path(node, path string) string { return kubelet.NodePath(s.dir(node), path) }

func (s standIn) podNetNS(pod *corev1.Pod) (string, error) {
	return kubelet.PodNetNS(s.dir(pod.Spec.NodeName), pod.UID)
}

func (s standIn) containerPID(pod *corev1.Pod, container string) (int, error) {
	return kubelet.ContainerPID(s.dir(pod.Spec.NodeName), pod.UID, container)
}

func (s standIn) exec(ctx context.Context, pod *corev1.Pod, container string, command ...string) (string, error) {
	return kubelet.Exec(ctx, s.dir(pod.Spec.NodeName), pod.UID, container, command...)
}
