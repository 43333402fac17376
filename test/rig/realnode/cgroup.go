package realnode

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// cgroupMount is where the machine has its control groups: version 2, or a folder for each hierarchy of version 1
// (cgroups(7)).
const cgroupMount = "/sys/fs/cgroup"

// cgroup is the parent of the node's control groups, unique by the rig's folder: /fip-123456789-node-1.
func (c Config) cgroup() string { return cgroupOf(c.Dir) }

func cgroupOf(dir string) string {
	return "/" + filepath.Base(filepath.Dir(dir)) + "-" + filepath.Base(dir)
}

// hierarchies returns the folders below which the machine has control groups.
func hierarchies() ([]string, error) {
	if _, err := os.Stat(filepath.Join(cgroupMount, "cgroup.controllers")); err == nil {
		return []string{cgroupMount}, nil
	}
	marks, err := filepath.Glob(filepath.Join(cgroupMount, "*", "cgroup.procs"))
	if err == nil && len(marks) == 0 {
		err = errors.New("no control groups are mounted at " + cgroupMount)
	}
	var found []string
	for _, mark := range marks {
		found = append(found, filepath.Dir(mark))
	}
	return found, err
}

// makeCgroup makes the node's control group in every hierarchy: kubelet refuses a cgroupRoot that is missing in one.
func makeCgroup(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, hierarchy := range all {
		dir := filepath.Join(hierarchy, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		// A new group of the hierarchy cpuset of version 1 has no CPU and no memory, and nothing can run in it.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if err := inherit(filepath.Join(dir, file)); err != nil {
				return err
			}
		}
	}
	return nil
}

// inherit copies a file of the parent group, where there is one and the own is empty.
func inherit(file string) error {
	own, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || len(strings.TrimSpace(string(own))) > 0 {
		return nil
	}
	above, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(file)), filepath.Base(file)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // version 2: the root group has no limits
	}
	if err != nil {
		return err
	}
	return os.WriteFile(file, above, 0)
}

// removeCgroupWithin is how long the kernel may take to notice that the last process of a group is gone.
const removeCgroupWithin = time.Minute

// removeCgroup removes the node's control groups, the innermost first. No process may be in them any more.
func removeCgroup(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, hierarchy := range all {
		var dirs []string
		err := filepath.WalkDir(filepath.Join(hierarchy, name), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			return err
		})
		errs = append(errs, err)
		for i := len(dirs) - 1; i >= 0; i-- {
			errs = append(errs, removeGroup(dirs[i]))
		}
	}
	return errors.Join(errs...)
}

// removeGroup removes one empty control group; its files are the kernel's.
func removeGroup(dir string) error {
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Since(begun) > removeCgroupWithin {
			return err
		}
	}
}

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
	all, err := hierarchies()
	if err != nil {
		return 0, err
	}
	for _, class := range []string{"", "burstable", "besteffort"} {
		files, err := filepath.Glob(filepath.Join(all[0], cgroupOf(dir), "kubepods", class, pod, container, "cgroup.procs"))
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
