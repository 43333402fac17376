package lab

import (
	"fmt"
	"strings"
)

// Port is one entry of a VM's port list, in nft's words: "tcp" or "udp". A range has a Last.
type Port struct {
	Protocol     string
	Number, Last int
}

// Masquerade describes the table that KubeVirt makes for a masquerade interface.
type Masquerade struct {
	Family         string // "ip" or "ip6"
	PodInterface   string
	Bridge         string
	Guest, Gateway string
	Ports          []Port
}

// Commands returns the arguments of the nft commands that KubeVirt v1.8.4 and v1.9.0 run one by one, in their order
// (pkg/network/setup/netpod/masquerade/masquerade.go, setupNATByFamily; without Istio and legacy migration ports). Ranges
// are v1.9's, and come behind the single ports.
func (m Masquerade) Commands() []string {
	loopback := "127.0.0.1"
	if m.Family == "ip6" {
		loopback = "::1"
	}
	add := func(what string) string {
		return fmt.Sprintf("add %s", strings.Replace(what, "nat", m.Family+" nat", 1))
	}
	commands := []string{
		add("table nat"),
		add("chain nat prerouting { type nat hook prerouting priority -100; }"),
		add("chain nat input { type nat hook input priority 100; }"),
		add("chain nat output { type nat hook output priority -100; }"),
		add("chain nat postrouting { type nat hook postrouting priority 100; }"),
		add("chain nat KUBEVIRT_PREINBOUND"),
		add("chain nat KUBEVIRT_POSTINBOUND"),
		add(fmt.Sprintf("rule nat postrouting %s saddr %s counter masquerade", m.Family, m.Guest)),
		add(fmt.Sprintf("rule nat prerouting iifname %s counter jump KUBEVIRT_PREINBOUND", m.PodInterface)),
		add(fmt.Sprintf("rule nat postrouting oifname %s counter jump KUBEVIRT_POSTINBOUND", m.Bridge)),
	}
	for _, ranges := range []bool{false, true} {
		for _, p := range m.Ports {
			if p.Last != 0 == ranges {
				commands = append(commands, m.forward(p, loopback, add)...)
			}
		}
	}
	if len(m.Ports) == 0 {
		commands = append(commands,
			add(fmt.Sprintf("rule nat KUBEVIRT_PREINBOUND counter dnat to %s", m.Guest)),
			add(fmt.Sprintf("rule nat KUBEVIRT_POSTINBOUND %s saddr { %s } counter snat to %s", m.Family, loopback, m.Gateway)),
			add(fmt.Sprintf("rule nat output %s daddr { %s } counter dnat to %s", m.Family, loopback, m.Guest)))
	}
	return commands
}

// forward returns the commands of one entry of the port list.
func (m Masquerade) forward(p Port, loopback string, add func(string) string) []string {
	listed, single := fmt.Sprintf("{ %d }", p.Number), fmt.Sprint(p.Number)
	if p.Last != 0 {
		single = fmt.Sprintf("%d-%d", p.Number, p.Last)
		listed = single
	}
	return []string{
		add(fmt.Sprintf("rule nat KUBEVIRT_PREINBOUND %s dport %s counter dnat to %s", p.Protocol, listed, m.Guest)),
		add(fmt.Sprintf("rule nat KUBEVIRT_POSTINBOUND %s dport %s %s saddr { %s } counter snat to %s", p.Protocol, single, m.Family, loopback, m.Gateway)),
		add(fmt.Sprintf("rule nat output %s daddr { %s } %s dport %s counter dnat to %s", m.Family, loopback, p.Protocol, single, m.Guest)),
	}
}
