package nodetest

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Watched lists the directories below root that this process has the kernel watch (fdinfo of inotify in proc(5)), relative to
// root. One that is watched twice is there twice.
func Watched(t testing.TB, root string) (dirs []string) {
	t.Helper()
	paths := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, path)
		paths[fmt.Sprintf("ino:%x", info.Sys().(*syscall.Stat_t).Ino)] = relative
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	infos, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		raw, _ := os.ReadFile(info) // it may be closed by now
		for line := range strings.Lines(string(raw)) {
			if fields := strings.Fields(line); len(fields) > 2 && fields[0] == "inotify" && paths[fields[2]] != "" {
				dirs = append(dirs, paths[fields[2]])
			}
		}
	}
	slices.Sort(dirs)
	return dirs
}
