package story

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"floatip.io/floatip"
	"floatip.io/floatip/test/rig/guest"
	"floatip.io/floatip/test/rig/lan"
)

// nameLine is how the manifest of the mission's VM names it.
const nameLine = "name: " + VMName + "\n"

// Named returns the manifest with another name for the VM.
func Named(manifest, name string) string {
	return strings.Replace(manifest, nameLine, "name: "+name+"\n", 1)
}

// WithRequest returns the manifest with another name and a request for exactly this address.
func WithRequest(manifest, name string, address netip.Addr) string {
	return WithAnnotations(manifest, name, map[string]string{floatip.AnnotationRequest: address.String()})
}

// WithAnnotations returns the manifest with another name and with annotations.
func WithAnnotations(manifest, name string, annotations map[string]string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "name: %s\n  annotations:\n", name)
	for key, value := range annotations {
		fmt.Fprintf(&b, "    %s: %q\n", key, value)
	}
	return strings.Replace(manifest, nameLine, b.String(), 1)
}

// Untouched returns an error that names what floatip has left on a VM.
func Untouched(vm *kubevirtv1.VirtualMachine) error {
	for key := range vm.Annotations {
		if strings.HasPrefix(key, "floatip.io/") {
			return fmt.Errorf("VM %s/%s has the annotation %s", vm.Namespace, vm.Name, key)
		}
	}
	for _, entry := range vm.ManagedFields {
		if strings.Contains(entry.Manager, "floatip") {
			return fmt.Errorf("VM %s/%s has fields managed by %s", vm.Namespace, vm.Name, entry.Manager)
		}
	}
	return nil
}

// Guest opens the control channel of a running VM's guest.
func (s *Story) Guest(ctx context.Context, namespace, name string) (*guest.Channel, error) {
	vmi := new(kubevirtv1.VirtualMachineInstance)
	if err := s.get(ctx, namespace, name, vmi); err != nil {
		return nil, err
	}
	socket := s.Rig.GuestSocket(vmi.Status.NodeName, string(vmi.UID))
	return guest.Connect(ctx, socket)
}

// CNIDropsForeignAddresses plugs a pod like that of the VM into the VM's node and shows that the CNI stand-in drops
// address there both as a source and as a destination. It returns how many packets were dropped, and an error if one
// passed.
func (s *Story) CNIDropsForeignAddresses(ctx context.Context, like *corev1.Pod, address netip.Addr) (lan.Drops, error) {
	probe, err := s.Rig.LAN.AddPod(like.Spec.NodeName, "spoof")
	if err != nil {
		return lan.Drops{}, err
	}
	defer s.Rig.LAN.DelPod(like.Spec.NodeName, "spoof")
	node, err := s.Rig.LAN.Node(like.Spec.NodeName)
	if err != nil {
		return lan.Drops{}, err
	}
	if _, err := Ping(ctx, probe.Namespace, node.Address, 1); err != nil {
		return lan.Drops{}, fmt.Errorf("with its own address the pod must reach its node: %w", err)
	}
	if _, err := lan.Exec(ctx, probe.Namespace, "ip", "address", "add", address.String()+"/32", "dev", "lo"); err != nil {
		return lan.Drops{}, err
	}
	if _, err := lan.Exec(ctx, probe.Namespace, "ping", "-n", "-c", "1", "-W", "1", "-I", address.String(), node.Address.String()); err == nil {
		return lan.Drops{}, fmt.Errorf("the pod reached its node with the source %s", address)
	}
	// Past the routes of the floating address, which lead to the leg: straight out of the node's end of the pod's veth.
	mac, err := hardwareAddress(ctx, probe.Namespace, "eth0")
	if err != nil {
		return lan.Drops{}, err
	}
	if _, err := lan.Exec(ctx, node.Namespace, "ip", "neigh", "replace", address.String(), "lladdr", mac, "dev", probe.Link); err != nil {
		return lan.Drops{}, err
	}
	if _, err := lan.Exec(ctx, node.Namespace, "ping", "-n", "-c", "1", "-W", "1", "-I", probe.Link, address.String()); err == nil {
		return lan.Drops{}, fmt.Errorf("the node reached %s through the pod's CNI interface", address)
	}
	drops, err := s.Rig.LAN.Drops(probe)
	if err == nil && (drops.FromPod == 0 || drops.ToPod == 0) {
		err = fmt.Errorf("not both directions counted a drop: %+v", drops)
	}
	return drops, err
}

// hardwareAddress reads the MAC of an interface in a namespace.
func hardwareAddress(ctx context.Context, namespace, name string) (string, error) {
	out, err := lan.Exec(ctx, namespace, "ip", "-brief", "link", "show", name)
	if err != nil {
		return "", err
	}
	fields := strings.Fields(out) // name, state, MAC, flags
	if len(fields) < 3 {
		return "", fmt.Errorf("ip link show %s: %q", name, out)
	}
	return fields[2], nil
}
