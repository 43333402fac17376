package nat

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"floatip.io/floatip"
)

// Text returns the plan for p as a file for "nft -f".
func Text(p floatip.PodNAT) string {
	var out strings.Builder
	for i, t := range Desired(p) {
		if !t.Empty() {
			t.write(&out, words(families[i]))
		}
	}
	return out.String()
}

func (t Table) write(out *strings.Builder, f family) {
	fmt.Fprintf(out, "table %s %s {\n", f.ip, TableName)
	for _, c := range t.Counters {
		fmt.Fprintf(out, "\tcounter %s {\n\t}\n\n", c)
	}
	for _, s := range t.Sets {
		s.write(out)
	}
	for _, c := range t.Chains {
		c.write(out)
	}
	out.WriteString("}\n")
}

func (s Set) write(out *strings.Builder) {
	fmt.Fprintf(out, "\tset %s {\n\t\ttype %s\n", s.Name, s.Type)
	if s.Interval {
		out.WriteString("\t\tflags interval\n")
	}
	var texts []string
	for i, e := range s.Elements {
		switch {
		case e.End:
		case e.Last != "":
			texts = append(texts, rangesText(s.Type, e))
		case s.Interval:
			texts = append(texts, intervalText(s.Elements, i))
		default:
			texts = append(texts, keyText(s.Type, e.Key))
		}
	}
	if len(texts) > 0 {
		fmt.Fprintf(out, "\t\telements = { %s }\n", strings.Join(texts, ",\n\t\t\t     "))
	}
	out.WriteString("\t}\n\n")
}

// rangesText writes an element of a concatenated type, each of its fields a range: address, protocol and port in the
// firewall's sets, protocol and port in the port list.
func rangesText(kind string, e Element) string {
	n := len(e.Key) - 8
	number := func(key string) uint16 { return binary.BigEndian.Uint16([]byte(key[n+4:])) }
	ports := rangeText(number(e.Key), number(e.Last))
	if kind == portType.Name {
		return fmt.Sprintf("%s . %s", protocolText(e.Key), ports)
	}
	first, _ := netip.AddrFromSlice([]byte(e.Key[:n]))
	last, _ := netip.AddrFromSlice([]byte(e.Last[:n]))
	return fmt.Sprintf("%s . %s . %s", floatip.AddressRange{First: first, Last: last},
		rangeText(uint16(e.Key[n]), uint16(e.Last[n])), ports)
}

// protocolText names the protocol of a key of the port list.
func protocolText(key string) string {
	if key[0] == unix.IPPROTO_UDP {
		return "udp"
	}
	return "tcp"
}

func rangeText(first, last uint16) string {
	return floatip.PortRange{First: first, Last: last}.String()
}

// intervalText writes the interval that starts with element i.
func intervalText(elements []Element, i int) string {
	first, _ := netip.AddrFromSlice([]byte(elements[i].Key))
	last := lastAddr(netip.PrefixFrom(first, 0))
	if i+1 < len(elements) && elements[i+1].End {
		next, _ := netip.AddrFromSlice([]byte(elements[i+1].Key))
		last = next.Prev()
	}
	return floatip.AddressRange{First: first, Last: last}.String()
}

func keyText(kind, key string) string {
	switch kind {
	case nftables.TypeIFName.Name:
		return fmt.Sprintf("%q", strings.TrimRight(key, "\x00"))
	case portType.Name:
		return fmt.Sprintf("%s . %d", protocolText(key), binary.BigEndian.Uint16([]byte(key[4:])))
	}
	address, _ := netip.AddrFromSlice([]byte(key))
	return address.String()
}

var hookNames = map[nftables.ChainHook]string{
	*nftables.ChainHookPrerouting:  "prerouting",
	*nftables.ChainHookForward:     "forward",
	*nftables.ChainHookOutput:      "output",
	*nftables.ChainHookPostrouting: "postrouting",
}

// header is the declaration of a base chain. That of another one is empty.
func (c Chain) header() string {
	if c.Type == "" {
		return ""
	}
	policy := "accept"
	if c.Policy == nftables.ChainPolicyDrop {
		policy = "drop"
	}
	return fmt.Sprintf("type %s hook %s priority %d; policy %s;", c.Type, hookNames[c.Hook], c.Priority, policy)
}

func (c Chain) write(out *strings.Builder) {
	fmt.Fprintf(out, "\tchain %s {\n", c.Name)
	if c.Type != "" {
		fmt.Fprintf(out, "\t\t%s\n", c.header())
	}
	for _, r := range c.Rules {
		fmt.Fprintf(out, "\t\t%s\n", r.Text)
	}
	out.WriteString("\t}\n\n")
}
