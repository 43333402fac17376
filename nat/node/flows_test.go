package node

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"floatip.io/floatip"
	"floatip.io/floatip/nat"
	"floatip.io/floatip/nat/handover"
	"floatip.io/floatip/nat/node/nodetest"
	"floatip.io/floatip/test/lab"
)

const (
	answered = 30 * time.Second       // within which an answer must come
	silence  = 400 * time.Millisecond // within which none may
)

// onNodeDeliveries are those that the agent makes.
var onNodeDeliveries = []floatip.Delivery{floatip.DeliveryLeg, floatip.DeliveryRouted, floatip.DeliveryNodeNAT}

// Hosts of the suite besides those of nodetest.
const (
	outside4, outside6 = "198.51.100.9", "2001:db8:f::9"
	peer4, peer6       = "100.0.0.9", "fd30::9"
)

// suite is a bench whose pool has a delivery, with named places.
type suite struct {
	*bench
	delivery floatip.Delivery
	places   map[string]*lab.Namespace
	names    map[string][2]string // IPv4 and IPv6
	guests   map[string]*dual
}

// dual is a VM with an address of each family.
type dual struct {
	*nodetest.Pod
	uid      string
	floating [2]netip.Addr
	nat      floatip.PodNAT
	sidecar  *sidecar
}

// newSuite makes the world, a pod of the cluster on the node, and a host beyond the gateway.
func newSuite(t *testing.T, delivery floatip.Delivery) *suite {
	t.Helper()
	b := newBench(t)
	addresses := func(texts ...string) (list []netip.Addr) {
		for _, text := range texts {
			list = append(list, netip.MustParseAddr(text))
		}
		return list
	}
	b.view.Pools["lan"] = Pool{
		Name: "lan", Delivery: delivery,
		Networks: []netip.Prefix{netip.MustParsePrefix(nodetest.Pool), netip.MustParsePrefix(nodetest.Pool6)},
		Gateways: addresses(nodetest.Gateway, nodetest.Gateway6), Sample: addresses("192.168.100.51", "2001:db8:100::51"),
	}
	s := &suite{bench: b, delivery: delivery, guests: map[string]*dual{}}
	outside := nodetest.NewNamespace(t)
	b.world.Host.Cable("wan", outside, "eth0")
	b.world.Host.Address("wan", "198.51.100.1/24", "2001:db8:f::1/64")
	b.world.Host.Sysctl("ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1")
	outside.Address("eth0", outside4+"/24", outside6+"/64")
	outside.Route("0.0.0.0/0", "198.51.100.1", "eth0")
	outside.Route("::/0", "2001:db8:f::1", "eth0")
	peer := b.node.AddPod("9", peer4)
	s.places = map[string]*lab.Namespace{
		"host": lab.At("host", b.world.Host.File), "outside": lab.At("outside", outside.File),
		"node": lab.At("node", b.node.File), "peer": lab.At("peer", peer.File), "far": lab.At("far", b.world.Cluster.File),
	}
	s.names = map[string][2]string{
		"host": {nodetest.Gateway, nodetest.LANHost6}, "outside": {outside4, outside6}, "node": {"201.0.0.10", "fd20::10"},
		"peer": {peer4, peer6}, "far": {nodetest.Peer, nodetest.Peer6},
	}
	for _, place := range s.places {
		place.Serve(t, 22, 80)
		place.Settle(t)
	}
	return s
}

// addDual makes the n-th VM. Where the pod translates, its rules are those that the sidecar would write.
func (s *suite) addDual(n int, change func(*floatip.PodNAT)) *dual {
	s.t.Helper()
	name, uid := fmt.Sprintf("vm%d", n), fmt.Sprintf("00000000-0000-4000-8000-%012d", n)
	v := &dual{Pod: s.node.AddPod(fmt.Sprint(n), fmt.Sprintf("100.0.0.%d", n)), uid: uid, floating: [2]netip.Addr{
		netip.MustParseAddr(fmt.Sprintf("192.168.100.5%d", n)), netip.MustParseAddr(fmt.Sprintf("2001:db8:100::5%d", n)),
	}}
	owner := floatip.Owner{Namespace: "prod", Name: name, UID: "vm-" + uid}
	v.nat = nodetest.Describe(owner, v.floating[:]...)
	if s.delivery != floatip.DeliveryLeg {
		v.nat.Delivery = s.delivery
	}
	if change != nil {
		change(&v.nat)
	}
	nodetest.KubeVirt(s.t, v.Pod, v.nat.Bindings[0].Ports...)
	if s.delivery.InPod() {
		v.sidecar = s.serveSidecar(v.Pod, uid, v.floating[0])
	}
	s.translate(v)

	entry := Pod{
		UID: uid, Namespace: "prod", Name: "virt-launcher-" + name, Machine: Reference{Name: name, UID: "vmi-" + uid},
		IPv4: netip.MustParseAddr(v.IP), IPv6: netip.MustParseAddr(fmt.Sprintf("fd30::%d", n)), NAT: s.encode(v.nat),
	}
	s.view.Pods = append(s.view.Pods, entry)
	for _, a := range v.floating {
		s.view.Addresses[a] = Held{Pool: "lan", Owner: owner}
	}
	s.view.Machines["vmi-"+uid] = Machine{
		Namespace: "prod", Name: name, UID: "vmi-" + uid, VM: owner.UID, Node: "node10", Running: true,
	}
	s.places[name], s.guests[name] = lab.At(name, v.Guest.File), v
	s.places[name].Serve(s.t, 22, 80, 7777)
	s.names[name+"'s"] = [2]string{v.floating[0].String(), v.floating[1].String()}
	s.names[name+"'s pod"] = [2]string{entry.IPv4.String(), entry.IPv6.String()}
	return v
}

