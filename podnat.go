package floatip

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// PodNATVersion is the version of the PodNAT format that this code writes and reads.
const PodNATVersion = 1

// DefaultGuestInterface is the bridge that KubeVirt makes in the pod for a masquerade interface on the pod network
// (KubeVirt pkg/network/link/names.go).
const DefaultGuestInterface = "k6t-eth0"

// PodNAT says which addresses shall be translated for one virt-launcher pod. The webhook writes it as JSON into the pod's
// annotation AnnotationNAT; the sidecar reads it through a downward-API file and the node agent from the pod object.
type PodNAT struct {
	// Version is PodNATVersion.
	Version int `json:"version"`
	// Owner is the VirtualMachine that holds the floating addresses.
	Owner Owner `json:"owner"`
	// Delivery is that of the addresses' pool; DeliveryLeg is left out. Only where it is InPod the sidecar writes rules.
	Delivery Delivery `json:"delivery,omitempty"`
	// Interface is the bridge in the pod that the guest's tap device is plugged into.
	Interface string `json:"interface"`
	// Bindings has at most one entry per address family.
	Bindings []Binding `json:"bindings"`
	// ClusterNetworks are the networks of pods, services and nodes. Traffic of the guest to them keeps the pod's
	// address.
	ClusterNetworks []netip.Prefix `json:"clusterNetworks"`
	// Firewall is what may pass the leg. Without it everything is admitted.
	Firewall *Firewall `json:"firewall,omitempty"`
}

// Binding pairs a floating address with the fixed address of the guest behind it (RFC 2663 section 2.10).
type Binding struct {
	// Floating is the address on the provider network.
	Floating netip.Addr `json:"floating"`
	// Fixed is the guest's own address, for instance 10.0.2.2.
	Fixed netip.Addr `json:"fixed"`
	// Gateway is the address of Interface, the guest's gateway, for instance 10.0.2.1.
	Gateway netip.Addr `json:"gateway"`
	// GuestNetwork is the network between Gateway and Fixed, for instance 10.0.2.0/24.
	GuestNetwork netip.Prefix `json:"guestNetwork"`
	// Ports are the ports and ranges that the VM lists on its interface, in any order; they may overlap. An empty list
	// admits every port and protocol.
	Ports []Port `json:"ports,omitempty"`
}

// Encode returns the JSON of p. It fails on a p that ParsePodNAT would refuse.
func (p PodNAT) Encode() (string, error) {
	if err := p.Validate(); err != nil {
		return "", err
	}
	raw, err := json.Marshal(p)
	return string(raw), err
}

// ParsePodNAT reads what Encode wrote and refuses everything else: unknown fields, another version, addresses that do
// not fit together, trailing data.
func ParsePodNAT(raw []byte) (PodNAT, error) {
	var p PodNAT
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return PodNAT{}, fmt.Errorf("nat description: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return PodNAT{}, errors.New("nat description: data after the JSON object")
	}
	if err := p.Validate(); err != nil {
		return PodNAT{}, err
	}
	return p, nil
}

// Validate reports every field of p that the data path cannot work with.
func (p PodNAT) Validate() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf("nat description: "+format, args...)) }
	if p.Version != PodNATVersion {
		complain("version: want %d, have %d", PodNATVersion, p.Version)
	}
	if err := p.Delivery.Validate(); err != nil {
		complain("delivery: %w", err)
	}
	if err := validInterfaceName(p.Interface); err != nil {
		complain("interface: %w", err)
	}
	families := map[bool]bool{}
	for i, b := range p.Bindings {
		if err := b.validate(); err != nil {
			complain("bindings[%d]: %w", i, err)
			continue
		}
		if families[b.Floating.Is4()] {
			complain("bindings[%d]: a second binding of the family of %s", i, b.Floating)
		}
		families[b.Floating.Is4()] = true
	}
	for i, n := range p.ClusterNetworks {
		if !n.IsValid() || n != n.Masked() {
			complain("clusterNetworks[%d]: %s is not a network", i, n)
		}
	}
	if p.Firewall != nil {
		if err := p.Firewall.Validate(); err != nil {
			complain("firewall: %w", err)
		}
	}
	return errors.Join(errs...)
}

func (b Binding) validate() error {
	addresses := []netip.Addr{b.Floating, b.Fixed, b.Gateway}
	for _, a := range addresses {
		if !a.IsValid() || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			return fmt.Errorf("%s is not an address of a host", a)
		}
		if a.Is4() != b.Floating.Is4() {
			return fmt.Errorf("%s and %s are of two families", b.Floating, a)
		}
	}
	if !b.GuestNetwork.IsValid() || b.GuestNetwork != b.GuestNetwork.Masked() {
		return fmt.Errorf("guestNetwork %s is not a network", b.GuestNetwork)
	}
	if !b.GuestNetwork.Contains(b.Fixed) || !b.GuestNetwork.Contains(b.Gateway) {
		return fmt.Errorf("fixed address %s or gateway %s lies outside guestNetwork %s", b.Fixed, b.Gateway, b.GuestNetwork)
	}
	if b.Fixed == b.Gateway || b.GuestNetwork.Contains(b.Floating) {
		return fmt.Errorf("floating %s, fixed %s and gateway %s must be three hosts, the floating one outside %s", b.Floating, b.Fixed, b.Gateway, b.GuestNetwork)
	}
	for i, port := range b.Ports {
		if err := port.validate(); err != nil {
			return fmt.Errorf("ports[%d]: %w", i, err)
		}
	}
	return nil
}

// validInterfaceName follows dev_valid_name of the kernel (net/core/dev.c), which allows at most 15 bytes, no slash, no
// colon and no white space.
func validInterfaceName(name string) error {
	if name == "" || len(name) > 15 || name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n\v\f\r\x00") {
		return fmt.Errorf("%q is not a name of a network interface", name)
	}
	return nil
}
