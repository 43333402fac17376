package realnode

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"floatip.io/floatip/test/rig/cgroup"
)

// ContainerPID returns a process of a running container, as this machine numbers it. Containers of the rig have one
// process.
func ContainerPID(dir string, pod *corev1.Pod, container string) (int, error) {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, status := range list {
			if status.Name != container {
				continue
			}
			id := status.ContainerID[strings.LastIndex(status.ContainerID, "/")+1:]
			return firstPID(dir, "pod"+string(pod.UID), id)
		}
	}
	return 0, fmt.Errorf("pod %s has no status of container %s", pod.Name, container)
}

// PodNetNS returns the path of the network namespace of a running pod.
func PodNetNS(dir string, uid types.UID) (string, error) {
	pid, err := firstPID(dir, "pod"+string(uid), "*")
	if err != nil {
		return "", fmt.Errorf("network namespace of pod %s: %w", uid, err)
	}
	return fmt.Sprintf("/proc/%d/ns/net", pid), nil
}

// firstPID returns a process in a group below that of a pod, whatever the pod's class of service.
func firstPID(dir, pod, container string) (int, error) {
	all, err := cgroup.Hierarchies()
	if err != nil {
		return 0, err
	}
	for _, class := range []string{"", "burstable", "besteffort"} {
		files, err := filepath.Glob(filepath.Join(all[0], cgroup.Of(dir), "kubepods", class, pod, container, "cgroup.procs"))
		if err != nil {
			return 0, err
		}
		for _, file := range files {
			raw, err := os.ReadFile(file)
			if first, _, _ := strings.Cut(string(raw), "\n"); err == nil && first != "" {
				return strconv.Atoi(first)
			}
		}
	}
	return 0, fmt.Errorf("no process in a control group %s/%s of the node", pod, container)
}
