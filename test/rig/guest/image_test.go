package guest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Busybox's cpio reads what the kernel would.
func TestArchive(t *testing.T) {
	tree := archive{}
	tree.file("etc/rc", 0o755, []byte("#!/bin/sh\n"))
	tree.file("a/b/empty", 0o600, nil)
	tree.link("bin/sh", "busybox")
	cmd := exec.Command("busybox", "cpio", "-t", "-v")
	cmd.Stdin = bytes.NewReader(tree.bytes())
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

// The image boots, runs commands, knows its chassis asset tag, and heeds the power button.
func TestBoot(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	image, err := Build(ctx, "../../../bin/rig/guest")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	socket, console := filepath.Join(dir, "guest.sock"), filepath.Join(dir, "console")
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "128M",
		"-nographic", "-nodefaults", "-no-user-config", "-kernel", image.Kernel, "-initrd", image.Initrd,
		"-append", "console=ttyS0 quiet panic=-1", "-chardev", "file,id=console,path="+console, "-serial", "chardev:console",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=guest,server=on,wait=off,path="+socket,
		"-device", "virtserialport,chardev=guest,name=io.floatip.guest.0", "-smbios", "type=3,asset=floatip=192.0.2.1",
		"-monitor", "stdio")
	monitor, err := qemu.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- qemu.Wait() }()
	defer func() {
		if t.Failed() {
			text, _ := os.ReadFile(console)
			t.Logf("console:\n%s", text)
		}
		_ = qemu.Process.Kill() // fails if it has ended, as it should have
	}()
	channel, err := Connect(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := channel.Run(ctx, "cat /sys/class/dmi/id/chassis_asset_tag"); got != "floatip=192.0.2.1\n" || err != nil {
		t.Errorf("chassis asset tag: %q, %v", got, err)
	}
	if _, err := monitor.Write([]byte("system_powerdown\n")); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("qemu: %v", err)
		}
	case <-ctx.Done():
		t.Error("the guest does not heed its power button")
	}
}
