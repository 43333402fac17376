package initramfs

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Busybox's cpio reads what the kernel would.
func TestArchive(t *testing.T) {
	tree := Tree{}
	tree.File("etc/rc", 0o755, []byte("#!/bin/sh\n"))
	tree.File("a/b/empty", 0o600, nil)
	tree.Link("bin/sh", "busybox")
	cmd := exec.Command("busybox", "cpio", "-t", "-v")
	cmd.Stdin = bytes.NewReader(tree.Bytes())
	output, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(output)) {
		fields := strings.Fields(line) // mode owner size date time name [-> target]
		got = append(got, strings.Join(append([]string{fields[0], fields[2]}, fields[5:]...), " "))
	}
	want := []string{
		"drwxr-xr-x 0 a", "drwxr-xr-x 0 a/b", "-rw------- 0 a/b/empty", "drwxr-xr-x 0 bin", "lrwxrwxrwx 0 bin/sh -> busybox",
		"drwxr-xr-x 0 etc", "-rwxr-xr-x 10 etc/rc",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("cpio -t (-want +got):\n%s", diff)
	}
}

func TestLibraries(t *testing.T) {
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	got, err := libraries(path)
	if err != nil {
		t.Fatal(err)
	}
	output, err := exec.Command("ldd", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	var missing []string
	for line := range strings.Lines(string(output)) {
		name := filepath.Base(strings.Fields(line)[0])
		if strings.HasPrefix(name, "linux-vdso") {
			continue
		}
		if !slices.ContainsFunc(got, func(path string) bool { return filepath.Base(path) == name }) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		t.Errorf("ldd names %v, which libraries does not", missing)
	}
}
