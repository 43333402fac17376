package kubevirt19

import (
	"net/netip"
	"strings"

	v1 "kubevirt.io/api/core/v1"
	"kubevirt.io/kubevirt/pkg/network/driver/nft"
	"kubevirt.io/kubevirt/pkg/network/driver/nmstate"
	"kubevirt.io/kubevirt/pkg/network/setup/netpod/masquerade"

	"floatip.io/floatip/test/lab"
)

// setup runs KubeVirt's own code in the pod and calls before ahead of each nft command. It returns the commands.
func (v variant) setup(pod *lab.Namespace, before func(done int)) ([]string, error) {
	watched := &watchedNFT{before: before}
	adapter, istio := masquerade.WithNftableAdapter(watched), masquerade.WithIstio(v.istio)
	gate := masquerade.WithPortRangesSpecGateEnabled(!v.gateOff)
	m := masquerade.New(adapter, istio, gate)
	if v.legacy {
		m = masquerade.New(adapter, istio, gate, masquerade.WithLegacyMigrationPorts())
	}
	s := v.pod()
	err := pod.Do(func() error {
		return m.Setup(v.link(s.Bridge(), s.Router4+bits(s.Network4), s.Router6+bits(s.Network6)),
			v.link(s.Link, podAddresses[0]+"/32", podAddresses[1]+"/128"), v1.Interface{Ports: v.ports, PortRanges: v.ranges})
	})
	return watched.commands, err
}

func bits(network string) string { return network[strings.IndexByte(network, '/'):] }

// link describes a link of the pod as KubeVirt's netpod does: a family without an address is not enabled.
func (v variant) link(name string, addresses ...string) *nmstate.Interface {
	link := &nmstate.Interface{Name: name}
	for _, family := range v.families {
		p, enabled := netip.MustParsePrefix(addresses[family]), true
		ip := nmstate.IP{Enabled: &enabled, Address: []nmstate.IPAddress{{IP: p.Addr().String(), PrefixLen: p.Bits()}}}
		if family == 0 {
			link.IPv4 = ip
		} else {
			link.IPv6 = ip
		}
	}
	return link
}

// watchedNFT is KubeVirt's own nft with a look at each command.
type watchedNFT struct {
	nft.NFTBin
	before   func(done int)
	commands []string
}

func (w *watchedNFT) see(words ...string) {
	w.before(len(w.commands))
	w.commands = append(w.commands, strings.Join(words, " "))
}

func (w *watchedNFT) AddTable(family nft.IPFamily, name string) error {
	w.see("add table", string(family), name)
	return w.NFTBin.AddTable(family, name)
}

func (w *watchedNFT) AddChain(family nft.IPFamily, table, name string, spec ...string) error {
	w.see(append([]string{"add chain", string(family), table, name}, spec...)...)
	return w.NFTBin.AddChain(family, table, name, spec...)
}

func (w *watchedNFT) AddRule(family nft.IPFamily, table, chain string, spec ...string) error {
	w.see(append([]string{"add rule", string(family), table, chain}, spec...)...)
	return w.NFTBin.AddRule(family, table, chain, spec...)
}
