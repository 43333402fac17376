package ipam

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Family is an address family.
type Family uint8

// The two families, numbered as the version field of their headers is (RFC 791, RFC 8200).
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// FamilyOf returns the family of address.
func FamilyOf(address netip.Addr) Family {
	if address.Is4() {
		return IPv4
	}
	return IPv6
}

// String returns "IPv4" or "IPv6".
func (f Family) String() string { return "IPv" + strconv.Itoa(int(f)) }

// ParseAddress reads one address of a host, in whatever spelling RFC 4291 section 2.2 allows, and returns the one value
// that stands for it; an IPv4-mapped IPv6 address is the IPv4 address. Refused are a prefix length, white space, leading
// zeros in IPv4 (some read them as octal, RFC 6943 section 3.1.1), a zone, and addresses that no host can have. The error
// says which form is right.
func ParseAddress(text string) (netip.Addr, error) {
	address, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%q is not an IP address%s", text, hint(text))
	}
	if address.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q has a zone, write %q", text, address.WithZone("").String())
	}
	address = address.Unmap()
	if kind := unusable(address); kind != "" {
		return netip.Addr{}, fmt.Errorf("%q is %s, a VM cannot hold it", text, kind)
	}
	return address, nil
}

// hint says how to write what text probably means: ", write \"192.0.2.1\"".
func hint(text string) string {
	repaired := strings.Join(strings.Fields(text), "")
	repaired, _, _ = strings.Cut(repaired, "/")
	repaired = withoutLeadingZeros(repaired)
	if a, err := netip.ParseAddr(repaired); err == nil && repaired != text {
		return fmt.Sprintf(", write %q", a.WithZone("").Unmap().String())
	}
	return `, write "192.0.2.1" or "2001:db8::1"`
}

func withoutLeadingZeros(text string) string {
	if strings.Contains(text, ":") {
		return text
	}
	octets := strings.Split(text, ".")
	for i, o := range octets {
		if trimmed := strings.TrimLeft(o, "0"); trimmed != "" {
			octets[i] = trimmed
		} else if o != "" {
			octets[i] = "0"
		}
	}
	return strings.Join(octets, ".")
}

// canonical reports whether a is as ParseAddress returns it: another value of the same address would be another key.
func canonical(a netip.Addr) bool { return a.IsValid() && !a.Is4In6() && a.Zone() == "" }

// unusable says what kind of address a is if no host can have it on a provider network.
func unusable(a netip.Addr) string {
	switch {
	case a.IsUnspecified():
		return "the unspecified address"
	case a.IsLoopback():
		return "a loopback address"
	case a.IsMulticast():
		return "a multicast address"
	case a.IsLinkLocalUnicast():
		return "a link-local address"
	case a.Is4() && a.As4()[0] == 0:
		return `an address of "this network" (RFC 791)`
	case a.Is4() && a.As4()[0] >= 240:
		return "a reserved address (RFC 1112 section 4)"
	}
	return ""
}
