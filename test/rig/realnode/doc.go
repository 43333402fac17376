// Package realnode runs one node of the rig with the real programs: kubelet, containerd, runc and the CNI plugins
// `bridge` and `host-local`. Its kubelet watches the API server, admits pods, pulls images, mounts volumes, probes and
// restarts containers as on any other node; nothing of that is played.
//
// All of it runs in namespaces of its own: the network namespace that package lan made for the node, and a mount and a
// PID namespace whose first process is the command real-node (Init). In the mount namespace the node's folder lies at
// /var/lib and /var/log, /run is empty, and the kernel's global sysctls that kubelet writes are files of the folder. When
// the first process ends, the kernel ends all others and takes the mounts away, whatever had happened. What then is left
// are control groups, which Remove removes.
//
// # Images
//
// The node pulls every image from a registry that real-node serves to it, whatever registry the name says. It has the
// images of WriteImages; for any other name it has one image, the stand-in for KubeVirt's: virt-launcher and container
// disks, whose programs need libvirt or are written in C (test/rig/cmd/virt-launcher-standin).
//
// # Where things are
//
//	<dir>/var-lib/kubelet            /var/lib/kubelet of the node, but for what is mounted in it
//	<dir>/var-lib/<path>             /var/lib/<path>
//	<dir>/var-log/pods               the containers' logs
//	<dir>/kubelet.log, containerd.log, real-node.log
//
// The processes of a container are those in its control group, as a person on a node finds them too.
package realnode
