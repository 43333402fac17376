package node

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/nodetest"
	"floatip.io/floatip/test/lab"
)

// admitted returns what the entries admit.
func admitted(t *testing.T, entries ...string) (a floatip.Admitted) {
	t.Helper()
	for _, text := range entries {
		var e floatip.Entry
		if err := e.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		a.Entries = append(a.Entries, e)
	}
	slices.SortFunc(a.Entries, floatip.CompareEntries)
	return a
}

// TestListedPorts: a VM that lists ports is reached at those and by ping, from everywhere, and its own calls pass.
// Other calls die without an answer, and are counted.
func TestListedPorts(t *testing.T) {
	t.Parallel()
	eachDelivery(t, func(t *testing.T, s *suite) {
		list := []floatip.Port{{Protocol: "TCP", Number: 22}, {Protocol: "UDP", Number: 80}}
		s.addDual(1, func(p *floatip.PodNAT) {
			for i := range p.Bindings {
				p.Bindings[i].Ports = list
			}
			p.Firewall = &floatip.Firewall{
				Ingress: admitted(t, "0.0.0.0/0 tcp/22", "0.0.0.0/0 udp/80", "0.0.0.0/0 icmp", "::/0 tcp/22", "::/0 udp/80", "::/0 icmp"),
				Egress:  floatip.Admitted{Everything: true},
			}
		})
		s.addDual(2, nil)
		s.run()
		s.check(t,
			flow{"host", "vm1's", "tcp", 22, "host"},
			flow{"outside", "vm1's", "udp", 80, "outside"},
			flow{"peer", "vm1's", "udp", 80, "peer"},
			flow{"vm2", "vm1's", "tcp", 22, "vm2's"},
			flow{"host", "vm1's", "icmp", 0, "host"},
			flow{"node", "vm1's", "tcp", 22, "anybody"},
			flow{"vm1", "outside", "tcp", 80, "vm1's"},
			flow{"vm1", "outside", "udp", 22, "vm1's"},
			flow{"host", "vm1's", "tcp", 80, ""},
			flow{"host", "vm1's", "udp", 22, ""},
			flow{"outside", "vm1's", "tcp", 7777, ""},
			flow{"peer", "vm1's", "tcp", 80, ""},
			flow{"vm2", "vm1's", "udp", 22, ""},
			flow{"node", "vm1's", "tcp", 80, ""},
		)
		if s.delivery == floatip.DeliveryNodeNAT {
			s.counts(t, 1)
		}
	})
}

// TestPortRanges: a VM that lists a range is reached at its first and its last port and those between, and not beside it.
// A narrower range cuts the connections outside of it and no others.
func TestPortRanges(t *testing.T) {
	t.Parallel()
	eachDelivery(t, func(t *testing.T, s *suite) {
		list := func(last uint16) []floatip.Port {
			return []floatip.Port{{Protocol: "TCP", Number: 8000, Last: 8500}, {Protocol: "TCP", Number: 8100, Last: last},
				{Protocol: "UDP", Number: 5000, Last: 5010}, {Protocol: "TCP", Number: 8200}}
		}
		v := s.addDual(1, func(p *floatip.PodNAT) {
			for i := range p.Bindings {
				p.Bindings[i].Ports = list(8999)
			}
		})
		s.addDual(2, nil)
		s.places["vm1"].Serve(t, 7999, 8000, 8500, 8501, 9000, 4999, 5000, 5010, 5011)
		lab.At("guest", v.Guest.File).Echo(t, 8200)
		lab.At("guest", v.Guest.File).Echo(t, 8999)
		s.run()
		s.check(t,
			flow{"host", "vm1's", "tcp", 8000, "host"},
			flow{"outside", "vm1's", "tcp", 8501, "outside"},
			flow{"vm2", "vm1's", "tcp", 8500, "vm2's"},
			flow{"peer", "vm1's", "udp", 5000, "peer"},
			flow{"host", "vm1's", "udp", 5010, "host"},
			flow{"host", "vm1's", "icmp", 0, "host"},
			flow{"host", "vm1's", "tcp", 7999, ""},
			flow{"outside", "vm1's", "tcp", 9000, ""},
			flow{"peer", "vm1's", "tcp", 5000, ""},
			flow{"host", "vm1's", "udp", 4999, ""},
			flow{"vm2", "vm1's", "udp", 5011, ""},
			flow{"host", "vm1's", "udp", 8000, ""},
		)
		inside, outside := s.connections(t, v, 8200), s.connections(t, v, 8999)
		for i := range v.nat.Bindings {
			v.nat.Bindings[i].Ports = list(8501)
		}
		s.describe(v)
		for _, conn := range outside {
			s.await("a connection outside the range ends", func() bool { return !lab.Alive(conn, silence) })
		}
		for _, conn := range inside {
			if !lab.Alive(conn, answered) {
				t.Error("a connection inside the range broke")
			}
		}
		s.check(t, flow{"host", "vm1's", "tcp", 8501, "host"}, flow{"host", "vm1's", "tcp", 8999, ""})
	})
}

