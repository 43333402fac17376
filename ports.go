package floatip

import (
	"cmp"
	"fmt"
	"slices"
)

// Port is one entry of the port list of a VM's interface: a port, or a range of ports.
//
// A description with a range is refused by releases that know single ports only, for its field "last": their sidecar
// keeps the rules in force and their agent does not announce the address, so that nothing is open that is not listed.
type Port struct {
	// Protocol is "TCP" or "UDP".
	Protocol string `json:"protocol"`
	// Number is the port, or the first one of a range: 1 to 65535.
	Number uint16 `json:"port"`
	// Last is the last port of a range, Number or greater. A single port has 0.
	Last uint16 `json:"last,omitempty"`
}

// Range returns the ports of p.
func (p Port) Range() PortRange { return PortRange{p.Number, max(p.Number, p.Last)} }

// Single reports whether p is one port.
func (p Port) Single() bool { return p.Range().First == p.Range().Last }

// String returns "TCP/22" or "TCP/5000-6000".
func (p Port) String() string {
	if p.Last == 0 {
		return fmt.Sprintf("%s/%d", p.Protocol, p.Number)
	}
	return p.Protocol + "/" + PortRange{p.Number, p.Last}.String()
}

func (p Port) validate() error {
	if p.Number == 0 || !slices.Contains([]string{"TCP", "UDP"}, p.Protocol) {
		return fmt.Errorf("%s is not a TCP or UDP port", p)
	}
	if p.Last != 0 && p.Last < p.Number {
		return fmt.Errorf("%s: the first port is greater than the last", p)
	}
	return nil
}

// DisjointPorts returns the ports of a valid list in entries of which no two have a port in common, since the kernel
// refuses a set with ranges that overlap (net/netfilter/nft_set_pipapo.c). They are sorted by protocol and port. What only
// touches stays apart, so that a list of single ports remains one; ranges of one port become such.
func DisjointPorts(list []Port) (out []Port) {
	sorted := slices.SortedFunc(slices.Values(list), func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Number, b.Number))
	})
	for _, p := range sorted {
		r := p.Range()
		if n := len(out); n > 0 && out[n-1].Protocol == p.Protocol && out[n-1].Range().Last >= r.First {
			r = PortRange{out[n-1].Number, max(out[n-1].Range().Last, r.Last)}
			out = out[:n-1]
		}
		out = append(out, portOf(p.Protocol, r))
	}
	return out
}

func portOf(protocol string, r PortRange) Port {
	if r.First == r.Last {
		return Port{Protocol: protocol, Number: r.First}
	}
	return Port{Protocol: protocol, Number: r.First, Last: r.Last}
}
