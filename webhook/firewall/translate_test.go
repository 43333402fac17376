package firewall

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"floatip.io/floatip"
)

// parsePolicies reads NetworkPolicies that are separated by lines of three dashes. What stands before a spec is left
// out in these tests.
func parsePolicies(t testing.TB, text string) (list []*networkingv1.NetworkPolicy) {
	t.Helper()
	for i, doc := range strings.Split(text, "\n---\n") {
		if strings.TrimSpace(doc) == "" {
			continue
		}
		policy := new(networkingv1.NetworkPolicy)
		if err := yaml.UnmarshalStrict([]byte(doc), &policy.Spec); err != nil {
			t.Fatalf("policy %d: %v", i, err)
		}
		policy.Namespace, policy.Name = "default", string(rune('a'+i))
		list = append(list, policy)
	}
	return list
}

// packet is the first one of a connection: "tcp/22 192.0.2.1" with the address outside.
func parsePacket(t testing.TB, text string) (netip.Addr, floatip.Protocol, uint16) {
	t.Helper()
	service, address, _ := strings.Cut(text, " ")
	if service == "gre" {
		return netip.MustParseAddr(address), 47, 0
	}
	protocol, ports, err := floatip.ParseService(service)
	if err != nil {
		t.Fatal(err)
	}
	if !protocol.HasPorts() {
		ports.First = 0
	}
	return netip.MustParseAddr(address), protocol, ports.First
}

// flow is a connection in one direction, and whether it is admitted.
type flow struct {
	packet   string
	admitted bool
}

func check(t *testing.T, direction string, have floatip.Admitted, flows []flow) {
	t.Helper()
	for _, f := range flows {
		address, protocol, port := parsePacket(t, f.packet)
		if got := have.Admits(address, protocol, port); got != f.admitted {
			t.Errorf("%s %s: admitted %t, want %t; have %v", direction, f.packet, got, f.admitted, have)
		}
	}
}

var webLabels = map[string]string{"app": "web", "tier": "front"}

var webPorts = []corev1.ContainerPort{
	{Name: "http", ContainerPort: 8080},
	{Name: "dns", Protocol: corev1.ProtocolUDP, ContainerPort: 5353},
	{Name: "both", Protocol: corev1.ProtocolTCP, ContainerPort: 7000},
	{Name: "both", Protocol: corev1.ProtocolUDP, ContainerPort: 7001},
}

