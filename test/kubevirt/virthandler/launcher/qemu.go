package launcher

import (
	"fmt"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	v1 "kubevirt.io/api/core/v1"

	"kubevirt.io/kubevirt/pkg/virt-launcher/virtwrap/api"
)

// MachineType is what all machines of the rig are, in the words of qemu and of a node's labels.
const MachineType = "q35"

// guestPort is the name of the control channel's port, as the rig's guest looks for it.
const guestPort = "io.floatip.guest.0"

// leastMemory is what the rig's guest needs: with 64 MiB, which suits smaller systems, Debian's kernel resets the
// machine before its first line on the console.
const leastMemory = 128 << 20

// oddMemory is added to every guest's memory, in bytes, so that it is no multiple of 64 pages. Where it is one, the emulator of
// qemu before 9.0 takes the marks of written pages 64 at a time (cpu_physical_memory_sync_dirty_bitmap), and does not tell the
// processor's translation cache: it then marks none of the later writes to them, and a guest that migrates arrives with pages
// of different times. Its kernel panicked, or gave up its network card ("input.0:id 105 is not a head!"), after 11 to 19
// migrations with traffic and a busy processor. With an odd size qemu takes page after page, and tells. qemu rounds up to 8 KiB.
const oddMemory = 8 << 10

// qemuArgs is qemu's command line for an instance whose interfaces are as the domain says. Guest6, if not empty, is
// "address/length,gateway" for the guest's kernel command line (test/rig/guest/rootfs/etc/rc).
func qemuArgs(dir Dir, spec Spec, interfaces []api.Interface, guest6 string) []string {
	vmi := spec.VMI
	kernelLine := "console=ttyS0 quiet panic=-1"
	if guest6 != "" {
		kernelLine += " floatip.ip6=" + guest6
	}
	args := []string{
		"-name", "guest=" + escape(vmi.Namespace+"_"+vmi.Name),
		"-machine", MachineType, "-accel", "tcg", "-cpu", "max", "-smp", strconv.Itoa(processors(vmi)),
		"-m", strconv.FormatInt((memory(vmi)+oddMemory)>>10, 10) + "K",
		"-nographic", "-nodefaults", "-no-user-config",
		"-kernel", spec.Kernel, "-initrd", spec.Initrd, "-append", kernelLine,
		"-qmp", "unix:" + escape(dir.monitor()) + ",server=on,wait=off",
		"-chardev", "file,id=console,path=" + escape(dir.Console()), "-serial", "chardev:console",
		"-device", "virtio-serial-pci,id=serial",
		"-chardev", "socket,id=guest,server=on,wait=off,path=" + escape(dir.Guest()),
		"-device", "virtserialport,bus=serial.0,chardev=guest,name=" + guestPort,
	}
	if firmware := vmi.Spec.Domain.Firmware; firmware != nil && firmware.UUID != "" {
		args = append(args, "-uuid", string(firmware.UUID))
	}
	if chassis := vmi.Spec.Domain.Chassis; chassis != nil && chassis.Asset != "" {
		args = append(args, "-smbios", "type=3,asset="+escape(chassis.Asset))
	}
	for i, nic := range interfaces {
		// No boot ROM: iPXE would cost the start a second.
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=net%d,ifname=%s,script=no,downscript=no", i, nic.Target.Device),
			"-device", fmt.Sprintf("virtio-net-pci,id=nic%d,netdev=net%d,mac=%s,romfile=", i, i, nic.MAC.MAC))
	}
	if spec.Incoming {
		args = append(args, "-incoming", "unix:"+dir.Migration())
	}
	return args
}

// memory is the guest's, in bytes: what KubeVirt gives it (spec.domain.memory.guest, else the request), but at least
// what the rig's guest needs.
func memory(vmi *v1.VirtualMachineInstance) int64 { return max(asked(vmi).Value(), leastMemory) }

func asked(vmi *v1.VirtualMachineInstance) *resource.Quantity {
	if m := vmi.Spec.Domain.Memory; m != nil && m.Guest != nil {
		return m.Guest
	}
	return vmi.Spec.Domain.Resources.Requests.Memory()
}

func processors(vmi *v1.VirtualMachineInstance) int {
	cpu := vmi.Spec.Domain.CPU
	if cpu == nil {
		return 1
	}
	return int(max(cpu.Sockets, 1) * max(cpu.Cores, 1) * max(cpu.Threads, 1))
}

// escape protects a value in one of qemu's comma-separated options.
func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }
