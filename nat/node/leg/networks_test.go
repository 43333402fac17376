package leg

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip/nat"
	"floatip.io/floatip/nat/node/nodetest"
)

// TestTwoNetworks: a second NIC with a network and a router of its own. Each address leaves by its own.
func TestTwoNetworks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	other := nodetest.NewNamespace(t)
	r.node.Cable("blue0", other, "eth0")
	r.node.Address("blue0", "198.51.100.10/24")
	other.Address("eth0", "198.51.100.1/24")
	other.Address("lo", "203.0.113.77/32")
	other.Serve("other", "203.0.113.77:80")
	r.world.Host.Serve("beyond", nodetest.Beyond+":80")
	r.config.Networks = append(r.config.Networks, Network{
		Prefix: netip.MustParsePrefix("198.51.100.0/24"), Gateway: netip.MustParseAddr("198.51.100.1"), Interface: "blue0", MTU: 1500,
	})
	a := r.addPod("a", "100.0.0.5", floating)
	b := r.addPod("b", "100.0.0.6", netip.MustParseAddr("198.51.100.50"))
	r.apply()
	for _, flow := range []struct {
		from        *nodetest.Namespace
		to, answers string
	}{
		{a.Guest, nodetest.Beyond + ":80", "beyond sees 192.168.100.50"},
		{b.Guest, "203.0.113.77:80", "other sees 198.51.100.50"},
		{other, "198.51.100.50:80", "b sees 198.51.100.1"},
		{a.Guest, "198.51.100.50:80", "b sees 192.168.100.50"},
	} {
		if said, err := flow.from.Ask(flow.to, patience); err != nil || said != flow.answers {
			t.Errorf("ask %s: have %q, %v; want %q", flow.to, said, err, flow.answers)
		}
	}
	// The network that stays keeps its table when the other one goes: no packet may fall between two tables.
	r.config.Legs = r.config.Legs[1:]
	report, err := r.kernel.Apply(r.config)
	if err != nil || len(report.Withdrawn) != 1 {
		t.Fatalf("withdrawn %v, %v; want %s", report.Withdrawn, err, floating)
	}
	if said, err := b.Guest.Ask("203.0.113.77:80", patience); err != nil || said != "other sees 198.51.100.50" {
		t.Errorf("after the other network went: %q, %v", said, err)
	}
	if again := r.apply(); len(again) != 0 {
		t.Errorf("the network that stayed was changed: %q", again)
	}
}

// TestStaged: a leg that waits for a guest takes what the LAN sends to it, and nothing else; nobody is told of it.
func TestStaged(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.addPod("a", "100.0.0.5", floating)
	r.config.Legs[0].Staged = true
	r.apply()
	h, err := r.kernel.Holding()
	if err != nil || len(h.Answered) != 0 {
		t.Fatalf("the kernel answers for %v, %v; want nothing", h.Answered, err)
	}
	// A LAN host that knows better, as one that heard the announcement of the guest's arrival a moment too early.
	r.world.Host.Route("192.168.100.50/32", "192.168.100.10", "eth0")
	if said, err := r.world.Host.Ask("192.168.100.50:80", patience); err != nil || said != "a sees "+nodetest.Gateway {
		t.Errorf("from the LAN: have %q, %v; want an answer", said, err)
	}
	if said, err := r.node.Ask("192.168.100.50:80", 200*time.Millisecond); err == nil {
		t.Errorf("from the node: have %q, want silence: the guest is elsewhere", said)
	}
	r.config.Legs[0].Staged = false
	r.apply()
	if said, err := r.node.Ask("192.168.100.50:80", patience); err != nil || said != "a sees "+nodetest.NodeAddress {
		t.Errorf("from the node, after the guest came: have %q, %v", said, err)
	}
}

// TestAssignBack: networks keep their tables, new ones get the first that is free.
func TestAssignBack(t *testing.T) {
	network := func(p string) Network { return Network{Prefix: netip.MustParsePrefix(p)} }
	have := map[netip.Prefix]int{netip.MustParsePrefix("10.2.0.0/24"): tableBack, netip.MustParsePrefix("10.3.0.0/24"): tableMore}
	got, err := assignBack([]Network{network("10.1.0.0/24"), network("10.2.0.0/24"), network("2001:db8::/64")}, have)
	if err != nil {
		t.Fatal(err)
	}
	want := map[netip.Prefix]int{
		netip.MustParsePrefix("10.1.0.0/24"): tableMore, netip.MustParsePrefix("10.2.0.0/24"): tableBack,
		netip.MustParsePrefix("2001:db8::/64"): tableBack,
	}
	if diff := cmp.Diff(want, got, compareNet); diff != "" {
		t.Errorf("tables (-want +got):\n%s", diff)
	}
	var many []Network
	for i := range 91 {
		many = append(many, Network{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 0}), 24)})
	}
	if _, err := assignBack(many[:90], nil); err != nil {
		t.Errorf("90 networks: %v", err)
	}
	if _, err := assignBack(many, nil); !errors.Is(err, ErrTooManyNetworks) {
		t.Errorf("91 networks: have %v, want ErrTooManyNetworks", err)
	}
}