// The cases stand beside the text of the policy they follow from.
var policyCases = []struct {
	name            string
	policies        string
	ingress, egress []flow
	problems        []string
}{{
	name:    "no policy isolates nothing",
	ingress: []flow{{"tcp/22 192.0.2.1", true}, {"icmp 2001:db8::1", true}, {"gre 192.0.2.1", true}},
	egress:  []flow{{"tcp/22 192.0.2.1", true}, {"icmp 2001:db8::1", true}},
}, {
	name: "default deny of ingress closes every protocol",
	policies: `
podSelector: {}
policyTypes: [Ingress]`,
	ingress: []flow{{"tcp/22 192.0.2.1", false}, {"icmp 192.0.2.1", false}, {"icmp 2001:db8::1", false},
		{"gre 192.0.2.1", false}},
	egress: []flow{{"tcp/22 192.0.2.1", true}},
}, {
	name:     "without policyTypes a policy isolates ingress",
	policies: `podSelector: {}`,
	ingress:  []flow{{"tcp/22 192.0.2.1", false}},
	egress:   []flow{{"tcp/22 192.0.2.1", true}},
}, {
	name: "without policyTypes egress rules isolate both directions",
	policies: `
podSelector: {}
egress:
- to: [{ipBlock: {cidr: 192.0.2.0/24}}]`,
	ingress: []flow{{"tcp/22 192.0.2.1", false}},
	egress:  []flow{{"tcp/22 192.0.2.1", true}, {"icmp 192.0.2.1", true}, {"tcp/22 198.51.100.1", false}},
}, {
	name: "without policyTypes an empty list of egress rules is none",
	policies: `
podSelector: {}
egress: []`,
	egress: []flow{{"tcp/22 192.0.2.1", true}},
}, {
	name: "default deny of both directions",
	policies: `
podSelector: {}
policyTypes: [Ingress, Egress]`,
	ingress: []flow{{"tcp/22 192.0.2.1", false}, {"tcp/22 2001:db8::1", false}},
	egress:  []flow{{"tcp/22 192.0.2.1", false}, {"udp/53 2001:db8::1", false}},
}, {
	name: "ingress rules of a policy for egress alone do not count",
	policies: `
podSelector: {}
policyTypes: [Egress]
ingress:
- from: [{ipBlock: {cidr: 192.0.2.0/24}}]`,
	ingress: []flow{{"tcp/22 198.51.100.1", true}},
	egress:  []flow{{"tcp/22 192.0.2.1", false}},
}, {
	name: "an empty rule admits everything",
	policies: `
podSelector: {}
ingress:
- {}`,
	ingress: []flow{{"tcp/22 192.0.2.1", true}, {"gre 192.0.2.1", true}, {"icmp 2001:db8::1", true}},
}, {
	name: "empty from is everybody, on the listed ports alone",
	policies: `
podSelector: {}
ingress:
- from: []
  ports: [{port: 443}]`,
	ingress: []flow{{"tcp/443 192.0.2.1", true}, {"tcp/443 2001:db8::1", true}, {"udp/443 192.0.2.1", false},
		{"icmp 192.0.2.1", false}},
}, {
	name: "ipBlock with exceptions",
	policies: `
podSelector: {}
ingress:
- from:
  - ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.64/26, 192.0.2.7/32]}
  ports: []`,
	ingress: []flow{{"tcp/1 192.0.2.0", true}, {"tcp/1 192.0.2.6", true}, {"tcp/1 192.0.2.7", false},
		{"tcp/1 192.0.2.8", true}, {"tcp/1 192.0.2.63", true}, {"tcp/1 192.0.2.64", false},
		{"tcp/1 192.0.2.127", false}, {"tcp/1 192.0.2.128", true}, {"tcp/1 192.0.3.0", false},
		{"icmp 192.0.2.1", true}, {"icmp 192.0.2.7", false}},
}, {
	name: "another peer admits what one excepts",
	policies: `
podSelector: {}
ingress:
- from:
  - ipBlock: {cidr: 0.0.0.0/0, except: [192.0.2.0/24]}
  - ipBlock: {cidr: 192.0.2.7/32}`,
	ingress: []flow{{"tcp/1 192.0.2.7", true}, {"tcp/1 192.0.2.8", false}, {"tcp/1 192.0.1.255", true},
		{"tcp/1 2001:db8::1", false}},
}, {
	name: "IPv6 block with an exception, and nothing of IPv4",
	policies: `
podSelector: {}
ingress:
- from: [{ipBlock: {cidr: "::/0", except: ["2001:db8:1::/48"]}}]
  ports: [{protocol: UDP, port: 53}]`,
	ingress: []flow{{"udp/53 2001:db8::1", true}, {"udp/53 2001:db8:1::1", false}, {"udp/53 192.0.2.1", false},
		{"icmp 2001:db8::1", false}},
}, {
	name: "peers that are pods never are outside",
	policies: `
podSelector: {}
ingress:
- from:
  - podSelector: {}
  - namespaceSelector: {}
  ports: [{port: nosuch}]
egress:
- to: [{namespaceSelector: {matchLabels: {a: b}}, podSelector: {}}]`,
	ingress: []flow{{"tcp/22 192.0.2.1", false}},
	egress:  []flow{{"tcp/22 192.0.2.1", false}},
}, {
	name: "ports: default protocol, all ports of one, ranges, SCTP",
	policies: `
podSelector: {}
ingress:
- ports:
  - port: 22
  - {protocol: UDP}
  - {protocol: TCP, port: 8000, endPort: 8010}
  - {protocol: SCTP, port: 36412}`,
	ingress: []flow{{"tcp/22 192.0.2.1", true}, {"tcp/23 192.0.2.1", false}, {"udp/1 192.0.2.1", true},
		{"udp/65535 2001:db8::1", true}, {"tcp/7999 192.0.2.1", false}, {"tcp/8000 192.0.2.1", true},
		{"tcp/8010 192.0.2.1", true}, {"tcp/8011 192.0.2.1", false}, {"sctp/36412 192.0.2.1", true},
		{"sctp/36413 192.0.2.1", false}, {"icmp 192.0.2.1", false}, {"gre 192.0.2.1", false}},
}, {
	name: "named ports are those of the pod with that protocol",
	policies: `
podSelector: {}
ingress:
- ports: [{port: http}, {protocol: UDP, port: both}, {protocol: TCP, port: dns}]`,
	ingress: []flow{{"tcp/8080 192.0.2.1", true}, {"udp/8080 192.0.2.1", false}, {"udp/7001 192.0.2.1", true},
		{"tcp/7000 192.0.2.1", false}, {"tcp/5353 192.0.2.1", false}},
	problems: []string{`NetworkPolicy default/a: spec.ingress[0].ports[2].port: ` +
		`the pod has no TCP port named "dns"; it admits nothing`},
}, {
	name: "hosts outside have no named ports",
	policies: `
podSelector: {}
policyTypes: [Egress]
egress:
- ports: [{port: http}, {port: 443}]`,
	egress: []flow{{"tcp/8080 192.0.2.1", false}, {"tcp/443 192.0.2.1", true}},
	problems: []string{`NetworkPolicy default/a: spec.egress[0].ports[0].port: ` +
		`hosts outside the cluster have no port named "http"; it admits nothing there`},
}, {
	name: "policies and rules add up",
	policies: `
podSelector: {}
---
podSelector: {matchLabels: {app: web}}
ingress:
- from: [{ipBlock: {cidr: 192.0.2.0/24}}]
  ports: [{port: 22}]
- from: [{ipBlock: {cidr: 192.0.2.0/25}}]
  ports: [{port: 23}]
---
podSelector: {matchLabels: {tier: front}}
ingress:
- ports: [{port: 80}]`,
	ingress: []flow{{"tcp/22 192.0.2.200", true}, {"tcp/23 192.0.2.200", false}, {"tcp/23 192.0.2.100", true},
		{"tcp/80 198.51.100.1", true}, {"tcp/22 198.51.100.1", false}},
	egress: []flow{{"tcp/22 192.0.2.1", true}},
}, {
	name: "policies that do not select the pod do not count",
	policies: `
podSelector: {matchLabels: {app: db}}
policyTypes: [Ingress, Egress]
---
podSelector:
  matchExpressions:
  - {key: app, operator: In, values: [web, api]}
  - {key: tier, operator: NotIn, values: [front]}
---
podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}`,
	ingress: []flow{{"tcp/22 192.0.2.1", true}},
	egress:  []flow{{"tcp/22 192.0.2.1", true}},
}, {
	name: "matchExpressions select the pod",
	policies: `
podSelector:
  matchLabels: {tier: front}
  matchExpressions:
  - {key: app, operator: In, values: [web, api]}
  - {key: zone, operator: NotIn, values: [dmz]}
  - {key: app, operator: Exists}
  - {key: zone, operator: DoesNotExist}`,
	ingress: []flow{{"tcp/22 192.0.2.1", false}},
}, {
	name: "what the API does not define admits nothing",
	policies: `
podSelector: {}
ingress:
- from:
  - {}
  - {ipBlock: {cidr: 192.0.2.0/24}, podSelector: {}}
  - {ipBlock: {cidr: 192.0.2.0/33}}
  - {ipBlock: {cidr: 192.0.2.0/24, except: [x]}}
- from: [{ipBlock: {cidr: 198.51.100.0/24}}]
  ports:
  - {protocol: ICMP}
  - {port: 0}
  - {port: 70000}
  - {port: 20, endPort: 10}
  - {port: http, endPort: 9000}
  - {endPort: 9000}`,
	ingress: []flow{{"tcp/22 192.0.2.1", false}, {"tcp/15 198.51.100.1", false}, {"icmp 198.51.100.1", false},
		{"tcp/8080 198.51.100.1", false}, {"tcp/8999 198.51.100.1", false}},
	problems: []string{
		`NetworkPolicy default/a: spec.ingress[0].from[0]: neither a selector nor an ipBlock; the peer admits nothing`,
		`NetworkPolicy default/a: spec.ingress[0].from[1]: an ipBlock stands beside a selector; the peer admits nothing`,
		`NetworkPolicy default/a: spec.ingress[0].from[2].ipBlock: cidr: "192.0.2.0/33" is not a network; ` +
			`the peer admits nothing`,
		`NetworkPolicy default/a: spec.ingress[0].from[3].ipBlock: except[0]: "x" is not a network; ` +
			`the peer admits nothing`,
		`NetworkPolicy default/a: spec.ingress[1].ports[0].protocol: "ICMP" is not TCP, UDP or SCTP; ` +
			`the port admits nothing`,
		`NetworkPolicy default/a: spec.ingress[1].ports[1]: 0 to 0 is no range of ports; it admits nothing`,
		`NetworkPolicy default/a: spec.ingress[1].ports[2]: 70000 to 70000 is no range of ports; it admits nothing`,
		`NetworkPolicy default/a: spec.ingress[1].ports[3]: 20 to 10 is no range of ports; it admits nothing`,
		`NetworkPolicy default/a: spec.ingress[1].ports[4].endPort: there is no port with a number to start from; ` +
			`the port admits nothing`,
		`NetworkPolicy default/a: spec.ingress[1].ports[5].endPort: there is no port with a number to start from; ` +
			`the port admits nothing`,
	},
}, {
	name: "a selector that cannot be read isolates, and its rules admit nothing",
	policies: `
podSelector: {matchExpressions: [{key: app, operator: Near}]}
ingress: [{}]`,
	ingress: []flow{{"tcp/22 192.0.2.1", false}},
	problems: []string{`NetworkPolicy default/a: spec.podSelector: "Near" is not a valid label selector operator; ` +
		`the policy isolates every pod and admits nothing`},
}, {
	name: "networks in the forms that old API servers accepted",
	policies: `
podSelector: {}
ingress:
- from:
  - ipBlock: {cidr: 192.0.2.77/24}
  - ipBlock: {cidr: 010.001.0.0/16}
  - ipBlock: {cidr: "::ffff:198.51.100.0/120"}`,
	ingress: []flow{{"tcp/22 192.0.2.1", true}, {"tcp/22 10.1.2.3", true}, {"tcp/22 8.1.2.3", false},
		{"tcp/22 198.51.100.1", true}, {"tcp/22 198.51.101.1", false}},
}}

