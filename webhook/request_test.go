package webhook

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"floatip.io/floatip"
)

func TestParseRequest(t *testing.T) {
	for _, tc := range []struct {
		name        string
		annotations map[string]string
		want        Request
	}{
		{"nothing", nil, Request{}},
		{"others only", map[string]string{"a": "b"}, Request{}},
		{"opted in explicitly", map[string]string{floatip.LabelEnabled: "true"}, Request{}},
		{"opted out", map[string]string{floatip.LabelEnabled: "false"}, Request{OptOut: true}},
		{"required", map[string]string{floatip.AnnotationRequire: "true"}, Request{Require: true}},
		{"own user data", map[string]string{floatip.AnnotationUserData: "false"}, Request{KeepUserData: true}},
		{"pool", map[string]string{floatip.AnnotationPool: "red"}, Request{Pools: []string{"red"}}},
		{"two pools", map[string]string{floatip.AnnotationPool: "red,red6"}, Request{Pools: []string{"red", "red6"}}},
		{"IPv4", map[string]string{floatip.AnnotationRequest: "192.0.2.1"}, Request{Addresses: []netip.Addr{mustAddr("192.0.2.1")}}},
		{"both families, IPv6 first and long", map[string]string{floatip.AnnotationRequest: "2001:0DB8:0::0001,192.0.2.1"},
			Request{Addresses: []netip.Addr{mustAddr("192.0.2.1"), mustAddr("2001:db8::1")}}},
		{"IPv4-mapped", map[string]string{floatip.AnnotationRequest: "::ffff:192.0.2.1"}, Request{Addresses: []netip.Addr{mustAddr("192.0.2.1")}}},
		{"an allow list is no wish for an address", map[string]string{floatip.AnnotationAllow: "tcp/22"}, Request{}},
		{"floatip's own keys are no wish", map[string]string{floatip.AnnotationAddress: "192.0.2.9", floatip.AnnotationClaim: "x"}, Request{}},
		{"misspelt", map[string]string{"floatip.io/requests": "x", "floatip.io/nat": "y"},
			Request{Unknown: []string{"floatip.io/nat", "floatip.io/requests"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, errs := ParseRequest(tc.annotations)
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseRequestErrors(t *testing.T) {
	for _, tc := range []struct{ key, value, want string }{
		{floatip.AnnotationRequest, "", `metadata.annotations[floatip.io/request]: Invalid value: "": "" is not an IP address, write "192.0.2.1" or "2001:db8::1"`},
		{floatip.AnnotationRequest, " 192.0.2.1", `metadata.annotations[floatip.io/request]: Invalid value: " 192.0.2.1": " 192.0.2.1" is not an IP address, write "192.0.2.1"`},
		{floatip.AnnotationRequest, "192.0.2.1,192.0.2.2", `metadata.annotations[floatip.io/request]: Invalid value: "192.0.2.1,192.0.2.2": "192.0.2.1,192.0.2.2": ask for one address, or for one IPv4 and one IPv6 address`},
		{floatip.AnnotationRequest, "127.0.0.1", `metadata.annotations[floatip.io/request]: Invalid value: "127.0.0.1": "127.0.0.1" is a loopback address, a VM cannot hold it`},
		{floatip.AnnotationPool, "red,red", `metadata.annotations[floatip.io/pool]: Invalid value: "red,red": name one pool, or one IPv4 and one IPv6 pool: "a,b"`},
		{floatip.AnnotationAllow, "", `metadata.annotations[floatip.io/allow]: Invalid value: "": floatip.io/allow is empty: write none to admit nobody, any to admit everybody, or leave the annotation out for the default of the pool`},
		{floatip.LabelEnabled, "False", `metadata.annotations[floatip.io/enabled]: Unsupported value: "False": supported values: "true", "false"`},
	} {
		_, errs := ParseRequest(map[string]string{tc.key: tc.value})
		if len(errs) != 1 || errs[0].Error() != tc.want {
			t.Errorf("%s=%q:\n got %v\nwant %s", tc.key, tc.value, errs, tc.want)
		}
	}
}

func TestPointer(t *testing.T) {
	if got := pointer("metadata", "annotations", "a/b~c"); got != "/metadata/annotations/a~1b~0c" {
		t.Error(got)
	}
}

// A warning about a misspelt key names every key that there is.
func TestMisspelt(t *testing.T) {
	warnings := Request.warnings(Request{Unknown: []string{"floatip.io/adress"}})
	if len(warnings) != 1 || !strings.Contains(warnings[0], "floatip.io/adress is unknown") {
		t.Fatalf("warnings: %q", warnings)
	}
	for _, key := range userAnnotations {
		if !strings.Contains(warnings[0], key) {
			t.Errorf("%q does not name %s", warnings[0], key)
		}
	}
}
