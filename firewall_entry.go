package floatip

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Protocol is a protocol that a firewall entry names. Its value is the protocol number of IPv4.
type Protocol uint8

// The protocols that a NetworkPolicy or an allow list can name. ProtocolICMP stands for ICMPv6 in entries of IPv6.
const (
	ProtocolAny  Protocol = 0
	ProtocolICMP Protocol = 1
	ProtocolTCP  Protocol = 6
	ProtocolUDP  Protocol = 17
	ProtocolSCTP Protocol = 132
)

var protocolNames = map[Protocol]string{
	ProtocolAny: "any", ProtocolICMP: "icmp", ProtocolTCP: "tcp", ProtocolUDP: "udp", ProtocolSCTP: "sctp",
}

// String returns the name that ParseService reads.
func (p Protocol) String() string {
	if name, ok := protocolNames[p]; ok {
		return name
	}
	return "protocol " + strconv.Itoa(int(p))
}

// HasPorts reports whether packets of the protocol carry ports that an entry can name.
func (p Protocol) HasPorts() bool { return p == ProtocolTCP || p == ProtocolUDP || p == ProtocolSCTP }

// PortRange is the ports from First to Last, both included.
type PortRange struct{ First, Last uint16 }

// AllPorts is every port. It includes port 0, as a rule that says nothing about ports does.
func AllPorts() PortRange { return PortRange{0, 65535} }

// Contains reports whether port is in r.
func (r PortRange) Contains(port uint16) bool { return r.First <= port && port <= r.Last }

// Overlaps reports whether the two ranges have a port in common.
func (r PortRange) Overlaps(other PortRange) bool {
	return r.First <= other.Last && other.First <= r.Last
}

// String returns "22" or "5000-6000".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// AddressRange is the addresses from First to Last, both included and of one family.
type AddressRange struct{ First, Last netip.Addr }

