package firewall

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"

	"floatip.io/floatip"
)

const (
	denyAll = "podSelector: {}"
	sshFrom = `
podSelector: {}
ingress:
- from: [{ipBlock: {cidr: 192.0.2.0/24}}]
  ports: [{port: 22}]`
	allFrom = `
podSelector: {}
ingress:
- from: [{ipBlock: {cidr: 192.0.2.0/24}}]`
	admitAll = `
podSelector: {}
ingress: [{}]`
	dnsOut = `
podSelector: {}
policyTypes: [Egress]
egress: [{ports: [{protocol: UDP, port: 53}]}]`
)

// Policies, allow list or pool default, and the VM's ports: each can close, none can open what another closes.
func TestCombination(t *testing.T) {
	const absent = ""
	all := []string{"everything", "", "everything", ""}
	ingress := func(entries ...string) []string { return append(entries, "", "everything", "") }
	ssh := []floatip.Port{{Protocol: "TCP", Number: 22}, {Protocol: "TCP", Number: 23}}
	web := []floatip.Port{{Protocol: "TCP", Number: 8000, Last: 8999}, {Protocol: "TCP", Number: 8500},
		{Protocol: "TCP", Number: 8900, Last: 9099}, {Protocol: "TCP", Number: 9100}}
	for name, test := range map[string]struct {
		policies string
		allow    string
		pool     Default
		ports    []floatip.Port
		want     []string
	}{
		"nobody says anything":         {"", absent, "", nil, all},
		"the pool allows":              {"", absent, DefaultAllow, nil, all},
		"the pool denies":              {"", absent, DefaultDeny, nil, ingress()},
		"a default of a later version": {"", absent, "Ask", nil, ingress()},
		"an allow list closes the rest": {"", "tcp/22 from 192.0.2.0/24", DefaultAllow, nil,
			ingress("192.0.2.0/24 tcp/22")},
		"it opens what the pool denies": {"", "tcp/22 from 192.0.2.0/24", DefaultDeny, nil,
			ingress("192.0.2.0/24 tcp/22")},
		"an allow list of nobody":          {"", "none", DefaultAllow, nil, ingress()},
		"an allow list of everybody":       {"", "any", DefaultDeny, nil, all},
		"a closed namespace stays closed":  {denyAll, absent, DefaultAllow, nil, ingress()},
		"whatever the allow list says":     {denyAll, "any", DefaultAllow, nil, ingress()},
		"a policy admits":                  {sshFrom, absent, DefaultAllow, nil, ingress("192.0.2.0/24 tcp/22")},
		"and does not open a denying pool": {sshFrom, absent, DefaultDeny, nil, ingress()},
		"nor does one that admits all":     {admitAll, absent, DefaultDeny, nil, ingress()},
		"the list within the policy": {allFrom, "tcp/22, tcp/80 from 198.51.100.0/24", "", nil,
			ingress("192.0.2.0/24 tcp/22")},
		"the policy within the list": {sshFrom, "tcp/1-1023 from 192.0.0.0/16", "", nil,
			ingress("192.0.2.0/24 tcp/22")},
		"the two have nothing in common":   {sshFrom, "tcp/80", "", nil, ingress()},
		"a policy that admits all, a list": {admitAll, "icmp from 192.0.2.1", "", nil, ingress("192.0.2.1 icmp")},
		"ports alone": {"", absent, "", ssh,
			ingress("0.0.0.0/0 icmp", "0.0.0.0/0 tcp/22-23", "::/0 icmp", "::/0 tcp/22-23")},
		"ports and a policy": {allFrom, absent, "", ssh, ingress("192.0.2.0/24 icmp", "192.0.2.0/24 tcp/22-23")},
		"ports and a list":   {"", "tcp/23-99 from 192.0.2.1, udp", "", ssh, ingress("192.0.2.1 tcp/23")},
		"a range of ports":   {"", absent, "", web, ingress("0.0.0.0/0 icmp", "0.0.0.0/0 tcp/8000-9100", "::/0 icmp", "::/0 tcp/8000-9100")},
		"a range and a list": {"", "tcp/1-8000 from 192.0.2.1, tcp/9100-9200 from 192.0.2.2, udp/8000", "", web,
			ingress("192.0.2.1 tcp/8000", "192.0.2.2 tcp/9100")},
		"a range and a policy": {allFrom, absent, "", web, ingress("192.0.2.0/24 icmp", "192.0.2.0/24 tcp/8000-9100")},
		"every port": {"", absent, "", []floatip.Port{{Protocol: "UDP", Number: 1, Last: 65535}},
			ingress("0.0.0.0/0 icmp", "0.0.0.0/0 udp/1-65535", "::/0 icmp", "::/0 udp/1-65535")},
		"ports of an unknown kind": {"", absent, "", []floatip.Port{{Protocol: "GRE", Number: 1}},
			ingress("0.0.0.0/0 icmp", "::/0 icmp")},
		"ports in a denying pool": {"", absent, DefaultDeny, ssh, ingress()},
		"all four": {sshFrom, "any from 192.0.2.128/25", DefaultDeny, ssh,
			ingress("192.0.2.128/25 tcp/22")},
		"the list is not about egress": {dnsOut, "none", "", nil,
			[]string{"", "0.0.0.0/0 udp/53", "::/0 udp/53", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			in := Input{Policies: parsePolicies(t, test.policies), Ports: test.ports,
				Defaults: Defaults{IPv4: test.pool, IPv6: test.pool}}
			if test.allow != absent {
				list, err := ParseAllow(test.allow)
				if err != nil {
					t.Fatal(err)
				}
				in.Allow = &list
			}
			have, problems := Translate(in)
			if diff := cmp.Diff(test.want, textsOf(have)); diff != "" || len(problems) > 0 {
				t.Errorf("(-want +got)\n%s%v", diff, problems)
			}
		})
	}
}

