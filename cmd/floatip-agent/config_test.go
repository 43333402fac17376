package main

import (
	"flag"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestConfig(t *testing.T) {
	t.Setenv("NODE_NAME", "node-1")
	t.Setenv("FLOATIP_CLUSTER_NETWORKS", "100.0.0.0/16,10.96.0.0/12")
	both := []netip.Prefix{netip.MustParsePrefix("100.0.0.0/16"), netip.MustParsePrefix("10.96.0.0/12")}
	for _, tc := range []struct {
		args     string
		networks []netip.Prefix
		wrong    []string
	}{
		{"", both, nil},
		{"--cluster-networks=", nil, nil},
		{"--node-name=", both, []string{"--node-name is empty"}},
		{"--node-address=here --peer-port=0", both, []string{"--node-address", "--peer-port 0"}},
		{"--kubelet-dir=kubelet --sysctl-dir=net", both, []string{"--kubelet-dir", "--sysctl-dir"}},
		{"--cluster-networks=100.0.0.1/16", nil, []string{"--cluster-networks: 100.0.0.1/16 has bits of a host"}},
	} {
		c := defaults()
		flags := flag.NewFlagSet("", flag.ContinueOnError)
		flags.SetOutput(io.Discard)
		c.register(flags)
		if err := flags.Parse(strings.Fields(tc.args)); err != nil {
			t.Fatal(err)
		}
		networks, err := c.validate()
		if !slices.Equal(networks, tc.networks) || (err == nil) != (tc.wrong == nil) {
			t.Errorf("%q: %v, %v; want %v, errors %v", tc.args, networks, err, tc.networks, tc.wrong)
		}
		for _, wrong := range tc.wrong {
			if err != nil && !strings.Contains(err.Error(), wrong) {
				t.Errorf("%q: %v, want it to name %s", tc.args, err, wrong)
			}
		}
	}
}