// RangeOf returns the addresses of a network.
func RangeOf(network netip.Prefix) AddressRange {
	raw := network.Addr().AsSlice()
	for bit := network.Bits(); bit < 8*len(raw); bit++ {
		raw[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(raw)
	return AddressRange{network.Masked().Addr(), last}
}

// Contains reports whether a is in r. An address of the other family is not.
func (r AddressRange) Contains(a netip.Addr) bool {
	return a.Is4() == r.First.Is4() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// Overlaps reports whether the two ranges have an address in common.
func (r AddressRange) Overlaps(other AddressRange) bool {
	return r.First.Is4() == other.First.Is4() && r.First.Compare(other.Last) <= 0 && other.First.Compare(r.Last) <= 0
}

// String returns the shortest of "192.0.2.7", "192.0.2.0/24" and "192.0.2.1-192.0.2.6" that says it.
func (r AddressRange) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	if network, ok := r.network(); ok {
		return network.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

// network returns the network that is r, if one is.
func (r AddressRange) network() (netip.Prefix, bool) {
	if r.First.BitLen() == 0 || r.First.BitLen() != r.Last.BitLen() {
		return netip.Prefix{}, false
	}
	first, last, bits := r.First.AsSlice(), r.Last.AsSlice(), 0
	for bits < 8*len(first) && (first[bits/8]^last[bits/8])&(0x80>>(bits%8)) == 0 {
		bits++
	}
	network := netip.PrefixFrom(r.First, bits)
	return network, RangeOf(network) == r
}

func (r AddressRange) validate() error {
	for _, a := range []netip.Addr{r.First, r.Last} {
		if !a.IsValid() || a.Zone() != "" {
			return fmt.Errorf("%s is not an address of a network range", a)
		}
	}
	if r.First.Is4() != r.Last.Is4() {
		return fmt.Errorf("%s-%s: the two are of two families", r.First, r.Last)
	}
	if r.Last.Less(r.First) {
		return fmt.Errorf("%s-%s: the first is greater than the last", r.First, r.Last)
	}
	return nil
}

// ParseAddressRange reads an address, a network without bits of a host, or two addresses with a dash between them. The
// error says which form would be right.
func ParseAddressRange(text string) (AddressRange, error) {
	r, err := parseAddressRange(text)
	if err != nil {
		return AddressRange{}, err
	}
	return r, r.validate()
}

func parseAddressRange(text string) (AddressRange, error) {
	if strings.Contains(text, "/") {
		return parseNetwork(text)
	}
	from, to, isRange := strings.Cut(text, "-")
	first, err := netip.ParseAddr(from)
	if err != nil {
		return AddressRange{}, notAddresses(text)
	}
	if !isRange {
		return AddressRange{first, first}, nil
	}
	last, err := netip.ParseAddr(to)
	if err != nil {
		return AddressRange{}, notAddresses(text)
	}
	return AddressRange{first, last}, nil
}

func parseNetwork(text string) (AddressRange, error) {
	network, err := netip.ParsePrefix(text)
	if err != nil {
		return AddressRange{}, notAddresses(text)
	}
	if network != network.Masked() {
		return AddressRange{}, fmt.Errorf("%s has bits set behind the network: write %s for the network or %s for the host",
			text, network.Masked(), network.Addr())
	}
	return RangeOf(network), nil
}

func notAddresses(text string) error {
	return fmt.Errorf("%q is not a network: write 192.0.2.0/24, 192.0.2.7, 192.0.2.1-192.0.2.6 or 2001:db8::/64", text)
}

// ParseService reads a protocol and its ports: "tcp/22", "udp/5000-6000", "sctp", "icmp" or "any". Without ports it is
// every port. The error says which form would be right.
func ParseService(text string) (Protocol, PortRange, error) {
	name, ports, hasPorts := strings.Cut(text, "/")
	protocol, ok := protocolByName(name)
	if !ok {
		return 0, PortRange{}, fmt.Errorf("%q is not a protocol: write tcp, udp, sctp, icmp or any", name)
	}
	if !hasPorts {
		return protocol, AllPorts(), nil
	}
	if !protocol.HasPorts() {
		return 0, PortRange{}, fmt.Errorf("%q: %s has no ports, write %s", text, protocol, protocol)
	}
	r, err := parsePorts(ports)
	if err != nil {
		return 0, PortRange{}, fmt.Errorf("%q: %w: write %s/22 or %s/5000-6000", text, err, protocol, protocol)
	}
	return protocol, r, nil
}

func protocolByName(name string) (Protocol, bool) {
	for protocol, known := range protocolNames {
		if known == name {
			return protocol, true
		}
	}
	return 0, false
}

func parsePorts(text string) (PortRange, error) {
	from, to, isRange := strings.Cut(text, "-")
	first, err := strconv.ParseUint(from, 10, 16)
	if err != nil {
		return PortRange{}, fmt.Errorf("port %q is not a number from 0 to 65535", from)
	}
	if !isRange {
		return PortRange{uint16(first), uint16(first)}, nil
	}
	last, err := strconv.ParseUint(to, 10, 16)
	if err != nil {
		return PortRange{}, fmt.Errorf("port %q is not a number from 0 to 65535", to)
	}
	if first > last {
		return PortRange{}, fmt.Errorf("port %d is greater than port %d", first, last)
	}
	return PortRange{uint16(first), uint16(last)}, nil
}

// String returns what ParseEntry reads, for instance "192.168.100.0/24 tcp/22".
func (e Entry) String() string {
	if e.Ports == AllPorts() {
		return e.Addresses.String() + " " + e.Protocol.String()
	}
	return e.Addresses.String() + " " + e.Protocol.String() + "/" + e.Ports.String()
}

// ParseEntry reads addresses and a service with one space between them.
func ParseEntry(text string) (Entry, error) {
	addresses, service, _ := strings.Cut(text, " ")
	r, err := ParseAddressRange(addresses)
	if err != nil {
		return Entry{}, fmt.Errorf("firewall entry %q: %w", text, err)
	}
	protocol, ports, err := ParseService(service)
	if err != nil {
		return Entry{}, fmt.Errorf("firewall entry %q: %w", text, err)
	}
	return Entry{r, protocol, ports}, nil
}

// MarshalText implements encoding.TextMarshaler.
func (e Entry) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (e *Entry) UnmarshalText(text []byte) error {
	parsed, err := ParseEntry(string(text))
	if err == nil {
		*e = parsed
	}
	return err
}
