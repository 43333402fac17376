package floatip

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParseClaim(t *testing.T) {
	claim := NewClaim()
	if parsed, err := ParseClaim(claim.String()); err != nil || parsed != claim {
		t.Errorf("ParseClaim(%q) = %v, %v", claim, parsed, err)
	}
	if claim == NewClaim() {
		t.Error("two claims are equal")
	}
	for _, text := range []string{"", "00", strings.Repeat("g", 32), claim.String() + "0", " " + claim.String()[1:]} {
		if _, err := ParseClaim(text); err == nil {
			t.Errorf("ParseClaim(%q) succeeded", text)
		}
	}
}

// testvm is the NAT description of the mission's vm.yaml.
func testvm() PodNAT {
	return PodNAT{
		Version:   PodNATVersion,
		Owner:     Owner{Namespace: "default", Name: "testvm", UID: "5e9f"},
		Interface: DefaultGuestInterface,
		Bindings: []Binding{{
			Floating:     netip.MustParseAddr("192.168.100.50"),
			Fixed:        netip.MustParseAddr("10.0.2.2"),
			Gateway:      netip.MustParseAddr("10.0.2.1"),
			GuestNetwork: netip.MustParsePrefix("10.0.2.0/24"),
		}},
		ClusterNetworks: []netip.Prefix{netip.MustParsePrefix("100.0.0.0/16"), netip.MustParsePrefix("201.0.0.0/24")},
	}
}

var byValue = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func TestPodNATRoundTrip(t *testing.T) {
	want := testvm()
	want.Bindings[0].Ports = []Port{{Protocol: "TCP", Number: 22}, {Protocol: "UDP", Number: 53}, {"TCP", 8000, 8999}}
	text, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParsePodNAT([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, byValue); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// Whatever the data path cannot work with is refused, and the text names the field.
func TestPodNATValidate(t *testing.T) {
	address := netip.MustParseAddr
	for name, test := range map[string]struct {
		spoil func(*PodNAT)
		want  string
	}{
		"as it is":               {func(*PodNAT) {}, ""},
		"no binding":             {func(p *PodNAT) { p.Bindings = nil }, ""},
		"other version":          {func(p *PodNAT) { p.Version = 2 }, "version: want 1, have 2"},
		"no interface":           {func(p *PodNAT) { p.Interface = "" }, `interface: ""`},
		"long interface":         {func(p *PodNAT) { p.Interface = "k6t-0123456789ab" }, "is not a name of a network interface"},
		"interface with a slash": {func(p *PodNAT) { p.Interface = "a/b" }, "is not a name of a network interface"},
		"two of one family":      {func(p *PodNAT) { p.Bindings = append(p.Bindings, p.Bindings[0]) }, "bindings[1]: a second binding"},
		"no floating address":    {func(p *PodNAT) { p.Bindings[0].Floating = netip.Addr{} }, "bindings[0]: invalid IP is not an address of a host"},
		"loopback":               {func(p *PodNAT) { p.Bindings[0].Floating = address("127.0.0.1") }, "127.0.0.1 is not an address of a host"},
		"mapped address":         {func(p *PodNAT) { p.Bindings[0].Floating = address("::ffff:192.0.2.1") }, "is not an address of a host"},
		"mixed families":         {func(p *PodNAT) { p.Bindings[0].Floating = address("2001:db8::1") }, "are of two families"},
		"fixed address outside":  {func(p *PodNAT) { p.Bindings[0].Fixed = address("10.0.3.2") }, "lies outside guestNetwork"},
		"fixed is gateway":       {func(p *PodNAT) { p.Bindings[0].Fixed = p.Bindings[0].Gateway }, "must be three hosts"},
		"floating in the guest's network": {
			func(p *PodNAT) { p.Bindings[0].Floating = address("10.0.2.77") }, "must be three hosts"},
		"port zero":        {func(p *PodNAT) { p.Bindings[0].Ports = []Port{{"TCP", 0, 0}} }, "ports[0]: TCP/0 is not"},
		"unknown protocol": {func(p *PodNAT) { p.Bindings[0].Ports = []Port{{"SCTP", 5, 0}} }, "ports[0]: SCTP/5 is not"},
		"range from zero":  {func(p *PodNAT) { p.Bindings[0].Ports = []Port{{"TCP", 0, 9}} }, "ports[0]: TCP/0-9 is not"},
		"range backwards": {
			func(p *PodNAT) { p.Bindings[0].Ports = []Port{{"UDP", 1, 2}, {"UDP", 90, 80}} }, "ports[1]: UDP/90-80: the first port is greater"},
		"range of SCTP":     {func(p *PodNAT) { p.Bindings[0].Ports = []Port{{"SCTP", 5, 9}} }, "ports[0]: SCTP/5-9 is not"},
		"range of one port": {func(p *PodNAT) { p.Bindings[0].Ports = []Port{{"TCP", 5, 5}} }, ""},
		"every port":        {func(p *PodNAT) { p.Bindings[0].Ports = []Port{{"TCP", 1, 65535}} }, ""},
		"ranges overlap":    {func(p *PodNAT) { p.Bindings[0].Ports = []Port{{"TCP", 1, 9}, {"TCP", 5, 20}, {"TCP", 7, 0}} }, ""},
		"host bits": {
			func(p *PodNAT) { p.ClusterNetworks[0] = netip.MustParsePrefix("100.0.0.1/16") }, "clusterNetworks[0]: 100.0.0.1/16"},
	} {
		t.Run(name, func(t *testing.T) {
			p := testvm()
			test.spoil(&p)
			err := p.Validate()
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("Validate() = %v, want an error with %q", err, test.want)
			}
		})
	}
}

func TestParsePodNATRefuses(t *testing.T) {
	text, err := testvm().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string]string{
		"nothing":        "",
		"no object":      "[]",
		"unknown field":  strings.Replace(text, `"version"`, `"surprise":1,"version"`, 1),
		"data behind it": text + "{}",
		"cut in half":    text[:len(text)/2],
	} {
		if _, err := ParsePodNAT([]byte(raw)); err == nil {
			t.Errorf("%s: ParsePodNAT(%q) succeeded", name, raw)
		}
	}
}

