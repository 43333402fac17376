// Package launcher is the rig's stand-in for virt-launcher: one process for one virtual machine instance, inside the
// network namespace of its pod. It runs KubeVirt's own DHCP server there, and qemu under emulation with the rig's
// guest in place of the instance's disks. It tells the machine's state in KubeVirt's type api.Domain, and takes orders,
// on a unix socket (Client).
//
// Like virt-launcher it is not bound to the life of virt-handler: that may end and come back. It ends with the order to
// exit, with a signal, or when its folder is removed, and never leaves its qemu behind.
//
// What it does not do: libvirt, disks, cloud-init, devices that an instance asks for beyond memory, processors and
// network interfaces.
package launcher
