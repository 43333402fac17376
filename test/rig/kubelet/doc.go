// Package kubelet is the rig's stand-in for the kubelet and the container runtime of one node. It takes the pods that
// the scheduler binds to its node and runs their containers with runc, with the command, arguments, environment, files,
// user, capabilities, seccomp profile and root that the Pod object says, in the pod's own network namespace behind
// package lan's anti-spoofing filter.
//
// What it does as a kubelet does: the Node object, its lease and condition; init containers in order, native sidecars,
// restarts with back-off; exec, HTTP and TCP probes; emptyDir, downwardAPI, configMap, secret, projected token, hostPath
// and claims of hostPath volumes, at the paths of a real kubelet, kept fresh by atomic replacement; container statuses,
// pod conditions; termination with SIGTERM, grace period, native sidecars last.
//
// What it does not do: pull images, admit pods by resources, evict, hooks (postStart, preStop), ephemeral containers,
// shared process namespaces, resize in place.
//
// # Images
//
// There is no registry. An image is a few files of this machine (type Image). Every image that is not listed is played
// by the program `pause`: its containers run, with the user, mounts and limits of the Pod object, but do nothing.
// Init containers of such images succeed at once, and exec probes in them are taken as passed. That is how the
// containers of virt-launcher and of container disks exist here.
//
// The guest of a virt-launcher pod runs beside its compute container, started by the stand-in of virt-handler. While it
// does, that stand-in keeps a file named GuestFile in the pod's emptyDir "sockets", where the real virt-launcher has its
// command socket. `pause` in compute heeds it: on SIGTERM it makes ShutdownFile, so that the guest is shut down, and stays
// until the guest's file is gone; when that was there and vanishes it ends, as virt-launcher ends with its guest.
//
// # Where things are
//
// Several nodes share one machine, so a node's files lie under a folder of the node:
//
//	<dir>/kubelet/pods/<uid>/netns                                          symlink to the pod's network namespace
//	<dir>/kubelet/pods/<uid>/volumes/kubernetes.io~empty-dir/<name>/        and the other kinds of volumes
//	<dir>/kubelet/pods/<uid>/containers/<name>.log                          standard output and error
//	<dir>/root/<path>                                                       hostPath <path>
//
// A hostPath of /var/lib/kubelet is <dir>/kubelet. /dev, /proc, /sys and /lib/modules are the machine's own.
package kubelet