func (s *suite) encode(nat floatip.PodNAT) string {
	s.t.Helper()
	text, err := nat.Encode()
	if err != nil {
		s.t.Fatal(err)
	}
	return text
}

// translate writes what the sidecar would write for the description, and says that it did.
func (s *suite) translate(v *dual) {
	s.t.Helper()
	if v.sidecar == nil {
		return
	}
	kernel, err := nat.Open(nat.Config{NetNS: int(v.File.Fd())})
	if err != nil {
		s.t.Fatal(err)
	}
	defer kernel.Close()
	if err := kernel.Apply(nat.Desired(v.nat)); err != nil {
		s.t.Fatal(err)
	}
	state := handover.State{Phase: handover.PhaseInstalled}
	for _, b := range v.nat.Bindings {
		state.Bindings = append(state.Bindings, handover.Binding{Floating: b.Floating, Fixed: b.Fixed})
	}
	v.sidecar.set(state)
}

// describe gives the pod of v another description, as a change of the firewall does.
func (s *suite) describe(v *dual) {
	s.t.Helper()
	s.view.Pods = slices.Clone(s.view.Pods)
	for i := range s.view.Pods {
		if s.view.Pods[i].UID == v.uid {
			s.view.Pods[i].NAT = s.encode(v.nat)
		}
	}
	s.translate(v)
	s.publish()
}

// run starts the agent and waits until every address is ready.
func (s *suite) run() {
	s.t.Helper()
	s.start()
	s.publish()
	s.allReady()
}

func (s *suite) allReady() {
	s.t.Helper()
	s.awaitReport("ready", func(r Report) bool {
		for _, v := range s.guests {
			for _, a := range v.floating {
				if !r.Statuses[a].Ready().True {
					return false
				}
			}
		}
		return true
	})
}

// flow is one line of a flow table.
type flow struct {
	from, to string // a place; to may be a floating address, "vm1's", or a pod's, "vm1's pod"
	protocol string
	port     int
	seenAs   string // "" for silence, "anybody" for an answer
}

// check walks a flow table, once in IPv4 and once in IPv6. The flows go at the same time, as those of a node do.
func (s *suite) check(t *testing.T, flows ...flow) {
	t.Helper()
	var group sync.WaitGroup
	for family, name := range []string{"IPv4", "IPv6"} {
		for _, f := range flows {
			group.Go(func() {
				if err := s.checkFlow(f, family); err != nil {
					t.Errorf("%s: %s to %s, %s %d: %v", name, f.from, f.to, f.protocol, f.port, err)
				}
			})
		}
	}
	group.Wait()
}

func (s *suite) checkFlow(f flow, family int) error {
	to := s.names[f.to][family]
	if f.seenAs == "" {
		if seen, err := s.places[f.from].Ask(f.protocol, to, f.port, 0, silence); err == nil {
			return fmt.Errorf("want silence, have an answer to %s", seen)
		}
		return nil
	}
	seen, err := s.places[f.from].Ask(f.protocol, to, f.port, 0, answered)
	if err != nil {
		return err
	}
	if want := s.names[f.seenAs][family]; f.protocol != "icmp" && f.seenAs != "anybody" && seen.Addr().String() != want {
		return fmt.Errorf("seen as %s, want %s (%s)", seen.Addr(), want, f.seenAs)
	}
	return nil
}

// eachDelivery runs test once for each delivery that the agent makes, side by side.
func eachDelivery(t *testing.T, test func(*testing.T, *suite)) {
	for _, d := range onNodeDeliveries {
		t.Run(string(d), func(t *testing.T) {
			t.Parallel()
			test(t, newSuite(t, d))
		})
	}
}

// TestFlows: who reaches whom, and as whom, with strict reverse-path filtering everywhere. It is the same for each
// delivery.
func TestFlows(t *testing.T) {
	t.Parallel()
	eachDelivery(t, func(t *testing.T, s *suite) {
		s.addDual(1, nil)
		s.addDual(2, nil)
		s.run()
		var flows []flow
		for _, protocol := range []string{"tcp", "udp", "icmp"} {
			flows = append(flows,
				flow{"host", "vm1's", protocol, 22, "host"},
				flow{"outside", "vm1's", protocol, 80, "outside"},
				flow{"node", "vm1's", protocol, 22, "anybody"},
				flow{"peer", "vm1's", protocol, 22, "peer"},
				flow{"far", "vm1's", protocol, 22, "far"},
				flow{"vm1", "host", protocol, 80, "vm1's"},
				flow{"vm1", "outside", protocol, 80, "vm1's"},
				flow{"vm1", "peer", protocol, 80, "vm1's pod"},
				flow{"vm1", "far", protocol, 80, "vm1's pod"},
				flow{"vm1", "vm1's", protocol, 80, "vm1's"},
				flow{"vm1", "vm2's", protocol, 80, "vm1's"},
				flow{"vm2", "vm1's", protocol, 80, "vm2's"},
				flow{"peer", "vm1's pod", protocol, 80, "peer"},
			)
		}
		// A server that answers from every address of a node answers UDP under the wrong one, whatever floatip does.
		flows = append(flows, flow{"vm1", "node", "tcp", 80, "vm1's pod"}, flow{"vm1", "node", "icmp", 80, "vm1's pod"})
		s.check(t, flows...)
	})
}
