package fastpath

import (
	"errors"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/nat/node/nodetest"
)

var (
	fifty  = netip.MustParseAddr("192.168.100.50")
	fifty6 = netip.MustParseAddr("2001:db8:100::50")
)

// config is two pods with an address of each family on one NIC.
func config() leg.Config {
	lan := func(prefix, gateway string) leg.Network {
		return leg.Network{
			Prefix: netip.MustParsePrefix(prefix), Gateway: netip.MustParseAddr(gateway), Interface: "red0", MTU: 1500,
		}
	}
	return leg.Config{
		Networks:        []leg.Network{lan("192.168.100.0/24", "192.168.100.1"), lan("2001:db8:100::/64", "2001:db8:100::1")},
		ClusterNetworks: []netip.Prefix{netip.MustParsePrefix("100.0.0.0/16"), netip.MustParsePrefix("fd30::/64")},
		Legs: []leg.Leg{
			{Pod: "one", Addresses: []netip.Addr{fifty, fifty6}},
			{Pod: "two", Addresses: []netip.Addr{fifty.Next(), fifty6.Next()}},
		},
	}
}

// TestDesired: only addresses that are in use on this node are on the fast path, and only where a leg takes whatever the NIC
// does.
func TestDesired(t *testing.T) {
	links := surroundings{"red0": 2, leg.PortName("one"): 7, leg.PortName("two"): 8}
	all := map[netip.Addr]int{fifty: 7, fifty6: 7, fifty.Next(): 8, fifty6.Next(): 8}
	second := map[netip.Addr]int{fifty.Next(): 8, fifty6.Next(): 8}
	for name, tc := range map[string]struct {
		change func(*leg.Config, surroundings)
		want   map[netip.Addr]int
	}{
		"in use":  {func(*leg.Config, surroundings) {}, all},
		"staged":  {func(c *leg.Config, _ surroundings) { c.Legs[0].Staged = true }, second},
		"left":    {func(c *leg.Config, _ surroundings) { c.Legs[0].Left = true }, second},
		"silent":  {func(c *leg.Config, _ surroundings) { c.Legs[0].Silent = c.Legs[0].Addresses }, all},
		"no leg":  {func(_ *leg.Config, l surroundings) { delete(l, leg.PortName("one")) }, second},
		"no NIC":  {func(_ *leg.Config, l surroundings) { delete(l, "red0") }, map[netip.Addr]int{}},
		"idle":    {func(c *leg.Config, _ surroundings) { c.Legs[0].Idle = []netip.Addr{fifty, fifty6} }, second},
		"one MTU": {func(c *leg.Config, _ surroundings) { c.Networks[1].MTU = 9000 }, map[netip.Addr]int{}},
		"no MTU":  {func(c *leg.Config, _ surroundings) { c.Networks[0].MTU = 0 }, map[netip.Addr]int{}},
	} {
		c, l := config(), maps.Clone(links)
		tc.change(&c, l)
		p := new(blueprint).desired(c, l)
		if diff := cmp.Diff(tc.want, p.legs, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		for chain, at := range p.at {
			if !strings.HasPrefix(chain, at+"_") || len(p.legs) == 0 {
				t.Errorf("%s: chain %s at %s", name, chain, at)
			}
		}
	}
}

// TestClusterNetworks: before anything becomes a flow, answers to the cluster are sent the node's ordinary way.
func TestClusterNetworks(t *testing.T) {
	p := new(blueprint).desired(config(), surroundings{"red0": 2, leg.PortName("one"): 7})
	for chain, network := range map[string]string{
		"admit_tcp_192_168_100_0_24": "ip daddr 100.0.0.0/16 accept", "admit_udp_2001_db8_100___64": "ip6 daddr fd30::/64 accept",
	} {
		if rules := p.rules[chain]; len(rules) != 2 || rules[0].Text != network {
			t.Errorf("chain %s: %v, want %s first", chain, rules, network)
		}
	}
}

// TestExtends: who adds addresses has time, and whoever takes one away or leads it elsewhere has none.
func TestExtends(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*leg.Config)
		want   bool
	}{
		"the same": {func(*leg.Config) {}, true},
		"silent":   {func(c *leg.Config) { c.Legs[0].Silent = c.Legs[0].Addresses }, true},
		"another pod": {func(c *leg.Config) {
			c.Legs = append(c.Legs, leg.Leg{Pod: "three", Addresses: []netip.Addr{fifty.Prev()}})
		}, true},
		"another order":   {func(c *leg.Config) { slices.Reverse(c.Legs) }, true},
		"a pod less":      {func(c *leg.Config) { c.Legs = c.Legs[1:] }, false},
		"an address less": {func(c *leg.Config) { c.Legs[0].Addresses = c.Legs[0].Addresses[:1] }, false},
		"taken":           {func(c *leg.Config) { c.Legs[0].Idle = []netip.Addr{fifty} }, false},
		"left":            {func(c *leg.Config) { c.Legs[1].Left = true }, false},
		"staged":          {func(c *leg.Config) { c.Legs[1].Staged = true }, false},
		"a new pod":       {func(c *leg.Config) { c.Legs[1].Pod = "three" }, false},
		"another NIC":     {func(c *leg.Config) { c.Networks[0].Interface = "red1" }, false},
		"another router":  {func(c *leg.Config) { c.Networks[1].Gateway = fifty6 }, false},
		"no MTU":          {func(c *leg.Config) { c.Networks[0].MTU = 0 }, false},
		"cluster":         {func(c *leg.Config) { c.ClusterNetworks = c.ClusterNetworks[1:] }, false},
		"nothing":         {func(c *leg.Config) { *c = leg.Config{} }, false},
	} {
		c := config()
		tc.change(&c)
		if got := Extends(c, config()); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
	staged := config()
	for i := range staged.Legs {
		staged.Legs[i].Staged = true
	}
	for name, old := range map[string]leg.Config{"nothing": {}, "no guest": staged} {
		old.ClusterNetworks = nil
		if !Extends(config(), old) {
			t.Errorf("after %s: want that it can wait", name)
		}
	}
}

