package virthandler

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	v1 "kubevirt.io/api/core/v1"

	cmdclient "kubevirt.io/kubevirt/pkg/virt-handler/cmd-client"
	"kubevirt.io/kubevirt/pkg/virt-handler/isolation"
)

// socketsVolume is the emptyDir where virt-launcher has its sockets.
const socketsVolume = "sockets"

// findPod returns the folder and the network namespace of the launcher pod of an instance on this node, which
// virt-handler finds by status.activePods too.
func (h *Handler) findPod(vmi *v1.VirtualMachineInstance) (dir string, network Namespace, err error) {
	var errs []error
	for uid, node := range vmi.Status.ActivePods {
		if node != h.Node {
			continue
		}
		dir := filepath.Join(h.KubeletDir, "pods", string(uid))
		network, err := networkOf(dir)
		if err == nil {
			return dir, network, nil
		}
		errs = append(errs, err)
	}
	return "", "", fmt.Errorf("no virt-launcher pod of the instance has a network namespace on node %s: %w",
		h.Node, errors.Join(errs...))
}

// networkOf returns the network namespace of the pod with the given folder: the one that the rig's kubelet has noted
// there, or else that of the process at the other end of virt-launcher's socket, which is how virt-handler knows it.
func networkOf(dir string) (Namespace, error) {
	noted := filepath.Join(dir, "netns")
	if _, err := os.Stat(noted); err == nil {
		return Namespace(noted), nil
	}
	socket := filepath.Join(emptyDirs(dir), socketsVolume, cmdclient.StandardLauncherSocketFileName)
	launcher, err := isolation.NewSocketBasedIsolationDetector().DetectForSocket(socket)
	if err != nil {
		return "", err
	}
	return Namespace(fmt.Sprintf("/proc/%d/ns/net", launcher.Pid())), nil
}

// emptyDirs is where kubelet has the volumes of that kind of the pod with the given folder.
func emptyDirs(podDir string) string {
	return filepath.Join(podDir, "volumes", "kubernetes.io~empty-dir")
}
