package rig

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"floatip.io/floatip/test/rig/kubelet"
	"floatip.io/floatip/test/rig/lan"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/rig/realnode"
)

// real runs pods by package realnode.
type real struct {
	r     *Rig
	nodes map[string]*process.Process // by the node's name
}

func (n real) dir(node string) string { return nodeDir(n.r.Dir, node) }

func (n real) prepare() error { return nil }

// nameserver is where pods and guests would ask for names; nothing answers there.
var nameserver = netip.MustParseAddr("10.96.0.10")

func (n real) start(ctx context.Context, node lan.Node) error {
	kubeconfig, err := n.r.Cluster.NodeKubeconfig(node.Name)
	if err != nil {
		return err
	}
	if err := n.announce(ctx, node); err != nil {
		return err
	}
	dir := n.dir(node.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	path, args, err := realnode.Prepare(realnode.Config{
		Name: node.Name, Dir: dir, Address: node.Address, PodNetwork: node.PodNetwork, Nameserver: nameserver,
		Kubeconfig: kubeconfig, ClientCA: n.r.Cluster.ClientCA(),
		Kubelet: n.r.binaries.realKubelet(), Packages: n.r.binaries.packages(),
	}, n.images(), n.r.binaries.realNode())
	if err != nil {
		return err
	}
	n.nodes[node.Name], err = n.r.startKubelet(node, filepath.Join(dir, "real-node.log"), path, args...)
	return err
}

// images are those of the product, and the stand-ins for all others.
func (n real) images() map[string]realnode.Image {
	launcher := n.r.binaries.launcher()
	images := map[string]realnode.Image{
		realnode.SandboxImage: {
			Files: map[string]string{"/pause": n.r.binaries.pause()}, Entrypoint: []string{"/pause"},
		},
		realnode.AnyImage: {Files: map[string]string{
			"/usr/bin/cp": launcher, "/usr/bin/container-disk": launcher,
			"/usr/bin/virt-launcher-monitor": launcher, "/usr/bin/virt-tail": launcher,
		}},
	}
	for name, image := range n.r.binaries.images() {
		images[name] = realnode.Image{Files: image.Files, Entrypoint: image.Entrypoint, User: image.User}
	}
	return images
}

// announce makes the Node object before the kubelet registers it, with the pods' network that the LAN has given to the
// node. Kubelet takes such an object for its own and keeps what others wrote.
func (n real) announce(ctx context.Context, node lan.Node) error {
	client, err := kubernetes.NewForConfig(n.r.Cluster.RESTConfig())
	if err != nil {
		return err
	}
	_, err = client.CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: node.Name, Labels: kubelet.KubeVirtLabels()},
		Spec:       corev1.NodeSpec{PodCIDR: node.PodNetwork.String(), PodCIDRs: []string{node.PodNetwork.String()}},
	}, metav1.CreateOptions{})
	return err
}

// settle tells the devices that KubeVirt's device plugins would have told kubelet. It sets them to zero when it
// registers (pkg/kubelet/kubelet_node_status.go, reconcileExtendedResource) and then leaves them alone.
func (n real) settle(ctx context.Context, node lan.Node) error {
	client, err := kubernetes.NewForConfig(n.r.Cluster.RESTConfig())
	if err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"capacity": kubelet.KubeVirtDevices()}})
	if err != nil {
		return err
	}
	_, err = client.CoreV1().Nodes().Patch(ctx, node.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// handler runs in the node's namespaces, as the pod of virt-handler does with hostPID.
func (n real) handler(node lan.Node) (path string, args []string, kubeletDir string, err error) {
	holder, ok := n.nodes[node.Name]
	if !ok {
		return "", nil, "", fmt.Errorf("%s was not started", node.Name)
	}
	path, args, err = realnode.Enter(holder.PID, n.r.binaries.handler())
	return path, args, "/var/lib/kubelet", err
}

func (n real) path(node, path string) string { return realnode.Path(n.dir(node), path) }

func (n real) podNetNS(pod *corev1.Pod) (string, error) {
	return realnode.PodNetNS(n.dir(pod.Spec.NodeName), pod.UID)
}

func (n real) containerPID(pod *corev1.Pod, container string) (int, error) {
	return realnode.ContainerPID(n.dir(pod.Spec.NodeName), pod, container)
}

// exec is kubectl's, by API server and kubelet.
func (n real) exec(ctx context.Context, pod *corev1.Pod, container string, command ...string) (string, error) {
	args := []string{"--namespace=" + pod.Namespace, "exec", pod.Name, "--container=" + container, "--"}
	return n.r.Cluster.Kubectl(ctx, nil, append(args, command...)...)
}
