package floatip

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// AnnotationAllow is written by the user on a VirtualMachine: who may open connections to its floating addresses, for
// instance "tcp/22 from 192.168.100.0/24, udp/5000-6000, icmp". Package webhook/firewall has its grammar.
const AnnotationAllow = "floatip.io/allow"

// MaxFirewallEntries is the largest number of entries of one direction, both families together. The API server refuses
// an object with more than 256 KiB of annotations (TotalAnnotationSizeLimitB in apimachinery's pkg/api/validation), and
// two directions full of the longest entries, 99 bytes each, take 198 KiB of it.
const MaxFirewallEntries = 1024

// Firewall says which new connections may pass the leg of a pod, in the two directions that NetworkPolicies know.
// Answers, and ICMP errors about a connection that was admitted, always pass: for the kernel they are "established" and
// "related".
//
// The zero value admits nothing. A nil *Firewall, as in the PodNAT of a pod that nobody restricts, admits everything.
type Firewall struct {
	// Ingress is what hosts outside may open towards the guest. The addresses of its entries are sources, the ports
	// those of the guest.
	Ingress Admitted `json:"ingress"`
	// Egress is what the guest may open towards hosts outside. The addresses and ports of its entries are destinations.
	Egress Admitted `json:"egress"`
}

// Admitted is what passes in one direction: everything, or what one of the entries covers. The zero value is nothing.
type Admitted struct {
	// Everything admits every address, protocol and port of both families. There are no entries then.
	Everything bool `json:"everything,omitempty"`
	// Entries are sorted (CompareEntries) and disjoint, since the kernel refuses a set of concatenated ranges in which
	// two overlap (net/netfilter/nft_set_pipapo.c). There are at most MaxFirewallEntries.
	Entries []Entry `json:"entries,omitempty"`
}

// Entry admits a range of addresses of one family, one protocol or all, and a range of ports: one element of an nft set
// with the key "ip saddr . meta l4proto . th dport" and interval flag. In JSON it is a text such as
// "192.168.100.0/24 tcp/22".
type Entry struct {
	Addresses AddressRange
	Protocol  Protocol
	// Ports is AllPorts for a protocol without ports.
	Ports PortRange
}

// Family returns the entries of one family: IPv4 when ipv4 is true.
func (a Admitted) Family(ipv4 bool) []Entry {
	// CompareEntries puts IPv4 first.
	n := len(a.Entries)
	if i := slices.IndexFunc(a.Entries, func(e Entry) bool { return !e.Addresses.First.Is4() }); i >= 0 {
		n = i
	}
	if ipv4 {
		return a.Entries[:n:n]
	}
	return a.Entries[n:]
}

// Admits reports whether a new connection with that address outside, that protocol and that port may pass. Protocols
// without ports have port 0, and ICMPv6 is ICMP. It says what the kernel shall do; the sidecar does not ask it.
func (a Admitted) Admits(outside netip.Addr, protocol Protocol, port uint16) bool {
	return a.Everything || slices.ContainsFunc(a.Entries, func(e Entry) bool {
		return e.Addresses.Contains(outside) && e.Ports.Contains(port) &&
			(e.Protocol == ProtocolAny || e.Protocol == protocol)
	})
}

// L4Protocols returns the first and the last number of the protocol header (RFC 8200 section 3, IANA protocol numbers)
// that the entry covers. ICMP has one number for each family.
func (e Entry) L4Protocols() (first, last uint8) {
	switch {
	case e.Protocol == ProtocolAny:
		return 0, 255
	case e.Protocol == ProtocolICMP && e.Addresses.First.Is6():
		return 58, 58
	}
	return uint8(e.Protocol), uint8(e.Protocol)
}

// Overlaps reports whether some packet is covered by both entries.
func (e Entry) Overlaps(other Entry) bool {
	return e.Addresses.Overlaps(other.Addresses) && e.Ports.Overlaps(other.Ports) &&
		(e.Protocol == other.Protocol || e.Protocol == ProtocolAny || other.Protocol == ProtocolAny)
}

// CompareEntries orders entries by address, IPv4 first, then by protocol and port.
func CompareEntries(a, b Entry) int {
	return cmp.Or(
		a.Addresses.First.Compare(b.Addresses.First),
		a.Addresses.Last.Compare(b.Addresses.Last),
		cmp.Compare(a.Protocol, b.Protocol),
		cmp.Compare(a.Ports.First, b.Ports.First),
		cmp.Compare(a.Ports.Last, b.Ports.Last))
}

// Validate reports what keeps f from being loaded into the kernel.
func (f Firewall) Validate() error {
	var errs []error
	if err := f.Ingress.validate(); err != nil {
		errs = append(errs, fmt.Errorf("ingress: %w", err))
	}
	if err := f.Egress.validate(); err != nil {
		errs = append(errs, fmt.Errorf("egress: %w", err))
	}
	return errors.Join(errs...)
}

func (a Admitted) validate() error {
	if a.Everything && len(a.Entries) > 0 {
		return fmt.Errorf("everything is admitted, and %d entries besides", len(a.Entries))
	}
	if len(a.Entries) > MaxFirewallEntries {
		return fmt.Errorf("%d entries, at most %d fit", len(a.Entries), MaxFirewallEntries)
	}
	for i, e := range a.Entries {
		if err := e.validate(); err != nil {
			return fmt.Errorf("entries[%d]: %w", i, err)
		}
		if i > 0 && CompareEntries(a.Entries[i-1], e) >= 0 {
			return fmt.Errorf("entries[%d]: %s must stand before %s", i, e, a.Entries[i-1])
		}
	}
	return a.disjoint()
}

// disjoint relies on the order of the entries: behind the first that starts after the end of e, none overlaps e.
func (a Admitted) disjoint() error {
	for i, e := range a.Entries {
		for _, next := range a.Entries[i+1:] {
			if e.Addresses.Last.Less(next.Addresses.First) {
				break
			}
			if e.Overlaps(next) {
				return fmt.Errorf("entries[%d]: %s and %s overlap", i, e, next)
			}
		}
	}
	return nil
}

func (e Entry) validate() error {
	if err := e.Addresses.validate(); err != nil {
		return err
	}
	if _, ok := protocolNames[e.Protocol]; !ok {
		return fmt.Errorf("protocol %d is none that can be admitted by name", e.Protocol)
	}
	if !e.Protocol.HasPorts() && e.Ports != AllPorts() {
		return fmt.Errorf("protocol %s has no ports, have %s", e.Protocol, e.Ports)
	}
	if e.Ports.First > e.Ports.Last {
		return fmt.Errorf("ports %s: the first is greater than the last", e.Ports)
	}
	return nil
}
