package firewall

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"floatip.io/floatip"
)

// The words that stand alone in an allow list.
const (
	allowNobody = "none"
	allowFrom   = "from"
)

// allowForm is the grammar of one entry, for the person who got it wrong.
const allowForm = `an entry is "<protocol>[/<port>[-<port>]] [from <network> ...]", ` +
	`for instance "tcp/22 from 192.0.2.0/24"`

// AllowList is the parsed annotation floatip.io/allow: who may open connections to the VM's floating addresses. The
// zero value admits nobody.
type AllowList struct {
	entries []floatip.Entry // normal
}

// AllowOf reads the allow list of a VM with those annotations. It returns nil when there is none, and a list that
// admits nobody besides the error when it cannot be read.
func AllowOf(annotations map[string]string) (*AllowList, error) {
	text, ok := annotations[floatip.AnnotationAllow]
	if !ok {
		return nil, nil
	}
	list, err := ParseAllow(text)
	if err != nil {
		return new(AllowList), err
	}
	return &list, nil
}

// AllowAtMost returns the list that admits what have admits.
func AllowAtMost(have floatip.Admitted) AllowList {
	if have.Everything {
		return AllowList{entries: everything()}
	}
	return AllowList{entries: slices.Clone(have.Entries)}
}

// ParseAllow reads an allow list. Entries are separated by commas or line ends; upper and lower case are the same:
//
//	tcp/22 from 192.168.100.0/24, udp/5000-6000, icmp
//	tcp/443 from 192.168.100.7 192.168.101.1-192.168.101.9 2001:db8::/64
//	any from 10.0.0.0/8
//
// A protocol is tcp, udp, sctp, icmp (which is ICMPv6 for IPv6) or any. Without ports it is every port, and without
// networks everybody, of both families. "any" alone admits everything and "none" alone nothing. The error has a
// sentence for each entry that is wrong.
func ParseAllow(text string) (AllowList, error) {
	entries := allowEntries(text)
	switch {
	case len(entries) == 0:
		return AllowList{}, fmt.Errorf("%s is empty: write none to admit nobody, any to admit everybody, "+
			"or leave the annotation out for the default of the pool", floatip.AnnotationAllow)
	case len(entries) == 1 && strings.EqualFold(entries[0], allowNobody):
		return AllowList{}, nil
	}
	var list []floatip.Entry
	var errs []error
	for n, entry := range entries {
		more, err := parseAllowEntry(strings.ToLower(entry))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: entry %d %q: %w", floatip.AnnotationAllow, n+1, entry, err))
		}
		list = append(list, more...)
	}
	if err := errors.Join(errs...); err != nil {
		return AllowList{}, err
	}
	normal, err := normalise(list)
	if err != nil {
		return AllowList{}, fmt.Errorf("%s: %w", floatip.AnnotationAllow, err)
	}
	return AllowList{entries: normal}, nil
}

// allowEntries splits text at commas and line ends. Blank lines and a comma at the end of a line are no entries.
func allowEntries(text string) (list []string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		line = strings.TrimSpace(strings.TrimSuffix(line, ","))
		if line == "" {
			continue
		}
		for entry := range strings.SplitSeq(line, ",") {
			list = append(list, strings.TrimSpace(entry))
		}
	}
	return list
}

func parseAllowEntry(text string) ([]floatip.Entry, error) {
	words := strings.Fields(text)
	if len(words) == 0 {
		return nil, fmt.Errorf("there is nothing between two commas: %s", allowForm)
	}
	protocol, ports, err := parseAllowService(words[0])
	if err != nil {
		return nil, err
	}
	networks, err := parseAllowNetworks(words[1:])
	if err != nil {
		return nil, err
	}
	var list []floatip.Entry
	for _, r := range networks {
		list = append(list, floatip.Entry{Addresses: r, Protocol: protocol, Ports: ports})
	}
	return list, nil
}

func parseAllowService(word string) (floatip.Protocol, floatip.PortRange, error) {
	if word == allowNobody {
		return 0, floatip.PortRange{}, errors.New("none stands alone: leave it or the other entries out")
	}
	protocol, ports, err := floatip.ParseService(word)
	if err != nil {
		return 0, floatip.PortRange{}, fmt.Errorf("%w; %s", err, allowForm)
	}
	if ports.First == 0 && ports != floatip.AllPorts() {
		return 0, floatip.PortRange{}, fmt.Errorf("%q: ports are from 1 to 65535", word)
	}
	return protocol, ports, nil
}

// parseAllowNetworks reads "from" and what follows. Nothing at all is everybody.
func parseAllowNetworks(words []string) (list []floatip.AddressRange, err error) {
	if len(words) == 0 {
		for _, e := range everything() {
			list = append(list, e.Addresses)
		}
		return list, nil
	}
	if words[0] != allowFrom {
		return nil, fmt.Errorf("%q stands where %q is expected: %s", words[0], allowFrom, allowForm)
	}
	if len(words) == 1 {
		return nil, fmt.Errorf("no network follows %q: %s", allowFrom, allowForm)
	}
	for _, word := range words[1:] {
		r, err := floatip.ParseAddressRange(word)
		if err != nil {
			return nil, err
		}
		if r.First.Is4In6() || r.Last.Is4In6() {
			return nil, fmt.Errorf("%s is an IPv4 address written as IPv6 (RFC 4291 section 2.5.5.2): write it as IPv4", word)
		}
		list = append(list, r)
	}
	return list, nil
}

// Entries returns the normal form of the list.
func (a AllowList) Entries() []floatip.Entry { return slices.Clone(a.entries) }
