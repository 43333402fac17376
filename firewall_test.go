package floatip

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func entries(t *testing.T, texts ...string) (list []Entry) {
	t.Helper()
	for _, text := range texts {
		e, err := ParseEntry(text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, e)
	}
	return list
}

func TestParseEntry(t *testing.T) {
	for text, want := range map[string]string{
		"192.168.100.0/24 tcp/22":             "",
		"192.168.100.7 udp/5000-6000":         "",
		"10.0.0.1-10.0.0.6 sctp":              "",
		"0.0.0.0/0 any":                       "",
		"::/0 icmp":                           "",
		"2001:db8::/64 tcp/0-1023":            "",
		"::ffff:0.0.0.0-::fffe:ffff:ffff any": "the first is greater than the last",
		"10.0.0.0-10.0.0.255 tcp/1-1":         "10.0.0.0/24 tcp/1",
		"10.0.0.7/32 tcp/0-65535":             "10.0.0.7 tcp",
		"10.0.0.1/24 tcp/22":                  "write 10.0.0.0/24 for the network or 10.0.0.1 for the host",
		"10.0.0.0/33 tcp/22":                  `"10.0.0.0/33" is not a network: write 192.0.2.0/24`,
		"ten tcp/22":                          `"ten" is not a network`,
		"10.0.0.1-x tcp/22":                   `"10.0.0.1-x" is not a network`,
		"10.0.0.9-10.0.0.1 tcp/22":            "10.0.0.9-10.0.0.1: the first is greater than the last",
		"10.0.0.9-2001:db8::1 tcp":            "of two families",
		"fe80::1%eth0 tcp":                    "fe80::1%eth0 is not an address of a network range",
		"10.0.0.0/8":                          `"" is not a protocol: write tcp, udp, sctp, icmp or any`,
		"10.0.0.0/8 gre":                      `"gre" is not a protocol`,
		"10.0.0.0/8 TCP":                      `"TCP" is not a protocol`,
		"10.0.0.0/8 icmp/8":                   "icmp has no ports, write icmp",
		"10.0.0.0/8 tcp/":                     `port "" is not a number from 0 to 65535: write tcp/22 or tcp/5000-6000`,
		"10.0.0.0/8 tcp/65536":                `port "65536" is not a number`,
		"10.0.0.0/8 tcp/1-x":                  `port "x" is not a number`,
		"10.0.0.0/8 tcp/9-1":                  "port 9 is greater than port 1",
		"10.0.0.0/8 tcp/22 ":                  `port "22 " is not a number`,
	} {
		e, err := ParseEntry(text)
		switch {
		case err != nil && (want == "" || !strings.Contains(err.Error(), want)):
			t.Errorf("ParseEntry(%q): %v, want %q", text, err, want)
		case err == nil && want == "" && e.String() != text, err == nil && want != "" && e.String() != want:
			t.Errorf("ParseEntry(%q) = %s, want %q", text, e, want)
		}
	}
}

func TestFirewallValidate(t *testing.T) {
	many := func(n int) (list []Entry) {
		for i := range n {
			a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0})
			list = append(list, Entry{AddressRange{a, a}, ProtocolTCP, PortRange{22, 22}})
		}
		return list
	}
	list := func(texts ...string) Admitted { return Admitted{Entries: entries(t, texts...)} }
	one := func(protocol Protocol, ports PortRange) Admitted {
		return Admitted{Entries: []Entry{{RangeOf(netip.MustParsePrefix("::/0")), protocol, ports}}}
	}
	for name, test := range map[string]struct {
		admitted Admitted
		want     string
	}{
		"nothing":        {Admitted{}, ""},
		"everything":     {Admitted{Everything: true}, ""},
		"as many as fit": {Admitted{Entries: many(MaxFirewallEntries)}, ""},
		"too many":       {Admitted{Entries: many(MaxFirewallEntries + 1)}, "1025 entries, at most 1024 fit"},
		"both":           {Admitted{Everything: true, Entries: many(1)}, "everything is admitted, and 1 entries besides"},
		"neighbours":     {list("10.0.0.0/8 tcp/22", "10.0.0.0/8 tcp/23", "11.0.0.0/8 any", "::/0 any"), ""},
		"twice the same": {list("10.0.0.0/8 tcp/22", "10.0.0.0/8 tcp/22"), "entries[1]: 10.0.0.0/8 tcp/22 must stand before"},
		"IPv6 first":     {list("::/0 any", "10.0.0.0/8 any"), "entries[1]: 10.0.0.0/8 any must stand before ::/0 any"},
		"overlap":        {list("10.0.0.0/8 tcp/22", "10.9.0.0/16 tcp/20-80"), "tcp/22 and 10.9.0.0/16 tcp/20-80 overlap"},
		"any covers tcp": {list("10.0.0.0/8 any", "10.0.0.0/8 tcp/22"), "overlap"},
		"far overlap": {list("0.0.0.0/0 tcp/22", "10.0.0.0/8 udp/1", "11.0.0.0/8 tcp/22"),
			"entries[0]: 0.0.0.0/0 tcp/22 and 11.0.0.0/8 tcp/22 overlap"},
		"no addresses":       {Admitted{Entries: []Entry{{Protocol: ProtocolTCP}}}, "entries[0]: invalid IP"},
		"ports of ICMP":      {one(ProtocolICMP, PortRange{}), "protocol icmp has no ports, have 0"},
		"backward ports":     {one(ProtocolTCP, PortRange{2, 1}), "ports 2-1: the first is greater"},
		"protocol of no one": {one(47, AllPorts()), "protocol 47 is none"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, f := range []Firewall{{Ingress: test.admitted}, {Egress: test.admitted}} {
				err := f.Validate()
				if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
					t.Errorf("Validate() = %v, want an error with %q", err, test.want)
				}
			}
		})
	}
}