func TestPolicies(t *testing.T) {
	for _, test := range policyCases {
		t.Run(test.name, func(t *testing.T) {
			in := Input{Labels: webLabels, NamedPorts: webPorts, Policies: parsePolicies(t, test.policies)}
			have, problems := Translate(in)
			if err := have.Validate(); err != nil {
				t.Error(err)
			}
			check(t, "ingress", have.Ingress, test.ingress)
			check(t, "egress", have.Egress, test.egress)
			var texts []string
			for _, p := range problems {
				texts = append(texts, p.Error())
			}
			if diff := cmp.Diff(test.problems, texts); diff != "" {
				t.Errorf("problems (-want +got)\n%s", diff)
			}
			slices.Reverse(in.Policies)
			again, _ := Translate(in)
			if diff := cmp.Diff(textsOf(have), textsOf(again)); diff != "" {
				t.Errorf("the order of the policies counts (-first +second)\n%s", diff)
			}
		})
	}
}

func textsOf(f floatip.Firewall) (list []string) {
	for _, a := range []floatip.Admitted{f.Ingress, f.Egress} {
		if a.Everything {
			list = append(list, "everything")
		}
		for _, e := range a.Entries {
			list = append(list, e.String())
		}
		list = append(list, "")
	}
	return list
}

// Problems neither repeat themselves nor change places with the policies, so that a condition made of them is stable.
func TestProblemsAreStable(t *testing.T) {
	policies := parsePolicies(t, `
podSelector: {matchExpressions: [{key: app, operator: Near}]}
policyTypes: [Ingress, Egress]
---
podSelector: {}
ingress: [{ports: [{port: nosuch}]}]`)
	var first []Problem
	for range 2 {
		_, problems := Translate(Input{Policies: policies})
		if len(problems) != 2 || problems[0].Reason != Malformed || problems[1].Reason != UnknownPort {
			t.Errorf("problems: %v", problems)
		}
		if first == nil {
			first = problems
		}
		if diff := cmp.Diff(first, problems); diff != "" {
			t.Errorf("(-first +reversed)\n%s", diff)
		}
		slices.Reverse(policies)
	}
}
