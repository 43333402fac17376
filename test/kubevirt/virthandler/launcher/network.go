package launcher

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	v1 "kubevirt.io/api/core/v1"

	"kubevirt.io/kubevirt/pkg/network/dhcp"
	"kubevirt.io/kubevirt/pkg/network/domainspec"
	"kubevirt.io/kubevirt/pkg/network/driver"
	"kubevirt.io/kubevirt/pkg/network/link"
	"kubevirt.io/kubevirt/pkg/network/vmispec"
	"kubevirt.io/kubevirt/pkg/virt-launcher/virtwrap/api"
)

// enterPod gives the process the pod's name and resolv.conf, in namespaces of its own: KubeVirt's DHCP server hands out
// what it finds there.
func enterPod(dir Dir, spec Spec) error {
	name := spec.VMI.Spec.Hostname
	if name == "" {
		name = spec.VMI.Name
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set the pod's host name: %w", err)
	}
	text := fmt.Sprintf("nameserver %s\nsearch %s\n", spec.Nameserver, strings.Join(spec.Search, " "))
	if err := os.WriteFile(dir.resolvConf(), []byte(text), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(dir.resolvConf(), "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount the pod's resolv.conf: %w", err)
	}
	return nil
}

// connect does the second phase of KubeVirt's network set-up (pkg/network/setup/podnic.go, PlugPhase2): it describes
// each masquerade interface in the domain and starts its DHCP servers. It returns the guest's IPv6 configuration for
// the rig's guest, or "".
func connect(vmi *v1.VirtualMachineInstance, domain *api.Domain) (guest6 string, err error) {
	handler := &driver.NetworkUtilsHandler{}
	for _, network := range vmi.Spec.Networks {
		iface := vmispec.LookupInterfaceByName(vmi.Spec.Domain.Devices.Interfaces, network.Name)
		if iface == nil || iface.Masquerade == nil {
			return "", fmt.Errorf("interface of network %q: the rig's launcher knows the masquerade binding only", network.Name)
		}
		pod, err := link.DiscoverByNetwork(handler, vmi.Spec.Networks, network, vmi.Status.Interfaces)
		if err != nil {
			return "", err
		}
		if pod == nil {
			return "", fmt.Errorf("the pod has no link for network %q", network.Name)
		}
		podLink := pod.Attrs().Name
		if err := describe(vmi, network, iface, podLink, handler, domain); err != nil {
			return "", err
		}
		if guest6, err = serve(vmi, network, iface, podLink, handler); err != nil {
			return "", err
		}
	}
	return guest6, nil
}

// describe adds the interface to the domain, with the MAC address that the instance asks for, or had before a
// migration, or else the pod link's, as KubeVirt chooses it.
func describe(vmi *v1.VirtualMachineInstance, network v1.Network, iface *v1.Interface, podLink string,
	handler driver.NetworkHandler, domain *api.Domain) error {
	spec := iface.DeepCopy()
	if status := vmispec.LookupInterfaceStatusByName(vmi.Status.Interfaces, iface.Name); spec.MacAddress == "" && status != nil {
		spec.MacAddress = status.MAC
	}
	devices := &domain.Spec.Devices
	devices.Interfaces = append(devices.Interfaces, api.Interface{Alias: api.NewUserDefinedAlias(iface.Name)})
	return domainspec.NewTapLibvirtSpecGenerator(spec, network, domain, podLink, handler).Generate()
}

// serve starts KubeVirt's DHCP servers; they live as long as the process.
func serve(vmi *v1.VirtualMachineInstance, network v1.Network, iface *v1.Interface, podLink string,
	handler driver.NetworkHandler) (guest6 string, err error) {
	bridge := link.GenerateBridgeName(podLink)
	config, err := dhcp.NewMasqueradeConfigurator(bridge, handler, iface, &network, podLink, vmi.Spec.Subdomain).Generate()
	if err != nil {
		return "", fmt.Errorf("DHCP on %s: %w", bridge, err)
	}
	if err := handler.StartDHCP(config, bridge, iface.DHCPOptions); err != nil {
		return "", fmt.Errorf("DHCP on %s: %w", bridge, err)
	}
	if config.IPv6.IPNet != nil {
		length, _ := config.IPv6.Mask.Size()
		guest6 = fmt.Sprintf("%s/%d,%s", config.IPv6.IP, length, config.AdvertisingIPv6Addr)
	}
	return guest6, nil
}
