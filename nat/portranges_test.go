package nat

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"floatip.io/floatip"
	"floatip.io/floatip/test/lab"
)

// A VM that lists ranges is reached at each of their ports, the first and the last among them, from everywhere and by
// itself. A call of any other port is one packet on the leg and dies there, whatever single ports are listed besides.
func TestPortRanges(t *testing.T) {
	t.Parallel()
	list := append([]lab.Port{{Protocol: "tcp", Number: 9001}, {Protocol: "tcp", Number: 8500, Last: 9000}}, ranges...)
	w := newWorld(t, map[string][]lab.Port{"vm1": list, "vm2": nil})
	vm := w.vms["vm1"]
	vm.Guest.Serve(t, 19, 30, 31, 4999, 5000, 5005, 5010, 5011, 7999, 8000, 8750, 9000, 9001, 9002)
	for _, vm := range w.vms {
		vm.KubeVirt(t)
		vm.PlugLeg(t)
		if err := openKernel(t, vm.Pod).Apply(Desired(podNAT(vm))); err != nil {
			t.Fatal(err)
		}
	}
	everywhere := []string{"host", "outside", "node", "peer", "vm1", "vm2"}
	var answered []flow
	for from, name := range everywhere {
		as := name
		if name == "vm1" || name == "vm2" {
			as += "'s"
		}
		tcp := []int{22, 30, 8000, 8750, 9000, 9001}
		answered = append(answered,
			flow{name, "vm1's", "tcp", tcp[from], as}, flow{name, "vm1's", "tcp", 8000, as},
			flow{name, "vm1's", "udp", []int{5000, 5005, 5010}[from%3], as}, flow{name, "vm1's", "icmp", 0, as})
	}
	w.check(t, append(answered,
		flow{"peer", "vm1's pod", "tcp", 8000, "peer"}, flow{"vm1", "peer", "tcp", 80, "vm1's pod"},
		flow{"vm1", "outside", "tcp", 80, "vm1's"}, flow{"vm1", "vm2's", "udp", 80, "vm1's"}))
	countCalls(t, w, vm)
	refused := []flow{
		{"host", "vm1's", "tcp", 19, ""}, {"outside", "vm1's", "tcp", 31, ""}, {"peer", "vm1's", "tcp", 7999, ""},
		{"node", "vm1's", "tcp", 9002, ""}, {"vm2", "vm1's", "tcp", 5005, ""}, {"vm1", "vm1's", "tcp", 7999, ""},
		{"host", "vm1's", "udp", 4999, ""}, {"outside", "vm1's", "udp", 5011, ""}, {"peer", "vm1's", "udp", 8000, ""},
		{"vm1", "vm1's", "udp", 5011, ""},
	}
	w.check(t, refused)
	// Per family: 8 calls by the leg, of one packet each; the 5 SYNs may be repeated once.
	if n := calls(t, w); n < 16 || n > 26 {
		t.Errorf("16 calls of unlisted ports made %d packets on the leg, want one or two for each", n)
	}
	countedRefusals(t, vm, uint64(len(refused)))
}

// A range and the firewall must both admit a port.
func TestPortRangesAndFirewall(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string][]lab.Port{"vm1": ranges})
	vm := w.vms["vm1"]
	vm.Guest.Serve(t, 8000, 8100, 8499, 8500, 8999, 9000, 5000, 5010)
	vm.KubeVirt(t)
	vm.PlugLeg(t)
	p := podNAT(vm)
	p.Firewall = &floatip.Firewall{
		Ingress: admitted("192.168.100.0/24 tcp/8100-8499", "203.0.113.0/24 tcp/8500-9500", "203.0.113.0/24 udp/5010",
			"2001:db8:100::/64 tcp/8100-8499", "2001:db8:f::/64 tcp/8500-9500", "2001:db8:f::/64 udp/5010"),
		Egress: floatip.Admitted{Everything: true},
	}
	if err := openKernel(t, vm.Pod).Apply(Desired(p)); err != nil {
		t.Fatal(err)
	}
	w.check(t, []flow{
		{"host", "vm1's", "tcp", 8100, "host"},
		{"host", "vm1's", "tcp", 8499, "host"},
		{"host", "vm1's", "tcp", 8000, ""},
		{"host", "vm1's", "tcp", 8500, ""},
		{"host", "vm1's", "icmp", 0, ""},
		{"outside", "vm1's", "tcp", 8500, "outside"},
		{"outside", "vm1's", "tcp", 8999, "outside"},
		{"outside", "vm1's", "tcp", 9000, ""}, // admitted, not listed
		{"outside", "vm1's", "tcp", 8499, ""}, // listed, not admitted
		{"outside", "vm1's", "udp", 5010, "outside"},
		{"outside", "vm1's", "udp", 5000, ""},
		{"vm1", "vm1's", "tcp", 8000, "vm1's"}, // the guest's calls of itself are no business of the firewall
		{"vm1", "vm1's", "tcp", 9000, ""},
	})
}

