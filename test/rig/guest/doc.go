// Package guest makes the operating system that runs in the rig's virtual machines, and talks to it.
//
// It is a real one, so that what a test sees through a floating IP was answered by a guest's own network stack:
// Debian's cloud kernel, busybox, udhcpc for KubeVirt's DHCP server, and dropbear for the SSH banner. Build puts
// kernel and initramfs into a cache folder. Connect opens the control channel of a running guest, a virtio-serial
// port that does not depend on the network under test.
//
// It does not start a machine: that is the work of the virt-launcher stand-in.
package guest