// Whatever ParsePodNAT accepts can be written and read again without a change.
func FuzzParsePodNAT(f *testing.F) {
	text, err := testvm().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(text))
	f.Add([]byte(strings.Replace(text, `"guestNetwork"`, `"ports":[{"protocol":"UDP","port":1,"last":9}],"guestNetwork"`, 1)))
	f.Add([]byte(`{"version":1,"bindings":[{"floating":"2001:db8::50"}]}`))
	f.Add([]byte(strings.Replace(text, `"version"`, `"firewall":{"egress":{"entries":["::/0 tcp/22"]}},"version"`, 1)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		parsed, err := ParsePodNAT(raw)
		if err != nil {
			return
		}
		text, err := parsed.Encode()
		if err != nil {
			t.Fatalf("accepted, but cannot be written: %v", err)
		}
		again, err := ParsePodNAT([]byte(text))
		if err != nil {
			t.Fatalf("accepted, but not what was written of it: %v", err)
		}
		if diff := cmp.Diff(parsed, again, byValue, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("(-first +second)\n%s", diff)
		}
	})
}

// Whatever ParseClaim accepts is written in one way.
func FuzzParseClaim(f *testing.F) {
	for _, text := range []string{"", NewClaim().String(), strings.Repeat("A", 32), strings.Repeat("é", 16)} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		claim, err := ParseClaim(text)
		if err != nil {
			if !claim.IsZero() {
				t.Errorf("%q is refused and became %s", text, claim)
			}
			return
		}
		if again, err := ParseClaim(claim.String()); err != nil || again != claim || !strings.EqualFold(claim.String(), text) {
			t.Errorf("%q became %s and then %s, %v", text, claim, again, err)
		}
	})
}
