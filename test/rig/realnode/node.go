package realnode

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"floatip.io/floatip/test/rig/cgroup"
)

// programs are those of the machine that a node runs, beside the ones of Config.
var programs = []string{"unshare", "nsenter", "runc"}

// Missing returns what the machine lacks to run a node, of the unpacked packages below packages.
func Missing(packages string) []string {
	var missing []string
	for _, path := range []string{
		filepath.Join(packages, containerdPrograms, "containerd"),
		filepath.Join(packages, containerdPrograms, "containerd-shim-runc-v2"),
		filepath.Join(packages, cniPlugins, "bridge"),
		filepath.Join(packages, cniPlugins, "host-local"),
	} {
		if _, err := os.Stat(path); err != nil {
			missing = append(missing, path)
		}
	}
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, name)
		}
	}
	return missing
}

// Prepare makes what a node needs before its first process: its folder, its images and its control groups. It returns
// the command that runs that process in namespaces of its own; the caller starts it in the node's network namespace.
func Prepare(c Config, images map[string]Image, realNode string) (path string, args []string, err error) {
	config, err := c.Write()
	if err != nil {
		return "", nil, err
	}
	if err := WriteImages(c.Dir, images); err != nil {
		return "", nil, err
	}
	if err := cgroup.Make(cgroup.Of(c.Dir)); err != nil {
		return "", nil, fmt.Errorf("control group of %s: %w", c.Name, err)
	}
	return "unshare", []string{
		"--mount", "--propagation=slave", "--pid", "--fork", "--kill-child", "--mount-proc", realNode, config,
	}, nil
}

// Path returns where this machine has a path below /var/lib of the node whose folder is dir.
func Path(dir, path string) string {
	return filepath.Join(dir, varLibDir, strings.TrimPrefix(path, "/var/lib"))
}

// Enter returns the command that runs a program in the namespaces of a node, whose Prepare-d command runs as process
// pid.
func Enter(pid int, program string, args ...string) (path string, all []string, err error) {
	first, err := onlyChild(pid)
	if err != nil {
		return "", nil, err
	}
	all = []string{"--target=" + strconv.Itoa(first), "--mount", "--pid", "--net", program}
	return "nsenter", append(all, args...), nil
}

func onlyChild(pid int) (int, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(raw))
	if len(fields) != 1 {
		return 0, errors.New("the node's first process does not run")
	}
	return strconv.Atoi(fields[0])
}
