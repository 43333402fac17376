package nodetest

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"floatip.io/floatip"
	"floatip.io/floatip/nat"
	"floatip.io/floatip/test/lab"
)

// kubevirtRules are those that KubeVirt makes for the masquerade binding and that matter here
// (pkg/network/setup/netpod/masquerade): an unconditional masquerade of everything from the guest.
const kubevirtRules = `
table ip nat {
  chain postrouting { type nat hook postrouting priority 100; ip saddr 10.0.2.2 counter masquerade; }
}
table ip6 nat {
  chain postrouting { type nat hook postrouting priority 100; ip6 saddr fd10:0:2::2 counter masquerade; }
}`

// Describe returns the description of a pod that holds the addresses, at most one per family.
func Describe(owner floatip.Owner, addresses ...netip.Addr) floatip.PodNAT {
	p := floatip.PodNAT{Version: floatip.PodNATVersion, Owner: owner, Interface: floatip.DefaultGuestInterface}
	for _, n := range ClusterNetworks {
		p.ClusterNetworks = append(p.ClusterNetworks, netip.MustParsePrefix(n))
	}
	for _, a := range addresses {
		b := floatip.Binding{
			Floating: a, Fixed: netip.MustParseAddr(GuestFixed), Gateway: netip.MustParseAddr("10.0.2.1"),
			GuestNetwork: netip.MustParsePrefix("10.0.2.0/24"),
		}
		if a.Is6() {
			b.Fixed, b.Gateway = netip.MustParseAddr(GuestFixed6), netip.MustParseAddr("fd10:0:2::1")
			b.GuestNetwork = netip.MustParsePrefix("fd10:0:2::/120")
		}
		p.Bindings = append(p.Bindings, b)
	}
	return p
}

// KubeVirt runs KubeVirt's own nft commands in the pod, both families.
func KubeVirt(t testing.TB, p *Pod, ports ...floatip.Port) {
	t.Helper()
	v4 := lab.Masquerade{Family: "ip", PodInterface: "eth0", Bridge: "k6t-eth0", Guest: GuestFixed, Gateway: "10.0.2.1"}
	v6 := lab.Masquerade{Family: "ip6", PodInterface: "eth0", Bridge: "k6t-eth0", Guest: GuestFixed6, Gateway: "fd10:0:2::1"}
	for _, m := range []lab.Masquerade{v4, v6} {
		for _, port := range ports {
			m.Ports = append(m.Ports, lab.Port{
				Protocol: strings.ToLower(port.Protocol), Number: int(port.Number), Last: int(port.Last),
			})
		}
		for _, command := range m.Commands() {
			lab.At("pod", p.File).Run(t, "", "nft", command)
		}
	}
}

// Translate writes KubeVirt's rules and those of the sidecar into the pod.
func Translate(t testing.TB, p *Pod, addresses ...netip.Addr) {
	t.Helper()
	p.Do(func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(kubevirtRules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	})
	Install(t, p, Describe(floatip.Owner{Namespace: "prod", Name: "vm", UID: "u"}, addresses...))
}

// Install writes the rules that the sidecar makes of a description.
func Install(t testing.TB, p *Pod, d floatip.PodNAT) {
	t.Helper()
	kernel, err := nat.Open(nat.Config{NetNS: int(p.File.Fd())})
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	if err := kernel.Apply(nat.Desired(d)); err != nil {
		t.Fatal(err)
	}
}

// Counters reads what the rules of the sidecar count.
func Counters(t testing.TB, p *Pod) []nat.Counter {
	t.Helper()
	kernel, err := nat.Open(nat.Config{NetNS: int(p.File.Fd())})
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	counters, err := kernel.Counters()
	if err != nil {
		t.Fatal(err)
	}
	return counters
}
