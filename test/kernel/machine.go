package kernel

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"floatip.io/floatip/test/initramfs"
)

//go:embed init
var initScript []byte

//go:embed modprobe
var modprobeScript []byte

// modules are those that a node's network may use: folders and files below the kernel's modules.
var modules = []string{
	"net/8021q", "net/802", "net/bridge", "net/ipv4", "net/ipv6", "net/llc", "net/netfilter", "net/openvswitch",
	"drivers/net/bonding", "drivers/net/dummy", "drivers/net/macvlan", "drivers/net/team", "drivers/net/tun", "drivers/net/veth",
	"drivers/net/vrf", "drivers/virtio", "drivers/char/virtio_console",
}

// machine is a virtual machine that runs one command.
type machine struct {
	kernel  initramfs.Kernel
	tree    initramfs.Tree
	without []string // modules that it does not have
	options string   // of the kernel
	memory  int      // MiB
}

// outcome is how a machine ended.
type outcome struct {
	output []byte // what the command wrote
	status int    // its exit code
	err    error  // the machine did not come to the end of the command; has the end of the console
}

// newMachine makes a machine with busybox and the modules that cacheDir's kernel has.
func newMachine(ctx context.Context, cacheDir string, without ...string) (machine, error) {
	cacheDir, err := filepath.Abs(cacheDir)
	if err != nil {
		return machine{}, err
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return machine{}, err
	}
	kernel, err := initramfs.FindKernel(ctx, filepath.Join(cacheDir, "kernel"))
	if err != nil {
		return machine{}, err
	}
	m := machine{kernel: kernel, tree: initramfs.Tree{}, without: without, memory: 768}
	for _, folder := range []string{"dev", "proc", "sys", "tmp", "root", "run", "etc", "var"} {
		m.tree.Dir(folder)
	}
	m.tree.Link("sbin", "bin")
	m.tree.Link("usr", ".")
	m.tree.File("init", 0o755, initScript)
	err = errors.Join(m.tree.Busybox(ctx), m.tree.Modules(kernel, modules, without))
	m.tree.File("bin/modprobe", 0o755, modprobeScript)
	return m, err
}

// run boots the machine in the folder, which must be empty, and waits until it has run the command, a shell's text, and is
// off, or ctx is done. Nothing of it is left then but files in the folder.
func (m machine) run(ctx context.Context, folder, command string) outcome {
	m.tree.File("test/command", 0o755, []byte(command))
	at := func(name string) string { return filepath.Join(folder, name) }
	if err := os.WriteFile(at("initrd"), m.tree.Bytes(), 0o600); err != nil {
		return outcome{err: err}
	}
	// One processor: with two, the emulated kernel stood still now and then (docs/decisions/second-kernel.md).
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1",
		"-m", strconv.Itoa(m.memory), "-nographic", "-nodefaults", "-no-user-config", "-no-reboot", "-kernel", m.kernel.Image,
		"-initrd", at("initrd"), "-append", "console=ttyS0 quiet panic=-1 "+m.options, "-serial", "file:"+at("console"),
		"-device", "virtio-serial-pci",
		"-chardev", "file,id=output,path="+at("output"), "-device", "virtserialport,chardev=output,nr=1",
		"-chardev", "file,id=status,path="+at("status"), "-device", "virtserialport,chardev=status,nr=2")
	// Qemu ends with whoever waits for it, also when that is killed. The kernel goes by the thread that has started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	said, err := qemu.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("the machine did not end in time: %w", context.Cause(ctx))
	} else if err != nil {
		err = fmt.Errorf("qemu: %w: %s", err, said)
	}
	o := outcome{err: err}
	o.output, _ = os.ReadFile(at("output"))
	status, _ := os.ReadFile(at("status"))
	if o.status, err = strconv.Atoi(strings.TrimSpace(string(status))); err != nil && o.err == nil {
		o.err = errors.New("the machine ended before the command did")
	}
	if o.err != nil {
		o.err = fmt.Errorf("%w; the end of its console:\n%s", o.err, tail(at("console")))
	}
	return o
}

// tail is the last 4 KiB of a file.
func tail(path string) string {
	text, _ := os.ReadFile(path)
	return string(text[max(0, len(text)-4096):])
}
