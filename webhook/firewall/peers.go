package firewall

import (
	"fmt"
	"net/netip"

	"go4.org/netipx"
	networkingv1 "k8s.io/api/networking/v1"
	netutils "k8s.io/utils/net"

	"floatip.io/floatip"
)

// peers returns the addresses outside the cluster that a rule speaks of. No peers at all is everybody. A peer that
// selects pods or namespaces never is an address outside.
func (r *reader) peers(rule rule, at place) (addresses []floatip.AddressRange) {
	if len(rule.peers) == 0 {
		for _, e := range everything() {
			addresses = append(addresses, e.Addresses)
		}
		return addresses
	}
	for i, peer := range rule.peers {
		at := at.child(rule.peersName).index(i)
		selects := peer.PodSelector != nil || peer.NamespaceSelector != nil
		switch {
		case peer.IPBlock != nil && !selects:
			block, err := blockRanges(*peer.IPBlock)
			if err != nil {
				r.problem(at.child("ipBlock"), Malformed, "%v; the peer admits nothing", err)
				continue
			}
			addresses = append(addresses, block...)
		case peer.IPBlock != nil:
			r.problem(at, Malformed, "an ipBlock stands beside a selector; the peer admits nothing")
		case !selects:
			r.problem(at, Malformed, "neither a selector nor an ipBlock; the peer admits nothing")
		}
	}
	return addresses
}

// blockRanges returns the addresses of the block without its exceptions. One exception that cannot be read spoils the
// block: without it the block would be too large.
func blockRanges(block networkingv1.IPBlock) (ranges []floatip.AddressRange, err error) {
	var set netipx.IPSetBuilder
	network, err := parseCIDR(block.CIDR)
	if err != nil {
		return nil, fmt.Errorf("cidr: %w", err)
	}
	set.AddPrefix(network)
	for i, text := range block.Except {
		except, err := parseCIDR(text)
		if err != nil {
			return nil, fmt.Errorf("except[%d]: %w", i, err)
		}
		set.RemovePrefix(except)
	}
	rest, err := set.IPSet()
	if err != nil {
		return nil, err
	}
	for _, r := range rest.Ranges() {
		ranges = append(ranges, floatip.AddressRange{First: r.From(), Last: r.To()})
	}
	return ranges, nil
}

// parseCIDR reads a network as the API server's validation does: bits of the host are ignored, leading zeros are
// decimal, and an IPv4 network may be written in IPv6 form (pkg/apis/networking/validation). New API servers refuse
// those, but keep the ones that are stored.
func parseCIDR(text string) (netip.Prefix, error) {
	_, network, err := netutils.ParseCIDRSloppy(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not a network", text)
	}
	addr, _ := netip.AddrFromSlice(network.IP)
	addr = addr.Unmap()
	ones, bits := network.Mask.Size()
	return netip.PrefixFrom(addr, ones-(bits-addr.BitLen())).Masked(), nil
}
