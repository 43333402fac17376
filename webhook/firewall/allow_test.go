package firewall

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
)

func entryTexts(list []floatip.Entry) (texts []string) {
	for _, e := range list {
		texts = append(texts, e.String())
	}
	return texts
}

func TestParseAllow(t *testing.T) {
	for text, want := range map[string][]string{
		"none":   nil,
		" NONE,": nil,
		"any":    {"0.0.0.0/0 any", "::/0 any"},
		"tcp/22 from 192.168.100.0/24, udp/5000-6000, icmp": {"0.0.0.0/0 icmp", "0.0.0.0/0 udp/5000-6000",
			"192.168.100.0/24 tcp/22", "::/0 icmp", "::/0 udp/5000-6000"},
		"TCP/443 from 192.168.100.7 192.168.101.1-192.168.101.9  2001:DB8::/64": {"192.168.100.7 tcp/443",
			"192.168.101.1-192.168.101.9 tcp/443", "2001:db8::/64 tcp/443"},
		"any from 10.0.0.0/8": {"10.0.0.0/8 any"},
		"tcp/22\n\n  udp/53,\nsctp from 10.0.0.0/8\r\n": {"0.0.0.0/0 tcp/22", "0.0.0.0/0 udp/53",
			"10.0.0.0/8 sctp", "::/0 tcp/22", "::/0 udp/53"},
		// Neighbours are merged, and what another entry covers is gone.
		"tcp/22 from 10.0.0.0/9 10.128.0.0/9, tcp/23 from 10.0.0.0/8": {"10.0.0.0/8 tcp/22-23"},
		"any from 10.0.0.0/8, tcp/22 from 10.1.0.0/16":                {"10.0.0.0/8 any"},
		"any from 10.0.0.0/8, icmp from 10.0.0.0/7":                   {"10.0.0.0/8 any", "11.0.0.0/8 icmp"},
	} {
		list, err := ParseAllow(text)
		if err != nil {
			t.Errorf("ParseAllow(%q): %v", text, err)
		}
		if diff := cmp.Diff(want, entryTexts(list.Entries())); diff != "" {
			t.Errorf("ParseAllow(%q) (-want +got)\n%s", text, diff)
		}
	}
}

// What is wrong is named with the form that is right.
func TestParseAllowRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                  "floatip.io/allow is empty: write none to admit nobody, any to admit everybody",
		" ,\n,":             "is empty",
		"tcp/22,,udp/53":    "entry 2 \"\": there is nothing between two commas",
		"tcp/22, none":      "entry 2 \"none\": none stands alone",
		"22/tcp":            `"22" is not a protocol: write tcp, udp, sctp, icmp or any; an entry is "<protocol>[/`,
		"ssh":               `"ssh" is not a protocol`,
		"tcp:22":            `"tcp:22" is not a protocol`,
		"tcp/22-":           `port "" is not a number from 0 to 65535: write tcp/22 or tcp/5000-6000`,
		"tcp/0":             `"tcp/0": ports are from 1 to 65535`,
		"udp/0-9":           `ports are from 1 to 65535`,
		"tcp/99999":         `port "99999" is not a number`,
		"udp/9-5":           "port 9 is greater than port 5",
		"icmp/8":            "icmp has no ports, write icmp",
		"tcp/22 10.0.0.0/8": `"10.0.0.0/8" stands where "from" is expected`,
		"tcp/22 from":       `no network follows "from"`,
		"from 10.0.0.0/8":   `"from" is not a protocol`,
		"tcp/22 from 192.168.100.5/24": "192.168.100.5/24 has bits set behind the network: " +
			"write 192.168.100.0/24 for the network or 192.168.100.5 for the host",
		"tcp/22 from 10.0.0.0/8 and 11.0.0.0/8":       `"and" is not a network: write 192.0.2.0/24`,
		"tcp/22 from web.example":                     `"web.example" is not a network`,
		"tcp/22 from 10.0.0.9-10.0.0.1":               "the first is greater than the last",
		"tcp/22 from fe80::1%eth0":                    "fe80::1%eth0 is not an address",
		"tcp/22 from ::ffff:10.0.0.1":                 "is an IPv4 address written as IPv6 (RFC 4291 section 2.5.5.2)",
		"tcp/22, tcp/x, udp/53 from 10.0.0.0/33, udp": "entry 2 \"tcp/x\"",
	} {
		_, err := ParseAllow(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseAllow(%q): %v, want %q", text, err, want)
		}
	}
	_, err := ParseAllow("tcp/x\nudp/53\nicmp/8")
	if err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("two entries are wrong, have %v", err)
	}
}

func TestParseAllowTooLarge(t *testing.T) {
	var entries []string
	for i := range floatip.MaxFirewallEntries {
		entries = append(entries, fmt.Sprintf("tcp/22 from 10.%d.%d.0/24", i/128, i%128*2))
	}
	full := strings.Join(entries, ",")
	if list, err := ParseAllow(full); err != nil || len(list.Entries()) != floatip.MaxFirewallEntries {
		t.Errorf("a list of %d entries: %d, %v", floatip.MaxFirewallEntries, len(list.Entries()), err)
	}
	_, err := ParseAllow(full + ",icmp from 10.0.0.0/8")
	if err == nil || !strings.Contains(err.Error(), "more than the 1024 entries that fit into a pod") {
		t.Errorf("one more: %v", err)
	}
}

func TestAllowOf(t *testing.T) {
	if list, err := AllowOf(map[string]string{"a": "b"}); list != nil || err != nil {
		t.Errorf("without an annotation: %v, %v", list, err)
	}
	if list, err := AllowOf(map[string]string{floatip.AnnotationAllow: "tcp/22"}); err != nil || len(list.entries) != 2 {
		t.Errorf("tcp/22: %v, %v", list, err)
	}
	// A list that cannot be read must not count as none, since the default of the pool may be to allow.
	list, err := AllowOf(map[string]string{floatip.AnnotationAllow: "tpc/22"})
	if err == nil || list == nil || len(list.entries) != 0 {
		t.Errorf("tpc/22: %v, %v", list, err)
	}
}

// Whatever is accepted can be loaded, and the entries read back as the same list.
func FuzzParseAllow(f *testing.F) {
	for _, text := range []string{"none", "any", "tcp/22 from 192.168.100.0/24, udp/5000-6000, icmp",
		"sctp/1-2 from ::/0 ::1-::7",
		"any from 10.0.0.0/8\ntcp/22 from fe80::/10,", "tcp/65535 from 255.255.255.255 ffff::-ffff::1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		list, err := ParseAllow(text)
		if err != nil {
			return
		}
		firewall := floatip.Firewall{Ingress: floatip.Admitted{Entries: list.Entries()}}
		if err := firewall.Validate(); err != nil {
			t.Fatal(err)
		}
		again := []string{"none"}
		for i, e := range list.entries {
			addresses, service, _ := strings.Cut(e.String(), " ")
			if again = append(again, service+" from "+addresses); i == 0 {
				again = again[1:]
			}
		}
		second, err := ParseAllow(strings.Join(again, ","))
		if err != nil || !slices.Equal(list.entries, second.entries) {
			t.Fatalf("%q: %v, %v became %v", text, err, list.entries, second.entries)
		}
	})
}
