package cluster

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node"
)

// TestOwnAddresses: an address is shown at once, and for a while after the node has lost it.
func TestOwnAddresses(t *testing.T) {
	nic, other := netip.MustParseAddr("192.168.100.11"), netip.MustParseAddr("10.0.0.11")
	shown := map[string]string{}
	lost := missing{}
	start := time.Unix(1000, 0)
	for _, step := range []struct {
		at   time.Duration
		has  []netip.Addr
		want string // written; "" where nothing changes
	}{
		{0, []netip.Addr{other, nic}, "10.0.0.11,192.168.100.11"},
		{time.Minute, []netip.Addr{other, nic}, ""},
		{2 * time.Minute, []netip.Addr{other}, ""},
		{keptOwn, []netip.Addr{other, nic}, ""}, // it is back
		{2 * keptOwn, []netip.Addr{other}, ""},
		{3*keptOwn - time.Second, nil, ""}, // the NICs could not be read
		{3 * keptOwn, []netip.Addr{other}, "10.0.0.11"},
		{4 * keptOwn, nil, ""},
		{6 * keptOwn, nil, ""}, // a node without any address has not been looked at
	} {
		r := node.Report{Own: lost.keep(ownOf(shown), step.has, start.Add(step.at))}
		got, _ := nodeChanges(shown, r)[floatip.AnnotationProviderAddresses].(string)
		if got != step.want {
			t.Errorf("after %s, with %v: wrote %q, want %q", step.at, step.has, got, step.want)
		}
		if got != "" {
			shown[floatip.AnnotationProviderAddresses] = got
		}
	}
	many := []netip.Addr{nic}
	for a := netip.MustParseAddr("10.9.0.1"); len(many) < floatip.MaxProviderAddresses; a = a.Next() {
		many = append(many, a)
	}
	if got := (missing{}).keep([]netip.Addr{other}, many, start); len(got) != floatip.MaxProviderAddresses || slices.Contains(got, other) {
		t.Errorf("without room for what is lost: %v", got)
	}
}