// The kernel lets through the ports that a list has, and no others: random lists of ports and ranges, which overlap as
// they come, against every packet of a small universe.
func TestKernelAgreesWithPortLists(t *testing.T) {
	w, vm, kernel := newPlugged(t)
	for family := range familyNames {
		outside := outsiders(t, w, family)[:2]
		for seed := range uint64(8) {
			t.Run(fmt.Sprintf("%s/%d", familyNames[family], seed), func(t *testing.T) {
				r := rand.New(rand.NewPCG(seed, uint64(family)))
				p := podNAT(vm)
				p.Bindings[family].Ports = randomPorts(r)
				if err := p.Validate(); err != nil {
					t.Fatal(err)
				}
				if err := kernel.Apply(Desired(p)); err != nil {
					t.Fatalf("%v: %v", p.Bindings[family].Ports, err)
				}
				if have, err := kernel.Read(); err != nil || Desired(p).Diff(have) != "" {
					t.Fatalf("%v: %s, %v", p.Bindings[family].Ports, Desired(p).Diff(have), err)
				}
				floating := p.Bindings[family].Floating
				inwards := direction{vm.Pod, vm.Guest, "saddr", func(c Counter) uint64 { return c.In.Packets + c.Refused.Packets },
					func(o netip.Addr, x probe) error { return x.send(w.Host, o, floating) }}
				inwards.agrees(t, kernel, floating, eachPort(p.Bindings[family].Ports, outside), outside)
			})
		}
	}
}

// randomPorts has a range at least, in the universe of the probes.
func randomPorts(r *rand.Rand) (list []floatip.Port) {
	for n := range 2 + r.IntN(5) {
		p := floatip.Port{Protocol: []string{"TCP", "UDP"}[r.IntN(2)], Number: uint16(1000 + r.IntN(5))}
		if n == 0 || r.IntN(2) == 0 {
			p.Last = p.Number + 1 + uint16(r.IntN(3))
		}
		list = append(list, p)
	}
	return list
}

// eachPort admits the ports of a list one by one, and ping.
func eachPort(list []floatip.Port, outside []netip.Addr) (a floatip.Admitted) {
	for _, o := range outside {
		from := floatip.AddressRange{First: o, Last: o}
		a.Entries = append(a.Entries, floatip.Entry{Addresses: from, Protocol: floatip.ProtocolICMP, Ports: floatip.AllPorts()})
		for _, p := range list {
			for port := p.Number; port <= max(p.Number, p.Last); port++ {
				protocol := map[string]floatip.Protocol{"TCP": floatip.ProtocolTCP, "UDP": floatip.ProtocolUDP}[p.Protocol]
				a.Entries = append(a.Entries, floatip.Entry{Addresses: from, Protocol: protocol, Ports: floatip.PortRange{First: port, Last: port}})
			}
		}
	}
	return a
}

// Whoever widens, narrows or replaces the set of ranges is noticed, and it is put right.
func TestTamperingWithPortRanges(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"range deleted": "delete element ip nat floatip_ports { tcp . 8000-9500 }",
		"range added":   "add element ip nat floatip_ports { tcp . 100-200 }",
		"range narrowed": "delete element ip nat floatip_ports { tcp . 8000-9500 }\n" +
			"add element ip nat floatip_ports { tcp . 8000-9499 }",
		"range widened": "delete element ip nat floatip_ports { tcp . 8000-9500 }\ndelete element ip nat floatip_ports { tcp . 443 }\n" +
			"add element ip nat floatip_ports { tcp . 443-9500 }",
		"port made a range": "delete element ip nat floatip_ports { tcp . 22 }\nadd element ip nat floatip_ports { tcp . 22-23 }",
		"set of single ports": "flush chain ip nat floatip_prerouting\nflush chain ip nat floatip_in\ndelete set ip nat floatip_ports\n" +
			"add set ip nat floatip_ports { type inet_proto . inet_service; }",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := lab.New(t, "pod")
			kernel := openKernel(t, ns)
			want := Desired(examples()["ranges"])
			if err := kernel.Apply(want); err != nil {
				t.Fatal(err)
			}
			ns.NFT(t, script)
			have, err := kernel.Read()
			if err != nil || want.Diff(have) == "" {
				t.Fatalf("the change was not seen: %v", err)
			}
			if err := kernel.Apply(want); err != nil {
				t.Fatal(err)
			}
			if have, err = kernel.Read(); err != nil || want.Diff(have) != "" {
				t.Errorf("after repair: %s, %v", want.Diff(have), err)
			}
		})
	}
}

// No number of ranges makes a packet meet one rule more, and single ports stay a hash table.
func TestRangesAreNoRules(t *testing.T) {
	with := func(n int) Tables {
		p := examples()["dual"]
		for i := range n {
			p.Bindings[0].Ports = append(p.Bindings[0].Ports, floatip.Port{Protocol: "TCP", Number: uint16(1 + 10*i), Last: uint16(5 + 10*i)})
		}
		return Desired(p)
	}
	one, many := with(1)[0], with(500)[0]
	for i, c := range one.Chains {
		if d := c.diff(many.Chains[i], families[0]); d != "" {
			t.Errorf("chain %s with 1 range and with 500: %s", c.Name, d)
		}
	}
	for _, tc := range []struct {
		table    Table
		interval bool
		elements int
	}{{one, true, 1}, {many, true, 500}, {Desired(examples()["ports"])[0], false, 3}} {
		for _, s := range tc.table.Sets {
			if s.Name == setPorts && (s.Interval != tc.interval || len(s.Elements) != tc.elements) {
				t.Errorf("want %d elements, intervals %v; have %d, %v", tc.elements, tc.interval, len(s.Elements), s.Interval)
			}
		}
	}
}
