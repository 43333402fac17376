package kubelet

import (
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// paths are the places of one node on this machine.
type paths struct {
	dir string // of the node
}

// machinePaths are the host paths that all nodes share: they are the kernel's.
var machinePaths = []string{"/dev", "/proc", "/sys", "/lib/modules"}

// kubeletDir is where a node has its kubelet directory, as the Pod objects know it.
const kubeletDir = "/var/lib/kubelet"

func (p paths) kubelet() string { return filepath.Join(p.dir, "kubelet") }

func (p paths) pod(uid types.UID) string { return filepath.Join(p.kubelet(), "pods", string(uid)) }

func (p paths) pods() string { return filepath.Join(p.kubelet(), "pods") }

// volume is kubelet's path of a volume. The plugin is for instance "empty-dir".
func (p paths) volume(uid types.UID, plugin, name string) string {
	return filepath.Join(p.pod(uid), "volumes", "kubernetes.io~"+plugin, name)
}

func (p paths) log(uid types.UID, container string) string {
	return filepath.Join(p.pod(uid), "containers", container+".log")
}

// bundle is the folder of a container's OCI configuration and root.
func (p paths) bundle(uid types.UID, container string) string {
	return filepath.Join(p.pod(uid), "containers", container)
}

// runc is where runc keeps the state of this node's containers.
func (p paths) runc() string { return filepath.Join(p.dir, "runc") }

// host translates a path of the node as Pod objects name it.
func (p paths) host(path string) string {
	path = filepath.Clean(path)
	for _, shared := range machinePaths {
		if within(path, shared) {
			return path
		}
	}
	if within(path, kubeletDir) {
		return filepath.Join(p.kubelet(), strings.TrimPrefix(path, kubeletDir))
	}
	return filepath.Join(p.dir, "root", path)
}

func within(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, folder+"/")
}

// NodePath returns where the path of a node, as a hostPath volume names it, lies on this machine. Dir is the node's
// folder, as in Config.
func NodePath(dir, path string) string { return paths{dir}.host(path) }

// PodDir returns the folder of a pod, kubelet/pods/<uid>.
func PodDir(dir string, uid types.UID) string { return paths{dir}.pod(uid) }
