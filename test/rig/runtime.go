package rig

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	"floatip.io/floatip/test/rig/lan"
	"floatip.io/floatip/test/rig/process"
)

// runtime is what runs the pods of the nodes: the stand-in of kubelet, or the real one.
type runtime interface {
	// prepare is called once, before start.
	prepare() error
	// start starts the kubelet of a node.
	start(ctx context.Context, node lan.Node) error
	// settle is called once the Node object is ready, and adds what KubeVirt's own programs would tell of the node.
	settle(ctx context.Context, node lan.Node) error
	// handler says how to run the stand-in of virt-handler on a node: the program, what comes before its own arguments, and
	// the kubelet's directory as it sees it.
	handler(node lan.Node) (path string, args []string, kubeletDir string, err error)
	// path returns where this machine has a path below /var/lib of a node.
	path(node, path string) string

	podNetNS(pod *corev1.Pod) (string, error)
	containerPID(pod *corev1.Pod, container string) (int, error)
	exec(ctx context.Context, pod *corev1.Pod, container string, command ...string) (string, error)
}

// startKubelet starts the program that is a node's kubelet, or holds it.
func (r *Rig) startKubelet(node lan.Node, log, path string, args ...string) (*process.Process, error) {
	return r.group.Start(process.Spec{
		Name: "kubelet-" + node.Name, Path: path, NetNS: node.Namespace, Log: log, Args: args,
	})
}