// TestValidate: what Apply could not work with is refused before anything is touched.
func TestValidate(t *testing.T) {
	ok := Config{Networks: []Network{redLAN}, Legs: []Leg{{Pod: "a", Addresses: []netip.Addr{floating}}}}
	if err := ok.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, bend := range map[string]func(*Config){
		"two pods hold one address":  func(c *Config) { c.Legs = append(c.Legs, Leg{Pod: "b", Addresses: []netip.Addr{floating}}) },
		"a pod has two legs":         func(c *Config) { c.Legs = append(c.Legs, Leg{Pod: "a"}) },
		"an address without network": func(c *Config) { c.Networks = nil },
		"two networks overlap": func(c *Config) {
			c.Networks = append(c.Networks, Network{Prefix: netip.MustParsePrefix("192.168.0.0/16"), Interface: "x"})
		},
		"a network without interface": func(c *Config) { c.Networks = []Network{{Prefix: redLAN.Prefix}} },
	} {
		c := Config{Networks: []Network{redLAN}, Legs: []Leg{ok.Legs[0]}}
		bend(&c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestOthersKeepTheirRoutes: the way back is for what legs send. What the node itself sends with an address of the
// provider network, and what it forwards for a host there, goes on by the node's ordinary routes.
func TestOthersKeepTheirRoutes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.addPod("a", "100.0.0.5", floating, floating6)
	r.apply()
	port, elsewhere := PortName("a"), "198.51.100.9"
	for _, tc := range []struct{ name, query, by string }{
		{"a leg", "from 192.168.100.50 iif " + port, "red0"},
		{"the node itself", "from 192.168.100.10", "green0"},
		{"a host of the network", "from " + nodetest.LANHost + " iif red0", "green0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out []byte
			r.node.Do(func() (err error) {
				args := append([]string{"route", "get", elsewhere}, strings.Fields(tc.query)...)
				out, err = exec.Command("ip", args...).CombinedOutput()
				return err
			})
			if !strings.Contains(string(out), "dev "+tc.by) {
				t.Errorf("the way to %s is %q, want one by %s", elsewhere, out, tc.by)
			}
		})
	}
}

// TestPlugIsFollowed: who has plugged legs knows what the node holds without another look. Where a leg takes the place of
// something that went, and with it what hung on it, the next Apply looks.
func TestPlugIsFollowed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.addPod("a", "100.0.0.5", floating)
	h := r.holding()
	plug := func() {
		t.Helper()
		if made, err := r.kernel.Plug(&h, "a", p.File); err != nil || !made {
			t.Fatalf("plugged: %v, %v", made, err)
		}
	}
	plug()
	now := r.holding()
	if diff := cmp.Diff(now.state, h.state, compareNet, cmp.AllowUnexported(state{})); diff != "" || h.outdated {
		t.Errorf("the node (-it is +it is taken for); outdated: %v\n%s", h.outdated, diff)
	}
	if name := PortName("a"); h.Links[name] != now.Links[name] || !h.Ports[name] {
		t.Errorf("link %s is taken for %d, %v; it is %d", name, h.Links[name], h.Ports[name], now.Links[name])
	}
	r.apply()
	other := nodetest.NewNamespace(t)
	if err := p.Link.LinkSetNsFd(p.Get(nat.LegInterface), int(other.File.Fd())); err != nil {
		t.Fatal(err)
	}
	h = r.holding()
	plug()
	if _, err := r.kernel.ApplyTo(h, r.config); err != nil {
		t.Fatal(err)
	}
	if now := r.holding(); now.Active[floating] != PortName("a") || len(now.state.neighbours) == 0 {
		t.Errorf("with a leg in place of one that went, %s has the way %q and neighbours %v", floating, now.Active[floating],
			now.state.neighbours)
	}
}

// TestGuardComesFirst: a leg that is plugged, and of which nothing else is known yet, lets nothing in.
func TestGuardComesFirst(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.addPod("a", "100.0.0.5", floating)
	h := r.holding()
	if _, err := r.kernel.Plug(&h, "a", p.File); err != nil {
		t.Fatal(err)
	}
	guards := map[string]string{}
	if err := r.kernel.readGuards(guards); err != nil {
		t.Fatal(err)
	}
	if have, want := guards[PortName("a")], new(guardTexts).of(nil); have != want {
		t.Errorf("guard of a leg that was just plugged: %q, want %q", have, want)
	}
	r.apply()
	clear(guards)
	if err := r.kernel.readGuards(guards); err != nil {
		t.Fatal(err)
	}
	if have, want := guards[PortName("a")], new(guardTexts).of([]netip.Addr{floating}); have != want {
		t.Errorf("guard of a leg in use: %q, want %q", have, want)
	}
}

// TestManyGuards: somebody flushed the guards of more legs than one message to the kernel can hold, and later all of them
// leave at once.
func TestManyGuards(t *testing.T) {
	const count = 600
	n := nodetest.NewNamespace(t)
	kernel, err := Open(n.File, DefaultSysctls)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kernel.Close)
	a := application{node: kernel, want: state{sources: map[string][]netip.Addr{}}, report: &Report{}}
	var ports []string
	for i, address := 0, floating; i < count; i, address = i+1, address.Next() {
		ports = append(ports, PortName(fmt.Sprint(i)))
		a.want.sources[ports[i]] = []netip.Addr{address}
		if i%2 == 1 { // two ends of one pair are two ports
			n.Cable(ports[i-1], n, ports[i])
		}
	}
	guards := func() map[string]string {
		t.Helper()
		have := map[string]string{}
		if err := kernel.readGuards(have); err != nil {
			t.Fatal(err)
		}
		delete(have, theTable)
		return have
	}
	if err := a.setGuards(ports); err != nil {
		t.Fatal(err)
	}
	have := guards()
	for _, name := range ports {
		if want := new(guardTexts).of(a.want.sources[name]); have[name] != want {
			t.Fatalf("%s has the guard %q, want %q", name, have[name], want)
		}
	}
	if err := a.removeGuards(ports); err != nil {
		t.Fatal(err)
	}
	if left := guards(); len(left) > 0 {
		t.Errorf("%d guards are left", len(left))
	}
}
