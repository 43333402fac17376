package rig

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Leftovers returns what a stopped rig has left on the machine: its folder, namespaces, control groups, mounts and
// processes. There is nothing, unless Stop failed to see it.
func (r *Rig) Leftovers() ([]string, error) {
	var left []string
	if _, err := os.Stat(r.Dir); !errors.Is(err, fs.ErrNotExist) {
		left = append(left, r.Dir)
	}
	for _, folder := range []string{"/run/netns/", "/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		for _, name := range []string{r.LAN.Prefix, filepath.Base(r.Dir)} {
			found, err := filepath.Glob(folder + name + "*")
			if err != nil {
				return nil, err
			}
			left = append(left, found...)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, r.Dir+"/") {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, path := range commands {
		// A process that has ended meanwhile has no command line.
		if line, err := os.ReadFile(path); err == nil && strings.Contains(string(line), r.Dir+"/") {
			left = append(left, fmt.Sprintf("process %s: %s", path, strings.ReplaceAll(string(line), "\x00", " ")))
		}
	}
	return left, nil
}
