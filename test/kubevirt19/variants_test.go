package kubevirt19

import (
	"net/netip"
	"strings"

	v1 "kubevirt.io/api/core/v1"

	"floatip.io/floatip"
	"floatip.io/floatip/test/lab"
)

// variant is one way in which KubeVirt v1.9 makes its NAT tables, for the pod of the lab's VM number 2.
type variant struct {
	families []int // 0 for IPv4, 1 for IPv6
	shape    lab.Shape
	ports    []v1.Port
	ranges   []v1.PortRange
	istio    bool
	legacy   bool // migration ports
	gateOff  bool // PortRangesSpec is an alpha feature
	like     string
	commands int // how often KubeVirt runs nft
}

// Addresses of the pod, without those of its cluster's other pods.
var podAddresses = []string{"100.0.1.2", "fd00:100::1:2"}

var (
	onlyIPv4, onlyIPv6, dual = []int{0}, []int{1}, []int{0, 1}

	singles = []v1.Port{{Port: 22}, {Port: 80, Protocol: "TCP"}, {Port: 53, Protocol: "UDP"}}
	ranges  = []v1.PortRange{
		{Protocol: "TCP", Start: 20, End: 30}, {Protocol: "TCP", Start: 8000, End: 8999}, {Protocol: "UDP", Start: 5000, End: 5010},
	}
	tcpRange = []v1.PortRange{{Protocol: "TCP", Start: 8000, End: 8999}}
	udpRange = []v1.PortRange{{Protocol: "UDP", Start: 5000, End: 5010}}
)

// shaped is the ordinary shape of a VM with a change.
func shaped(change func(*lab.Shape)) lab.Shape {
	s := lab.Ordinary
	change(&s)
	return s
}

// variants without like are recorded for v1.9.0. The others must be what was recorded of v1.8.4, under that name.
var variants = map[string]variant{
	"port-ranges":              {families: onlyIPv4, ranges: ranges, commands: 19},
	"port-ranges-tcp":          {families: onlyIPv4, ranges: tcpRange, commands: 13},
	"port-ranges-udp":          {families: onlyIPv4, ranges: udpRange, commands: 13},
	"port-ranges-ipv6":         {families: onlyIPv6, ranges: ranges, commands: 19},
	"port-ranges-dual-stack":   {families: dual, ranges: ranges, commands: 38},
	"port-ranges-and-ports":    {families: dual, ranges: ranges, ports: singles, commands: 56},
	"port-ranges-of-one-port":  {families: dual, ranges: []v1.PortRange{{Protocol: "TCP", Start: 22, End: 22}}, commands: 26},
	"port-ranges-of-all-ports": {families: dual, ranges: []v1.PortRange{{Protocol: "TCP", Start: 1, End: 65535}}, commands: 26},
	"port-ranges-istio":        {families: dual, ranges: ranges, istio: true, commands: 34},
	"port-ranges-legacy-migration-ports": {
		families: onlyIPv4, ranges: ranges, legacy: true, commands: 21},
	"port-ranges-not-eth0": {
		families: dual, ranges: ranges, shape: shaped(func(s *lab.Shape) { s.Link = "ovn-udn1" }), commands: 38},
	"port-ranges-custom-networks": {
		families: dual, ranges: ranges, commands: 38, shape: shaped(func(s *lab.Shape) {
			s.Guest4, s.Router4, s.Network4 = "10.11.12.2", "10.11.12.1", "10.11.12.0/24"
			s.Guest6, s.Router6, s.Network6 = "fd20:1:2::2", "fd20:1:2::1", "fd20:1:2::/120"
		})},
	// KubeVirt's admission refuses new VMs with ranges then, and those that it has are open at every port.
	"port-ranges-gate-off": {families: dual, ranges: ranges, gateOff: true, like: "dual-stack", commands: 26},

	"no-ports":               {families: onlyIPv4, like: "no-ports", commands: 13},
	"ports":                  {families: onlyIPv4, ports: singles, like: "ports", commands: 19},
	"legacy-migration-ports": {families: onlyIPv4, legacy: true, like: "legacy-migration-ports", commands: 15},
	"istio":                  {families: onlyIPv4, istio: true, like: "istio", commands: 15},
	"udp-ports": {
		families: onlyIPv4, ports: []v1.Port{{Port: 53, Protocol: "UDP"}, {Port: 5060, Protocol: "udp"}}, like: "udp-ports", commands: 16},
	"ports-dual-stack":       {families: dual, ports: singles, like: "ports-dual-stack", commands: 38},
	"istio-ports-dual-stack": {families: dual, ports: singles, istio: true, like: "istio-ports-dual-stack", commands: 34},
	"custom-ipv6-network": {
		families: dual, like: "custom-ipv6-network", commands: 26, shape: shaped(func(s *lab.Shape) {
			s.Guest6, s.Router6, s.Network6 = "fd20:1:2::2", "fd20:1:2::1", "fd20:1:2::/120"
		})},
	"dual-stack": {families: dual, like: "dual-stack", commands: 26},
	"ipv6":       {families: onlyIPv6, like: "ipv6", commands: 13},
	"custom-network": {
		families: onlyIPv4, like: "custom-network", commands: 13, shape: shaped(func(s *lab.Shape) {
			s.Guest4, s.Router4, s.Network4 = "10.11.12.2", "10.11.12.1", "10.11.12.0/24"
		})},
	"pod-link-not-eth0": {
		families: onlyIPv4, like: "pod-link-not-eth0", commands: 13, shape: shaped(func(s *lab.Shape) { s.Link = "ovn-udn1" })},
}

// pod returns the variant's shape of the pod's network.
func (v variant) pod() lab.Shape {
	if v.shape == (lab.Shape{}) {
		return lab.Ordinary
	}
	return v.shape
}

// description is what the webhook writes for the variant's VM.
func (v variant) description() floatip.PodNAT {
	s := v.pod()
	p := floatip.PodNAT{
		Version: floatip.PodNATVersion, Owner: floatip.Owner{Namespace: "shop", Name: "web", UID: "4711"}, Interface: s.Bridge(),
		ClusterNetworks: []netip.Prefix{netip.MustParsePrefix("100.0.0.0/16"), netip.MustParsePrefix("fd00:100::/56")},
	}
	both := []floatip.Binding{
		{
			Floating: netip.MustParseAddr("192.168.100.52"), Fixed: netip.MustParseAddr(s.Guest4), Ports: v.listed(),
			Gateway: netip.MustParseAddr(s.Router4), GuestNetwork: netip.MustParsePrefix(s.Network4),
		},
		{
			Floating: netip.MustParseAddr("2001:db8:100::52"), Fixed: netip.MustParseAddr(s.Guest6), Ports: v.listed(),
			Gateway: netip.MustParseAddr(s.Router6), GuestNetwork: netip.MustParsePrefix(s.Network6),
		},
	}
	for _, family := range v.families {
		p.Bindings = append(p.Bindings, both[family])
	}
	return p
}

func (v variant) listed() (list []floatip.Port) {
	for _, p := range v.ports {
		protocol := strings.ToUpper(p.Protocol)
		if protocol == "" {
			protocol = "TCP"
		}
		list = append(list, floatip.Port{Protocol: protocol, Number: uint16(p.Port)})
	}
	for _, r := range v.ranges {
		list = append(list, floatip.Port{Protocol: r.Protocol, Number: uint16(r.Start), Last: uint16(r.End)})
	}
	return list
}
