// Package initramfs makes what a virtual machine of the tests boots: Debian's cloud kernel, and a file tree of its modules,
// busybox and programs of this machine with their shared libraries.
package initramfs
