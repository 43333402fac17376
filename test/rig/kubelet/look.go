package kubelet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// PodNetNS returns the path of the network namespace of a pod that runs on the node whose folder is dir.
func PodNetNS(dir string, uid types.UID) (string, error) {
	path, err := os.Readlink(filepath.Join(PodDir(dir, uid), netnsLink))
	if err != nil {
		return "", fmt.Errorf("network namespace of pod %s: %w", uid, err)
	}
	return path, nil
}

// ContainerPID returns the process, as this machine numbers it, that is the first one of a container.
func ContainerPID(dir string, uid types.UID, container string) (int, error) {
	raw, err := os.ReadFile(filepath.Join(paths{dir}.bundle(uid, container), pidFile))
	if err != nil {
		return 0, fmt.Errorf("process of container %s of pod %s: %w", container, uid, err)
	}
	return strconv.Atoi(strings.TrimSpace(string(raw)))
}

// Exec runs a command in a running container, as kubectl exec does, and returns what it wrote.
func Exec(ctx context.Context, dir string, uid types.UID, container string, command ...string) (string, error) {
	r := runc{paths{dir}.runc()}
	cmd := r.command(ctx, append([]string{"exec", idOf(uid, container)}, command...)...)
	var out, complaints strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("run %s in container %s: %w: %s", strings.Join(command, " "), container, err, complaints.String())
	}
	return out.String(), nil
}
