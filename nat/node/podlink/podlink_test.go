package podlink

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/nodetest"
)

// config has an open, a guarded and a routed address of each family, in three networks.
func config(t *testing.T) Config {
	t.Helper()
	entry := func(text string) (e floatip.Entry) {
		if err := e.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		return e
	}
	everybody := floatip.Admitted{Everything: true}
	some := floatip.Admitted{Entries: []floatip.Entry{entry("203.0.113.0/24 tcp/22"), entry("2001:db8:f::/64 udp/53-60")}}
	c := Config{
		Networks: []netip.Prefix{netip.MustParsePrefix("192.168.100.0/24"), netip.MustParsePrefix("2001:db8:100::/64")},
		ClusterNetworks: []netip.Prefix{
			netip.MustParsePrefix("100.0.0.0/16"), netip.MustParsePrefix("100.0.3.0/24"), netip.MustParsePrefix("fd30::/64"),
		},
		Exits: []string{"fip0123456789ab", "red0"},
	}
	for i, ingress := range []floatip.Admitted{everybody, some, {}} {
		for _, form := range [][2]string{{"192.168.100.5%d", "100.0.0.%d"}, {"2001:db8:100::5%d", "fd30::%d"}} {
			c.Addresses = append(c.Addresses, Address{
				Floating: netip.MustParseAddr(fmt.Sprintf(form[0], i+1)), Pod: netip.MustParseAddr(fmt.Sprintf(form[1], i+1)),
				Link: fmt.Sprintf("cali%d", i+1), Mark: uint32(i+1) << 12, Translate: i < 2, Ingress: ingress,
			})
		}
	}
	return c
}

func apply(t *testing.T, n *Node, c Config) []string {
	t.Helper()
	r, err := n.Apply(c)
	if err != nil {
		t.Fatal(err)
	}
	return r.Changes
}

// What is applied is read back as the same, can be listed by nft and read by it again, changes by elements, and goes.
func TestApply(t *testing.T) {
	ns := nodetest.NewNamespace(t)
	n, c := Open(ns.File), config(t)
	if changes := apply(t, n, c); len(changes) != 2 {
		t.Errorf("changes %v, want one table of each family", changes)
	}
	if changes := apply(t, n, c); len(changes) != 0 {
		t.Errorf("applied again: %v", changes)
	}
	ns.Do(func() error {
		out, err := exec.Command("sh", "-c", "(echo flush ruleset; nft list ruleset) | nft --check --file -").CombinedOutput()
		if err != nil {
			t.Errorf("nft cannot read what nft lists: %v: %s", err, out)
		}
		return nil
	})
	fewer := c
	fewer.Addresses = c.Addresses[2:]
	for _, change := range apply(t, n, fewer) {
		if !strings.Contains(change, "elements +0 -") || !strings.Contains(change, "rules written: false") {
			t.Errorf("an address less: %s, want elements to go and nothing else", change)
		}
	}
	if len(apply(t, n, Config{})) != 2 {
		t.Error("the tables stay without an address")
	}
	if left := ns.Inventory(); strings.Contains(strings.Join(left, "\n"), "floatip") {
		t.Errorf("left behind: %v", left)
	}
}

// Whatever somebody changes by hand is seen.
func TestDamageIsSeen(t *testing.T) {
	ns := nodetest.NewNamespace(t)
	n, c := Open(ns.File), config(t)
	apply(t, n, c)
	for _, damage := range []string{
		"nft flush chain ip floatip mark_in",
		"nft add rule ip floatip guard_in accept",
		"nft insert rule ip6 floatip to_pod drop",
		"nft add chain ip floatip extra",
		"nft delete element ip floatip open_to_all { 192.168.100.51 }",
		"nft add element ip floatip open_to_all { 192.168.100.52 }",
		"nft flush map ip6 floatip pod_of",
		"nft add element ip floatip admitted { 100.0.0.2 . 0.0.0.0-255.255.255.255 . 0-255 . 0-21 }",
		"nft delete table ip6 floatip",
	} {
		ns.Run(damage)
		if len(apply(t, n, c)) == 0 {
			t.Errorf("%s: not seen", damage)
		}
		if changes := apply(t, n, c); len(changes) != 0 {
			t.Errorf("%s: not repaired: %v", damage, changes)
		}
	}
}

// A description without a firewall admits what the VM's port list says.
func TestAdmitted(t *testing.T) {
	floating := netip.MustParseAddr("192.168.100.51")
	nat := nodetest.Describe(floatip.Owner{Namespace: "prod", Name: "a", UID: "u"}, floating)
	if !Admitted(nat, floating).Everything {
		t.Error("without ports and firewall something is refused")
	}
	nat.Bindings[0].Ports = []floatip.Port{{Protocol: "TCP", Number: 22}}
	a, host := Admitted(nat, floating), netip.MustParseAddr("203.0.113.9")
	for _, tt := range []struct {
		protocol floatip.Protocol
		port     uint16
		want     bool
	}{
		{floatip.ProtocolTCP, 22, true}, {floatip.ProtocolTCP, 23, false}, {floatip.ProtocolUDP, 22, false},
		{floatip.ProtocolICMP, 0, true},
	} {
		if got := a.Admits(host, tt.protocol, tt.port); got != tt.want {
			t.Errorf("protocol %d port %d: admitted %t, want %t", tt.protocol, tt.port, got, tt.want)
		}
	}
	nat.Bindings[0].Ports = []floatip.Port{{Protocol: "UDP", Number: 8500, Last: 9500}, {Protocol: "UDP", Number: 8000, Last: 8999},
		{Protocol: "UDP", Number: 8500}}
	a = Admitted(nat, floating)
	if err := (floatip.Firewall{Ingress: a}).Validate(); err != nil {
		t.Errorf("ranges that overlap: %v", err)
	}
	for port, want := range map[uint16]bool{7999: false, 8000: true, 8500: true, 9500: true, 9501: false} {
		if a.Admits(host, floatip.ProtocolUDP, port) != want || a.Admits(host, floatip.ProtocolTCP, port) {
			t.Errorf("port %d: want UDP admitted %t and TCP not, have %+v", port, want, a)
		}
	}
	nat.Firewall = &floatip.Firewall{}
	if a := Admitted(nat, floating); a.Everything || len(a.Entries) > 0 {
		t.Errorf("a closed firewall admits %+v", a)
	}
}