// links are the numbers of the links in the namespace of n.
func links(t *testing.T, n *Node) map[string]int {
	t.Helper()
	k, err := leg.Open(n.ns, n.sysctls)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	h, err := k.Holding()
	if err != nil {
		t.Fatal(err)
	}
	return h.Links
}

func plug(t *testing.T, ns *nodetest.Namespace, name string) {
	t.Helper()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}, PeerName: "x" + name[:4] + name[len(name)-2:]}
	if err := ns.Link.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
}

func apply(t *testing.T, n *Node, c leg.Config) []string {
	t.Helper()
	r, err := n.Apply(c, links(t, n))
	if err != nil {
		t.Fatal(err)
	}
	return r.Changes
}

// What is applied is read back as the same, can be listed by nft and read by it again, changes by what differs, and goes.
func TestApply(t *testing.T) {
	ns := nodetest.NewNamespace(t)
	for _, name := range []string{"red0", leg.PortName("one"), leg.PortName("two")} {
		plug(t, ns, name)
	}
	empty := ns.Inventory()
	n, c := Open(ns.File, leg.DefaultSysctls), config()
	if len(apply(t, n, c)) == 0 {
		t.Error("nothing was changed")
	}
	if changes := apply(t, n, c); len(changes) != 0 {
		t.Errorf("applied again: %v", changes)
	}
	ns.Do(func() error { // nft has no words for the header that an ICMP error quotes
		out, err := exec.Command("sh", "-c", "(echo flush ruleset; nft list ruleset | grep -v @th,) | nft --check --file -").CombinedOutput()
		if err != nil {
			t.Errorf("nft cannot read what nft lists: %v: %s", err, out)
		}
		list, err := exec.Command("nft", "list", "chain", "netdev", Table, "in4").Output()
		if words := "ip saddr . ip daddr . tcp sport . tcp dport @tcp_flows4 fwd ip to ip daddr device"; !strings.Contains(string(list), words) {
			t.Errorf("nft lists %s, want %s in it", list, words)
		}
		return err
	})
	full := ns.Inventory()

	fewer := c
	fewer.Legs = c.Legs[1:]
	report, err := n.Withdraw(fewer, links(t, n))
	if err != nil || len(report.Changes) != 2 {
		t.Errorf("withdrawn: %v, %v; want the two addresses of a pod", report.Changes, err)
	}
	if again, err := n.Withdraw(fewer, links(t, n)); err != nil || len(again.Changes) != 0 {
		t.Errorf("withdrawn again: %v, %v", again.Changes, err)
	}
	changes := strings.Join(apply(t, n, fewer), "\n")
	if !strings.Contains(changes, leg.PortName("one")) || strings.Contains(changes, leg.PortName("two")) {
		t.Errorf("a pod less: %s; want its chain to go and nothing else", changes)
	}
	apply(t, n, c)
	if diff := cmp.Diff(full, ns.Inventory()); diff != "" {
		t.Errorf("with the pod again (-before +after):\n%s", diff)
	}

	// Whatever somebody does to the table is made good.
	ns.Run("nft flush chain netdev "+Table+" in4", "nft add rule netdev "+Table+" in_udp6 drop",
		"nft delete element netdev "+Table+" legs6 { "+fifty6.String()+" }")
	apply(t, n, c)
	if diff := cmp.Diff(full, ns.Inventory()); diff != "" {
		t.Errorf("repaired (-before +after):\n%s", diff)
	}
	ns.Run("nft delete element netdev " + Table + " here4 { " + fifty.String() + " }")
	if _, err := n.Withdraw(c, links(t, n)); err != nil {
		t.Error(err)
	}
	apply(t, n, c)
	if diff := cmp.Diff(full, ns.Inventory()); diff != "" {
		t.Errorf("damaged addresses (-before +after):\n%s", diff)
	}
	ns.Run("nft delete table netdev " + Table)
	apply(t, n, c)
	if diff := cmp.Diff(full, ns.Inventory()); diff != "" {
		t.Errorf("made anew (-before +after):\n%s", diff)
	}

	apply(t, n, leg.Config{})
	if left := ns.Inventory(); !slices.Equal(left, empty) {
		t.Errorf("left behind: %s", cmp.Diff(empty, left))
	}
	if changes := apply(t, n, leg.Config{}); len(changes) != 0 {
		t.Errorf("nothing, applied again: %v", changes)
	}
}