// The two addresses of a VM may come from pools of different minds.
func TestDefaultsOfTwoPools(t *testing.T) {
	have, _ := Translate(Input{Defaults: Defaults{IPv4: DefaultDeny, IPv6: DefaultAllow}})
	if diff := cmp.Diff([]string{"::/0 any", "", "everything", ""}, textsOf(have)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// policyOf admits the networks on the ports, in the direction.
func policyOf(direction, networks string, count int, ports string) string {
	var text strings.Builder
	fmt.Fprintf(&text, "podSelector: {}\npolicyTypes: [%s]\n%s:\n- ports: [%s]\n  %s:\n", direction,
		strings.ToLower(direction), ports, map[string]string{"Ingress": "from", "Egress": "to"}[direction])
	for i := range count {
		fmt.Fprintf(&text, "  - ipBlock: {cidr: %s}\n", fmt.Sprintf(networks, i/128, i%128*2))
	}
	return text.String()
}

// A direction whose policies do not fit is closed and says so; the other one stays as it is.
func TestTooLarge(t *testing.T) {
	for name, test := range map[string]struct {
		policies string
		want     string
	}{
		"as many as fit": {policyOf("Ingress", "10.%d.%d.0/24", 1024, "{port: 22}"), ""},
		"one more": {policyOf("Ingress", "10.%d.%d.0/24", 1025, "{port: 22}"),
			"more than the 1024 entries that fit into a pod"},
		"networks × ports": {policyOf("Ingress", "10.%d.%d.0/24", 40, manyPorts(100)), "more than the 1024 entries that fit"},
		"too many to sort": {policyOf("Ingress", "10.%d.%d.0/24", 5000, "{port: 22}"),
			"5000, at most 4096 can be combined"},
		"too many to hold": {policyOf("Ingress", "10.%d.%d.0/24", 700, manyPorts(100)),
			"more than 65536 pairs of them in the policies"},
	} {
		t.Run(name, func(t *testing.T) {
			in := Input{Policies: parsePolicies(t, test.policies)}
			have, problems := Translate(in)
			if err := have.Validate(); err != nil {
				t.Error(err)
			}
			if test.want == "" {
				if len(problems) > 0 || len(have.Ingress.Entries) != floatip.MaxFirewallEntries {
					t.Errorf("%d entries, %v", len(have.Ingress.Entries), problems)
				}
				return
			}
			if diff := cmp.Diff([]string{"", "everything", ""}, textsOf(have)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if len(problems) != 1 || problems[0].Reason != TooLarge || !strings.Contains(problems[0].Error(), test.want) {
				t.Errorf("problems %v, want one with %q", problems, test.want)
			}
		})
	}
}

// manyPorts lists n ports none of which is next to another.
func manyPorts(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("{port: %d}", 1000+2*i))
	}
	return strings.Join(list, ", ")
}

// The cut follows the shape of the set: what one way needs thousands of entries for, the other says in few.
func TestNormaliseTakesTheShorterCut(t *testing.T) {
	for name, test := range map[string]struct {
		policies string
		want     int
	}{
		"one port for many, another for all": {
			policyOf("Ingress", "10.%d.%d.0/24", 300, "{port: 22}") + "- ports: [{port: 23}]\n", 300 + 2},
		"all of TCP for many, one port for all": {
			policyOf("Ingress", "10.%d.%d.0/24", 300, "{}") + "- ports: [{port: 23}]\n", 300 + 300 + 2},
		"everything for many, one port for all": {
			policyOf("Ingress", "10.%d.%d.0/24", 300, "") + "- ports: [{port: 23}]\n", 300 + 301 + 1},
		"many ports for one, all ports for its half": {
			policyOf("Ingress", "10.%d.%d.0/24", 1, manyPorts(200)) +
				"- from: [{ipBlock: {cidr: 10.0.0.0/25}}]\n  ports: [{}]\n", 200 + 1},
		"both ways equal": {policyOf("Ingress", "10.%d.%d.0/24", 30, manyPorts(30)), 900},
	} {
		t.Run(name, func(t *testing.T) {
			have, problems := Translate(Input{Policies: parsePolicies(t, test.policies)})
			if len(problems) > 0 || len(have.Ingress.Entries) != test.want {
				t.Errorf("%d entries, want %d; %v", len(have.Ingress.Entries), test.want, problems)
			}
		})
	}
}

// BenchmarkTranslate has 64 networks with 63 ports each, nearly all that is looked at, and too many in the end.
func BenchmarkTranslate(b *testing.B) {
	policy := new(networkingv1.NetworkPolicy)
	if in := parsePolicies(b, policyOf("Ingress", "10.%d.%d.0/24", 64, manyPorts(63))); len(in) == 1 {
		policy = in[0]
	}
	in := Input{Policies: []*networkingv1.NetworkPolicy{policy}}
	for b.Loop() {
		if _, problems := Translate(in); len(problems) != 1 {
			b.Fatal(problems)
		}
	}
}

// The last address and the last port of each family are ordinary ones.
func TestEdges(t *testing.T) {
	in := Input{Policies: parsePolicies(t, `
podSelector: {}
ingress:
- from: [{ipBlock: {cidr: 255.255.255.255/32}}, {ipBlock: {cidr: "ffff::/16"}}, {ipBlock: {cidr: 0.0.0.0/32}}]
  ports: [{port: 65535}, {port: 65530, endPort: 65534}]`)}
	have, _ := Translate(in)
	want := []string{"0.0.0.0 tcp/65530-65535", "255.255.255.255 tcp/65530-65535", "ffff::/16 tcp/65530-65535", "",
		"everything", ""}
	if diff := cmp.Diff(want, textsOf(have)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if !have.Ingress.Admits(netip.MustParseAddr("255.255.255.255"), floatip.ProtocolTCP, 65535) {
		t.Error("the last port of the last address is not admitted")
	}
}
