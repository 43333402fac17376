package kubelet

import (
	"os"
	"slices"
	"strings"
)

// mountsBelow returns the mount points inside a folder, the innermost first.
func mountsBelow(dir string) ([]string, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMounts(string(raw), dir), nil
}

// parseMounts reads the format of proc_pid_mountinfo(5): the fifth field is the mount point.
func parseMounts(mountinfo, dir string) []string {
	var found []string
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) > 4 && within(fields[4], dir) {
			found = append(found, fields[4])
		}
	}
	// Later mounts lie on top of earlier ones.
	slices.Reverse(found)
	return found
}