func TestAdmits(t *testing.T) {
	a := Admitted{Entries: entries(t, "192.168.100.0/24 tcp/22", "192.168.101.0/24 any", "2001:db8::/64 icmp")}
	if diff := cmp.Diff([]int{2, 1}, []int{len(a.Family(true)), len(a.Family(false))}); diff != "" {
		t.Errorf("entries of each family (-want +got)\n%s", diff)
	}
	for _, test := range []struct {
		from     string
		protocol Protocol
		port     uint16
		want     bool
	}{
		{"192.168.100.7", ProtocolTCP, 22, true},
		{"192.168.100.7", ProtocolTCP, 23, false},
		{"192.168.100.7", ProtocolUDP, 22, false},
		{"192.168.101.255", ProtocolUDP, 9, true},
		{"192.168.101.1", 47, 0, true},
		{"192.168.102.0", ProtocolTCP, 22, false},
		{"2001:db8::7", ProtocolICMP, 0, true},
		{"2001:db8:0:1::", ProtocolICMP, 0, false},
	} {
		if got := a.Admits(netip.MustParseAddr(test.from), test.protocol, test.port); got != test.want {
			t.Errorf("Admits(%s, %s, %d) = %t", test.from, test.protocol, test.port, got)
		}
	}
	var closed, open = Admitted{}, Admitted{Everything: true}
	if a := netip.MustParseAddr("192.0.2.1"); closed.Admits(a, ProtocolTCP, 22) || !open.Admits(a, ProtocolTCP, 22) {
		t.Error("the zero value must admit nothing, and Everything all")
	}
}

func TestL4Protocols(t *testing.T) {
	for text, want := range map[string][2]uint8{
		"0.0.0.0/0 any": {0, 255}, "::/0 any": {0, 255}, "0.0.0.0/0 icmp": {1, 1}, "::/0 icmp": {58, 58},
		"::/0 tcp": {6, 6}, "0.0.0.0/0 udp/53": {17, 17}, "::/0 sctp": {132, 132},
	} {
		first, last := entries(t, text)[0].L4Protocols()
		if got := [2]uint8{first, last}; got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}

// Two directions full of the longest entries leave room in the annotations of a pod.
func TestFirewallFitsAnnotation(t *testing.T) {
	base := netip.MustParseAddr("2001:1db8:ffff:ffff:ffff:ffff:ffff:1000").As16()
	var full Admitted
	for i := range MaxFirewallEntries {
		first, last := base, base
		first[12], first[13], first[15] = byte(i>>8)|0x10, byte(i), 0x01
		last[12], last[13], last[14] = first[12], first[13], 0xfe
		full.Entries = append(full.Entries, Entry{
			AddressRange{netip.AddrFrom16(first), netip.AddrFrom16(last)}, ProtocolSCTP, PortRange{50000, 60000},
		})
	}
	p := testvm()
	p.Firewall = &Firewall{Ingress: full, Egress: full}
	text, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if limit := 220 << 10; len(text) > limit {
		t.Errorf("%d bytes, want at most %d", len(text), limit)
	}
}

// A pod without a firewall reads as before, and one that is there but empty is closed.
func TestPodNATFirewallJSON(t *testing.T) {
	p := testvm()
	for want, firewall := range map[string]*Firewall{
		``: nil,
		`"firewall":{"ingress":{},"egress":{"everything":true}}`: {Egress: Admitted{Everything: true}},
		`"firewall":{"ingress":{"entries":["10.0.0.0/8 tcp/22"]},"egress":{}}`: {
			Ingress: Admitted{Entries: entries(t, "10.0.0.0/8 tcp/22")}},
	} {
		p.Firewall = firewall
		text, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(text, want) || want == "" && strings.Contains(text, "firewall") {
			t.Errorf("have %s, want %s in it", text, want)
		}
		got, err := ParsePodNAT([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p, got, byValue); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	p.Firewall = &Firewall{Ingress: Admitted{Everything: true, Entries: entries(t, "::/0 any")}}
	if _, err := p.Encode(); err == nil || !strings.Contains(err.Error(), "nat description: firewall: ingress: everything") {
		t.Errorf("Encode() = %v", err)
	}
}

// Whatever reads as a valid firewall has one text, and that text means the same.
func FuzzFirewallJSON(f *testing.F) {
	f.Add([]byte(`{"ingress":{"everything":true},"egress":{"entries":["10.0.0.0/8 tcp/22","::/0 any"]}}`))
	f.Add([]byte(`{"ingress":{"entries":["::ffff:0.0.0.0/96 udp/1-9","::1:0:0:0-::1:0:0:7 icmp"]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var first, second Firewall
		if json.Unmarshal(raw, &first) != nil || first.Validate() != nil {
			return
		}
		text, err := json.Marshal(first)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &second); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if err := second.Validate(); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if fmt.Sprint(first) != fmt.Sprint(second) {
			t.Fatalf("%s: first %v, second %v", text, first, second)
		}
	})
}