// TestLegMadeAnew: a leg that was made anew has another number. Nobody is sent to the one before, whatever the agent remembers.
func TestLegMadeAnew(t *testing.T) {
	ns := nodetest.NewNamespace(t)
	for _, name := range []string{"red0", leg.PortName("one"), leg.PortName("two")} {
		plug(t, ns, name)
	}
	n, c := Open(ns.File, leg.DefaultSysctls), config()
	apply(t, n, c)
	if report, err := n.Withdraw(c, links(t, n)); err != nil || len(report.Changes) != 0 {
		t.Errorf("nothing has changed: withdrawn %v, %v", report.Changes, err)
	}
	if err := ns.Link.LinkDel(ns.Get(leg.PortName("two"))); err != nil {
		t.Fatal(err)
	}
	plug(t, ns, leg.PortName("two"))
	if report, err := n.Withdraw(c, links(t, n)); err != nil || len(report.Changes) != 2 {
		t.Errorf("a leg was made anew: withdrawn %v, %v; want its two addresses", report.Changes, err)
	}
}

// TestAllowed: without connection tracking in the middle of a connection there is no fast path.
func TestAllowed(t *testing.T) {
	ns := nodetest.NewNamespace(t)
	n := Open(ns.File, leg.DefaultSysctls)
	if err := n.Allowed(); err != nil {
		t.Errorf("by default: %v", err)
	}
	ns.Sysctl("netfilter/nf_conntrack_tcp_loose=0")
	if err := n.Allowed(); !errors.Is(err, ErrStrict) {
		t.Errorf("tcp_loose=0: %v, want %v", err, ErrStrict)
	}
	if err := Open(ns.File, t.TempDir()).Allowed(); err != nil {
		t.Errorf("without connection tracking: %v", err)
	}
}

// TestBlueprint: a plan is used again for as long as nothing that it was made from is another.
func TestBlueprint(t *testing.T) {
	links := surroundings{"red0": 2, "red1": 3, leg.PortName("one"): 7, leg.PortName("two"): 8}
	kept := new(blueprint)
	for _, change := range []struct {
		what   string
		change func(*leg.Config, surroundings)
	}{
		{"nothing", func(*leg.Config, surroundings) {}},
		{"the number of the NIC", func(_ *leg.Config, l surroundings) { l["red0"] = 12 }},
		{"the number of a leg", func(_ *leg.Config, l surroundings) { l[leg.PortName("two")] = 18 }},
		{"the NIC", func(c *leg.Config, _ surroundings) { c.Networks[0].Interface = "red1" }},
		{"the gateway", func(c *leg.Config, _ surroundings) { c.Networks[1].Gateway = fifty6 }},
		{"no gateway", func(c *leg.Config, _ surroundings) { c.Networks[0].Gateway = netip.Addr{} }},
		{"the cluster", func(c *leg.Config, _ surroundings) { c.ClusterNetworks[0] = netip.MustParsePrefix("100.1.0.0/16") }},
		{"a cluster of one family", func(c *leg.Config, _ surroundings) { c.ClusterNetworks = c.ClusterNetworks[:1] }},
		{"a hop", func(c *leg.Config, l surroundings) {
			c.Hops, l["cali1"] = []leg.Hop{{Address: fifty.Prev(), Link: "cali1"}}, 9
		}},
		{"a pod less", func(c *leg.Config, _ surroundings) { c.Legs = c.Legs[1:] }},
		{"no pod", func(c *leg.Config, _ surroundings) { c.Legs = nil }},
		{"all as in the beginning", func(*leg.Config, surroundings) {}},
	} {
		for range 2 {
			c, l := config(), maps.Clone(links)
			change.change(&c, l)
			want, got := new(blueprint).desired(c, l), kept.desired(c, l)
			if !maps.Equal(want.chains, got.chains) || !maps.Equal(want.legs, got.legs) || !maps.Equal(want.at, got.at) {
				t.Errorf("%s: have %v, want %v", change.what, got.state, want.state)
			}
		}
	}
}