// connections calls an echo server at each floating address of v.
func (s *suite) connections(t *testing.T, v *dual, port int) (list []net.Conn) {
	t.Helper()
	for _, to := range v.floating {
		conn, err := s.places["host"].Dial("tcp", to.String(), port, 0, answered)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if !lab.Alive(conn, answered) {
			t.Fatalf("the connection to %s does not work", to)
		}
		list = append(list, conn)
	}
	return list
}

// counts wants traffic of the n-th VM both ways, and refusals, in the agent's metrics.
func (s *suite) counts(t *testing.T, n int) {
	t.Helper()
	s.await("the counters", func() bool {
		s.agent.Recheck()
		var out strings.Builder
		s.agent.WriteMetrics(&out)
		found := 0
		for line := range strings.Lines(out.String()) {
			for _, direction := range []string{"in", "out", "refused"} {
				if strings.HasPrefix(line, "floatip_address_packets_total") && strings.Contains(line, `"192.168.100.51"`) &&
					strings.Contains(line, `"`+direction+`"`) && !strings.HasSuffix(strings.TrimSpace(line), " 0") {
					found++
				}
			}
		}
		return found == 3
	})
}

// TestFirewall: the allow list holds on each packet of a caller. A shorter list cuts connections that it does not admit
// any more; the guest's own calls and its answers are no business of it.
func TestFirewall(t *testing.T) {
	t.Parallel()
	eachDelivery(t, func(t *testing.T, s *suite) {
		v := s.addDual(1, nil)
		s.run()
		lab.At("guest", v.Guest.File).Echo(t, 7)
		for _, to := range v.floating {
			conn, err := s.places["host"].Dial("tcp", to.String(), 7, 0, answered)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if !lab.Alive(conn, answered) {
				t.Fatal("the connection does not work")
			}
			defer func() {
				if lab.Alive(conn, silence) {
					t.Errorf("a connection to %s that the list does not admit goes on", to)
				}
			}()
		}
		v.nat.Firewall = &floatip.Firewall{
			Ingress: admitted(t, "198.51.100.0/24 tcp/20-30", "192.168.100.0/24 icmp", "2001:db8:f::/64 tcp/20-30",
				"2001:db8:100::/64 icmp"),
			Egress: floatip.Admitted{Everything: true},
		}
		s.describe(v)
		for _, to := range v.floating { // the families are written one after the other
			s.await("the list", func() bool {
				_, err := s.places["host"].Ask("tcp", to.String(), 22, 0, silence)
				return err != nil
			})
		}
		s.check(t,
			flow{"outside", "vm1's", "tcp", 22, "outside"},
			flow{"host", "vm1's", "icmp", 0, "host"},
			flow{"outside", "vm1's", "tcp", 80, ""},
			flow{"outside", "vm1's", "icmp", 0, ""},
			flow{"host", "vm1's", "tcp", 22, ""},
			flow{"peer", "vm1's", "tcp", 22, ""},
			flow{"vm1", "host", "tcp", 80, "vm1's"},
			flow{"vm1", "outside", "udp", 80, "vm1's"},
			flow{"peer", "vm1's pod", "tcp", 80, "peer"},
		)
	})
}

