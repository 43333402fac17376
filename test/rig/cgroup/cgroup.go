// Package cgroup keeps the control groups of a node's containers under one group of the node.
//
// A group that stands beside those of the machine's other programs would compete with each of them alone: a container
// with 50 thousandths of a processor has 1/20 of the weight of any one other program, and answered no health check within a
// second beside four busy ones (measured; 12 ms without). Under one group the node as a whole weighs as much as one program,
// and its containers share that.
package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"floatip.io/floatip/test/rig/process"
)

// mount is where the machine has its control groups: version 2, or a folder for each hierarchy of version 1
// (cgroups(7)).
const mount = "/sys/fs/cgroup"

// Of returns the name of the group of the node whose folder is dir, below the root of every hierarchy. It is unique by the
// rig's folder: /fip-123456789-node-1.
func Of(dir string) string {
	return "/" + filepath.Base(filepath.Dir(dir)) + "-" + filepath.Base(dir)
}

// Hierarchies returns the folders below which the machine has control groups.
func Hierarchies() ([]string, error) {
	if _, err := os.Stat(filepath.Join(mount, "cgroup.controllers")); err == nil {
		return []string{mount}, nil
	}
	marks, err := filepath.Glob(filepath.Join(mount, "*", "cgroup.procs"))
	if err == nil && len(marks) == 0 {
		err = errors.New("no control groups are mounted at " + mount)
	}
	var found []string
	for _, mark := range marks {
		found = append(found, filepath.Dir(mark))
	}
	return found, err
}

// Make makes a node's control group in every hierarchy, with the weight that the kernel gives to a new one: kubelet refuses
// a cgroupRoot that is missing in one. It is fine if it is there.
func Make(name string) error {
	all, err := Hierarchies()
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

// removeWithin is how long the kernel may take to notice that the last process of a group is gone.
const removeWithin = time.Minute

// Remove removes a node's control groups, the innermost first. No process may be in them any more. It is fine if there are
// none.
func Remove(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, removeWithin)
	defer cancel()
	all, err := Hierarchies()
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
			errs = append(errs, removeGroup(ctx, dirs[i]))
		}
	}
	return errors.Join(errs...)
}

// removeGroup removes one empty control group; its files are the kernel's.
func removeGroup(ctx context.Context, dir string) error {
	return process.Wait(ctx, nil, "the last process of a control group to be gone", func(context.Context) error {
		if err := os.Remove(dir); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}
