package nat

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
	"floatip.io/floatip/test/lab"
)

func TestApplyReadsBackEqual(t *testing.T) {
	t.Parallel()
	for name, p := range examples() {
		t.Run(name, func(t *testing.T) {
			ns := lab.New(t, "pod")
			kernel := openKernel(t, ns)
			want := Desired(p)
			if err := kernel.Apply(want); err != nil {
				t.Fatal(err)
			}
			have, err := kernel.Read()
			if err != nil {
				t.Fatal(err)
			}
			if d := want.Diff(have); d != "" {
				t.Errorf("after Apply: %s", d)
			}
			// The text of the plan means the same to nft as the rules do to the kernel.
			byText := lab.New(t, "text")
			byText.NFT(t, Text(p))
			if diff := cmp.Diff(plainCT.Replace(byText.Ruleset(t)), plainCT.Replace(ns.Ruleset(t))); diff != "" {
				t.Errorf("nft -f of Text against Apply (-text +apply):\n%s", diff)
			}
		})
	}
}

func admitted(entries ...string) (a floatip.Admitted) {
	for _, text := range entries {
		e, err := floatip.ParseEntry(text)
		if err != nil {
			panic(err)
		}
		a.Entries = append(a.Entries, e)
	}
	slices.SortFunc(a.Entries, floatip.CompareEntries)
	return a
}

func openKernel(t testing.TB, ns *lab.Namespace) *Kernel {
	t.Helper()
	k, err := Open(Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

func examples() map[string]floatip.PodNAT {
	v4 := floatip.Binding{
		Floating: netip.MustParseAddr("192.168.100.50"), Fixed: netip.MustParseAddr("10.0.2.2"),
		Gateway: netip.MustParseAddr("10.0.2.1"), GuestNetwork: netip.MustParsePrefix("10.0.2.0/24"),
	}
	v6 := floatip.Binding{
		Floating: netip.MustParseAddr("2001:db8:100::50"), Fixed: netip.MustParseAddr("fd10:0:2::2"),
		Gateway: netip.MustParseAddr("fd10:0:2::1"), GuestNetwork: netip.MustParsePrefix("fd10:0:2::/120"),
	}
	p := floatip.PodNAT{
		Version: floatip.PodNATVersion, Owner: floatip.Owner{Namespace: "shop", Name: "web", UID: "4711"},
		Interface: floatip.DefaultGuestInterface,
		ClusterNetworks: []netip.Prefix{
			netip.MustParsePrefix("100.0.0.0/16"), netip.MustParsePrefix("10.96.0.0/12"),
			netip.MustParsePrefix("201.0.0.0/24"), netip.MustParsePrefix("fd00:100::/56"),
		},
	}
	with := func(bindings ...floatip.Binding) floatip.PodNAT { p := p; p.Bindings = bindings; return p }
	ports := []floatip.Port{{Protocol: "TCP", Number: 22}, {Protocol: "TCP", Number: 443}, {Protocol: "UDP", Number: 53}}
	v4ports, v6ports := v4, v6
	v4ports.Ports, v6ports.Ports = ports, ports
	v4ranges, v6ranges := v4, v6
	v4ranges.Ports = append([]floatip.Port{
		{Protocol: "TCP", Number: 8000, Last: 8999}, {Protocol: "TCP", Number: 8500, Last: 9500},
		{Protocol: "UDP", Number: 1, Last: 65535}, {Protocol: "TCP", Number: 9501, Last: 9501},
	}, ports...)
	v6ranges.Ports = []floatip.Port{{Protocol: "TCP", Number: 1, Last: 65535}}
	closed := with(v4, v6)
	closed.Firewall = &floatip.Firewall{}
	walled := with(v4ports, v6)
	walled.Firewall = &floatip.Firewall{
		Ingress: admitted("192.168.100.0/24 tcp/22", "192.168.100.1-192.168.100.9 icmp", "2001:db8:100::/64 udp/5000-6000"),
		Egress:  admitted("203.0.113.0/24 any", "2001:db8::/32 icmp"),
	}
	custom := with(floatip.Binding{
		Floating: netip.MustParseAddr("198.51.100.7"), Fixed: netip.MustParseAddr("172.20.5.2"),
		Gateway: netip.MustParseAddr("172.20.5.1"), GuestNetwork: netip.MustParsePrefix("172.20.5.0/28"),
	})
	custom.Interface, custom.ClusterNetworks = "k6t-ovn-udn1", nil
	routed := with(v4ports, v6)
	routed.Delivery, routed.Firewall = floatip.DeliveryRouted, walled.Firewall
	onNode := with(v4, v6)
	onNode.Delivery = floatip.DeliveryNodeNAT
	return map[string]floatip.PodNAT{
		"custom": custom, "routed": routed, "onnode": onNode,
		"closed": closed, "walled": walled,
		"none": with(), "ipv4": with(v4), "ipv6": with(v6), "dual": with(v4, v6), "ports": with(v4ports, v6ports),
		"ranges": with(v4ranges, v6ranges),
	}
}

// plainCT makes nft's two names for one thing equal: it reads "ct original ip saddr" and has a key of its own for that
// (NFT_CT_SRC_IP); the library knows only the older NFT_CT_SRC, which nft prints without the family.
var plainCT = strings.NewReplacer("ct original ip ", "ct original ", "ct original ip6 ", "ct original ",
	"ct reply ip ", "ct reply ", "ct reply ip6 ", "ct reply ")
