// Package kernel runs test programs on another kernel than that of the machine: Debian's, in a virtual machine, with the
// modules that a node has and this machine's kernel may not: VLAN devices, bonds, Open vSwitch, VRFs.
//
//	go test -c ──► initramfs: busybox, modules, programs, the test program
//	                  │ qemu, without a NIC and without a disk
//	                  ▼
//	               init: runs the program, its output to one virtio port, its exit code to another, power off
//	                  │
//	                  ▼ test2json
//	               a subtest for each test of the program
//
// The kernel loads a module by modprobe when it is asked for something, as on an installed node, and lacks those that the
// test says it shall lack.
package kernel
