package nat

import (
	"cmp"
	"slices"
	"strings"
	"testing"

	"floatip.io/floatip"
	"floatip.io/floatip/test/lab"
)

// masquerade is a way in which KubeVirt makes its tables. Its commands, for the lab's VM number 2, were recorded from
// KubeVirt's own package; TestRecordedCommands in test/kubevirt/virthandler, and for v1.9.0 in test/kubevirt19, makes them
// again and compares.
type masquerade struct {
	release  string // v1.8.4 if empty
	like     string // another one, whose commands are the same
	ports    []lab.Port
	families []int // 0 for IPv4, 1 for IPv6; none for both
	change   func(*lab.Shape)
}

func tcp(n int) lab.Port { return lab.Port{Protocol: "tcp", Number: n} }
func udp(n int) lab.Port { return lab.Port{Protocol: "udp", Number: n} }

// Ranges, which came with v1.9.0.
var (
	tcpRange = lab.Port{Protocol: "tcp", Number: 8000, Last: 8999}
	udpRange = lab.Port{Protocol: "udp", Number: 5000, Last: 5010}
	ranges   = []lab.Port{{Protocol: "tcp", Number: 20, Last: 30}, tcpRange, udpRange}
)

var masquerades = map[string]masquerade{
	"no-ports":               {families: []int{0}},
	"ports":                  {families: []int{0}, ports: []lab.Port{tcp(22), tcp(80), udp(53)}},
	"legacy-migration-ports": {families: []int{0}},
	"istio":                  {families: []int{0}},
	"udp-ports":              {families: []int{0}, ports: []lab.Port{udp(53), udp(5060)}},
	"ports-dual-stack":       {ports: []lab.Port{tcp(22), tcp(80), udp(53)}},
	// With a proxy of a service mesh KubeVirt lists ports for its own sake, and floatip is given none.
	"istio-ports-dual-stack": {},
	"custom-ipv6-network": {change: func(s *lab.Shape) {
		s.Guest6, s.Router6, s.Network6 = "fd20:1:2::2", "fd20:1:2::1", "fd20:1:2::/120"
	}},
	"dual-stack": {},
	"ipv6":       {families: []int{1}},
	"custom-network": {families: []int{0}, change: func(s *lab.Shape) {
		s.Guest4, s.Router4, s.Network4 = "10.11.12.2", "10.11.12.1", "10.11.12.0/24"
	}},
	"pod-link-not-eth0": {families: []int{0}, change: func(s *lab.Shape) { s.Link = "ovn-udn1" }},

	"port-ranges":              {release: "v1.9.0", families: []int{0}, ports: ranges},
	"port-ranges-tcp":          {release: "v1.9.0", families: []int{0}, ports: []lab.Port{tcpRange}},
	"port-ranges-udp":          {release: "v1.9.0", families: []int{0}, ports: []lab.Port{udpRange}},
	"port-ranges-ipv6":         {release: "v1.9.0", families: []int{1}, ports: ranges},
	"port-ranges-dual-stack":   {release: "v1.9.0", ports: ranges},
	"port-ranges-and-ports":    {release: "v1.9.0", ports: append([]lab.Port{tcp(22), tcp(80), udp(53)}, ranges...)},
	"port-ranges-of-one-port":  {release: "v1.9.0", ports: []lab.Port{{Protocol: "tcp", Number: 22, Last: 22}}},
	"port-ranges-of-all-ports": {release: "v1.9.0", ports: []lab.Port{{Protocol: "tcp", Number: 1, Last: 65535}}},
	"port-ranges-istio":        {release: "v1.9.0", ports: ranges},
	// With KubeVirt's feature gate off again, the pod's own address is open, and the floating one stays at the VM's list.
	"port-ranges-gate-off": {like: "dual-stack", ports: ranges},
	"port-ranges-legacy-migration-ports": {
		release: "v1.9.0", families: []int{0}, ports: ranges},
	"port-ranges-not-eth0": {release: "v1.9.0", ports: ranges, change: func(s *lab.Shape) { s.Link = "ovn-udn1" }},
	"port-ranges-custom-networks": {release: "v1.9.0", ports: ranges, change: func(s *lab.Shape) {
		s.Guest4, s.Router4, s.Network4 = "10.11.12.2", "10.11.12.1", "10.11.12.0/24"
		s.Guest6, s.Router6, s.Network6 = "fd20:1:2::2", "fd20:1:2::1", "fd20:1:2::/120"
	}},
}

