package rig

import (
	"context"
	"os"
	"path/filepath"

	"floatip.io/floatip/test/rig/lan"
	"floatip.io/floatip/test/rig/process"
)

// The files of a machine lie in <machines of the node>/<UID of the instance> (test/kubevirt/virthandler/launcher).
const guestSocket = "guest.sock"

// machinesDir is where the stand-in of virt-handler keeps the machines of a node.
func machinesDir(rig, node string) string { return filepath.Join(nodeDir(rig, node), "vms") }

// GuestSocket returns the socket of the control channel of an instance's guest (package guest).
func (r *Rig) GuestSocket(node, instance string) string {
	return filepath.Join(machinesDir(r.Dir, node), instance, guestSocket)
}

// MachineLog returns the log of the machine of an instance that is on a node.
func (r *Rig) MachineLog(node, instance string) string {
	return filepath.Join(machinesDir(r.Dir, node), instance, "launcher.log")
}

// EndedLog returns the log of the machine of an instance that has ended on a node, or left it.
func (r *Rig) EndedLog(node, name, instance string) string {
	return filepath.Join(machinesDir(r.Dir, node), "ended", name+"-"+instance+"-launcher.log")
}

// startHandlers starts the stand-in of virt-handler of every node.
func (r *Rig) startHandlers(context.Context) error {
	for _, node := range r.LAN.Nodes {
		if err := r.startHandler(node); err != nil {
			return err
		}
	}
	return nil
}

func (r *Rig) startHandler(node lan.Node) error {
	machines := machinesDir(r.Dir, node.Name)
	if err := os.MkdirAll(machines, 0o755); err != nil {
		return err
	}
	path, args, kubeletDir, err := r.runtime.handler(node)
	if err != nil {
		return err
	}
	_, err = r.group.Start(process.Spec{
		Name: "virt-handler-" + node.Name, Path: path, NetNS: node.Namespace,
		Log: filepath.Join(nodeDir(r.Dir, node.Name), "virt-handler-standin.log"),
		Args: append(args,
			"--node="+node.Name, "--kubeconfig="+r.KubeVirt.HandlerKubeconfig,
			"--kubelet-dir="+kubeletDir, "--run-dir="+machines,
			"--guest-kernel="+r.guest.Kernel, "--guest-initrd="+r.guest.Initrd,
			"--virt-chroot="+r.binaries.virtChroot(),
		),
	})
	return err
}
