package floatip

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseNetworks(t *testing.T) {
	pods, services := netip.MustParsePrefix("100.0.0.0/16"), netip.MustParsePrefix("fd00:10::/112")
	for _, tc := range []struct {
		text  string
		want  []netip.Prefix
		wrong string
	}{
		{"", nil, ""},
		{" \n", nil, ""},
		{"100.0.0.0/16", []netip.Prefix{pods}, ""},
		{" 100.0.0.0/16 , fd00:10::/112\n", []netip.Prefix{pods, services}, ""},
		{"100.0.0.0/16,", nil, `"" is not a network`},
		{"100.0.0.0", nil, `"100.0.0.0" is not a network`},
		{"100.0.0.1/16", nil, "100.0.0.1/16 has bits of a host, write 100.0.0.0/16"},
	} {
		have, err := ParseNetworks(tc.text)
		if !slices.Equal(have, tc.want) || (err == nil) != (tc.wrong == "") ||
			err != nil && !strings.Contains(err.Error(), tc.wrong) {
			t.Errorf("ParseNetworks(%q) = %v, %v; want %v, an error with %q", tc.text, have, err, tc.want, tc.wrong)
		}
	}
}