// Every flow of the table beside every variant of KubeVirt's table, from everywhere to the floating address and from the
// guest to everywhere.
func TestFlowsBesideEveryMasquerade(t *testing.T) {
	t.Parallel()
	for name, m := range masquerades {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, map[string][]lab.Port{"vm1": nil})
			shape := lab.Ordinary
			if m.change != nil {
				m.change(&shape)
			}
			vm, other := w.AddVMOf(t, 2, shape, m.ports...), w.vms["vm1"]
			w.add(t, "vm2", vm)
			other.KubeVirt(t)
			edges := m.edges()
			vm.Guest.Serve(t, served(edges)...)
			runNFT(t, vm.Pod, releaseCommands(t, cmp.Or(m.release, "v1.8.4")+"-"+cmp.Or(m.like, name)))
			p := podNAT(vm)
			p.Bindings = slices.DeleteFunc(p.Bindings, func(b floatip.Binding) bool {
				return !m.has(b.Floating.Is6())
			})
			for vm, p := range map[*lab.VM]floatip.PodNAT{vm: p, other: podNAT(other)} {
				vm.PlugLeg(t)
				if err := openKernel(t, vm.Pod).Apply(Desired(p)); err != nil {
					t.Fatal(err)
				}
			}
			for family := range familyNames {
				if m.has(family == 1) {
					w.checkFamily(t, append(m.flows(!strings.Contains(name, "istio")), edges...), family)
				}
			}
		})
	}
}

func (m masquerade) has(v6 bool) bool {
	return len(m.families) == 0 || slices.Contains(m.families, map[bool]int{false: 0, true: 1}[v6])
}

// flows are those of the VM number 2. What comes to the pod's own address belongs to the mesh where there is one.
func (m masquerade) flows(podAddress bool) (flows []flow) {
	for _, protocol := range []string{"tcp", "udp", "icmp"} {
		port, listed := m.listed(protocol)
		seen := func(as string) string {
			if !listed {
				return ""
			}
			return as
		}
		flows = append(flows,
			flow{"host", "vm2's", protocol, port, seen("host")},
			flow{"outside", "vm2's", protocol, port, seen("outside")},
			flow{"node", "vm2's", protocol, port, seen("node")},
			flow{"peer", "vm2's", protocol, port, seen("peer")},
			flow{"vm1", "vm2's", protocol, port, seen("vm1's")},
			flow{"vm2", "vm2's", protocol, port, seen("vm2's")},
			flow{"vm2", "vm1's", protocol, 80, "vm2's"},
			flow{"vm2", "host", protocol, 80, "vm2's"},
			flow{"vm2", "outside", protocol, 80, "vm2's"},
			flow{"vm2", "peer", protocol, 80, "vm2's pod"},
			flow{"vm2", "node", protocol, 80, "vm2's pod"},
		)
		if len(m.ports) > 0 && protocol != "icmp" {
			flows = append(flows, flow{"host", "vm2's", protocol, 7777, m.seenAs(protocol, 7777, "host")}, flow{"vm2", "vm2's", protocol, 7777, m.seenAs(protocol, 7777, "vm2's")})
		}
		if podAddress && (listed && protocol != "icmp" || len(m.ports) == 0) {
			flows = append(flows, flow{"peer", "vm2's pod", protocol, port, "peer"})
		}
	}
	return flows
}

// listed returns a port of the VM's list, or of its servers where there is no list. Ping is always listed.
func (m masquerade) listed(protocol string) (int, bool) {
	for _, p := range m.ports {
		if p.Protocol == protocol {
			return p.Number, true
		}
	}
	return 22, len(m.ports) == 0 || protocol == "icmp"
}

// seenAs is as if the VM lists the port, else silence.
func (m masquerade) seenAs(protocol string, port int, as string) string {
	for _, p := range m.ports {
		if p.Protocol == protocol && p.Number <= port && port <= max(p.Number, p.Last) {
			return as
		}
	}
	return ""
}

// edges are calls of the first and the last port of each range, of those beside it, and of a port inside by the other
// protocol.
func (m masquerade) edges() (flows []flow) {
	other := map[string]string{"tcp": "udp", "udp": "tcp"}
	for _, p := range m.ports {
		call := func(from, protocol string, port int, as string) {
			if port >= 1 && port <= 65535 {
				flows = append(flows, flow{from, "vm2's", protocol, port, m.seenAs(protocol, port, as)})
			}
		}
		if p.Last == 0 {
			continue
		}
		call("host", p.Protocol, p.Number, "host")
		call("outside", p.Protocol, p.Last, "outside")
		call("vm2", p.Protocol, p.Last, "vm2's")
		call("host", p.Protocol, p.Number-1, "host")
		call("outside", p.Protocol, p.Last+1, "outside")
		call("vm2", p.Protocol, p.Last+1, "vm2's")
		call("host", other[p.Protocol], p.Number+1, "host")
	}
	return flows
}

// served are the ports of the flows that nobody serves yet.
func served(flows []flow) (ports []int) {
	for _, f := range flows {
		if !slices.Contains([]int{22, 53, 80, 5060, 7777}, f.port) && !slices.Contains(ports, f.port) {
			ports = append(ports, f.port)
		}
	}
	return ports
}
