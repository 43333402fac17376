// Package virthandler is the rig's stand-in for virt-handler on one node. It watches the instances that virt-controller
// hands to the node and does what virt-handler does with each (KubeVirt pkg/virt-handler/vm.go), with KubeVirt's own
// code where that has no need of libvirt:
//
//   - the network of the pod: KubeVirt's whole first phase, package network/setup with the nmstate driver, the
//     masquerade package and the tap device made by KubeVirt's virt-chroot;
//   - the machine: a launcher in the pod's network namespace (package launcher), with KubeVirt's second phase and its
//     DHCP servers, and qemu;
//   - the instance's status: interfaces by KubeVirt's network/setup NetStat, phase, conditions and events by the rules
//     of vm.go;
//   - shutdown with the grace period, cleanup, and the node's heartbeat;
//   - live migration, source and target.
//
// Decisions are in plan.go, apart from effects. What is real on the wire is the guest's traffic and every rule, link and
// route that KubeVirt makes for it. What it lacks: libvirt, disks, hotplug, guest agent, pause, consoles, device plugins.
package virthandler