// TestAgain: an agent that is stopped and started finds all in place, and what somebody else removes comes back.
func TestAgain(t *testing.T) {
	t.Parallel()
	eachDelivery(t, func(t *testing.T, s *suite) {
		v := s.addDual(1, nil)
		empty := inventory(t, s.node.Namespace, v.Namespace)
		s.run()
		before := inventory(t, s.node.Namespace, v.Namespace)
		stream := startEcho(t, v.Guest, s.world.Host, v.floating[0].String()+":7")
		end := stream.flow(time.Millisecond)
		s.stop()
		s.start()
		s.publish()
		s.allReady()
		if sent, lost := end(); lost != 0 {
			t.Errorf("%d of %d packets were lost around the restart, want none", lost, sent)
		}
		if changes := s.agent.changes(); changes != 0 {
			t.Errorf("the second agent made %d changes to a kernel that held all", changes)
		}
		if diff := cmp.Diff(before, inventory(t, s.node.Namespace, v.Namespace)); diff != "" {
			t.Errorf("kernel after a restart (-before +after):\n%s", diff)
		}
		if s.delivery != floatip.DeliveryLeg {
			s.node.Run("ip route flush table 7101", "ip -6 route flush table 7101", "nft delete table ip floatip",
				"nft flush chain ip6 floatip mark_in")
			s.node.Sysctl("ipv4/conf/red0/src_valid_mark=0")
			s.agent.Recheck()
			s.await("repair", func() bool {
				return cmp.Equal(before, inventory(t, s.node.Namespace, v.Namespace)) &&
					s.node.ReadSysctl("ipv4/conf/red0/src_valid_mark") == "1"
			})
		}

		stream.pass(3)
		s.view.Pods = slices.Clone(s.view.Pods)
		s.view.Pods[0].Final = true
		s.publish()
		s.awaitReport("gone", func(r Report) bool { return len(r.Statuses) == 0 })
		if !stream.dead(time.Second) {
			t.Error("an old flow still passes a second after the address was withdrawn")
		}
		if diff := cmp.Diff(empty, inventory(t, s.node.Namespace, v.Namespace)); diff != "" && s.delivery != floatip.DeliveryLeg {
			t.Errorf("left behind (-before +after):\n%s", diff)
		}
		if flows := s.node.Flows(v.floating[0]); flows != 0 {
			t.Errorf("connection tracking of the node still knows %d flows", flows)
		}
	})
}

// TestNewPod: the VM is started anew, in another pod with another address, before anybody saw the first one end. What
// is tracked of the first must not lead there.
func TestNewPod(t *testing.T) {
	t.Parallel()
	s := newSuite(t, floatip.DeliveryNodeNAT)
	old := s.addDual(1, nil)
	s.run()
	stream := startEcho(t, old.Guest, s.world.Host, "192.168.100.51:7")
	stream.pass(3)
	pod := s.node.AddPod("3", "100.0.0.3")
	nodetest.KubeVirt(t, pod)
	lab.At("guest", pod.Guest.File).Serve(t, 7)
	s.view.Pods = slices.Clone(s.view.Pods)
	next := s.view.Pods[0]
	next.UID, next.Created = strings.Replace(next.UID, "0001", "0003", 1), 1
	next.IPv4, next.IPv6 = netip.MustParseAddr("100.0.0.3"), netip.MustParseAddr("fd30::3")
	s.view.Pods[0].Final = true
	s.view.Pods = append(s.view.Pods, next)
	s.publish()
	s.await("the new pod", func() bool {
		_, err := s.places["host"].Ask("tcp", "192.168.100.51", 7, 0, silence)
		return err == nil
	})
	if !stream.dead(time.Second) {
		t.Error("a flow of the address still reaches the old pod")
	}
}
