package guest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

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
