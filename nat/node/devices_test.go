//go:build secondkernel

package node

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/nodetest"
)

// TestOnDevices: on links of each kind that a provider NIC may be, as this kernel makes them, an address is tested, announced
// and answered for, on the right VLAN alone, and the guest is reached and reaches others, by the ordinary way and the fast path.
func TestOnDevices(t *testing.T) {
	for _, k := range []kind{vlan, vlanInVLAN, aggregate, bridgeOfVLANs} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			s := fastSuite(t)
			k.lay(s.bench)
			s.travels(t, k.tags)
		})
	}
}

// travels starts the agent and looks at everything that the NIC is for. Tags are those that the LAN must see.
func (s *suite) travels(t *testing.T, tags string) {
	t.Helper()
	var taps []*tap
	for _, cable := range s.cables() {
		taps = append(taps, s.tap(s.world.LAN, cable))
	}
	s.run()
	nic, mac := s.nic, s.mac()
	for _, line := range s.status().Addresses {
		if line.Interface != nic {
			t.Errorf("%s is on %q, want %s", line.Address, line.Interface, nic)
		}
	}
	for _, a := range s.guests["vm1"].floating {
		for _, what := range []string{"probe", "announcement"} {
			s.await(fmt.Sprintf("a %s of %s, tagged %q, from %s", what, a, tags, mac), func() bool {
				for _, tap := range taps {
					if tap.saw(sighting{what, a, tags, mac}) {
						return true
					}
				}
				return false
			})
		}
	}
	if said, err := s.world.Host.Probe(s.hostNIC(), s.guests["vm1"].floating[0], answered); err != nil || said != mac {
		t.Errorf("who is there: %q, %v; want %s", said, err, mac)
	}
	var flows []flow
	for _, protocol := range []string{"tcp", "udp", "icmp"} {
		flows = append(flows, flow{"host", "vm1's", protocol, 80, "host"}, flow{"outside", "vm1's", protocol, 80, "outside"},
			flow{"vm1", "host", protocol, 80, "vm1's"}, flow{"vm1", "outside", protocol, 80, "vm1's"})
	}
	s.check(t, flows...)
	for family := range 2 {
		s.passesFast(t, "host", s.names["vm1's"][family])
		s.passesFast(t, "vm1", s.names["outside"][family])
	}
	for _, tap := range taps {
		for _, other := range tap.others(tags) {
			t.Errorf("on the wire is %+v, want nothing of a floating address with other tags than %q", other, tags)
		}
	}
}

// passesFast wants packets of an established connection not to be routed on the node, small ones and full ones.
func (s *suite) passesFast(t *testing.T, from, to string) {
	t.Helper()
	conn := s.dialed(t, from, "tcp", to, 7)
	s.exchange(t, conn, []byte("!"))
	before := s.forwarded(t)
	for range 5 {
		s.exchange(t, conn, []byte("!"))
	}
	data := bytes.Repeat([]byte("x"), 20000)
	go conn.Write(data)
	conn.SetReadDeadline(time.Now().Add(answered))
	if n, err := io.ReadFull(conn, make([]byte, len(data))); err != nil {
		t.Errorf("%s to %s: %d of %d bytes came back: %v", from, to, n, len(data), err)
	}
	// A packet that is repeated before its connection is a flow may come late.
	if after := s.forwarded(t); after-before > 3 {
		t.Errorf("%s to %s: the node has routed %d packets of an established connection", from, to, after-before)
	}
}

func (s *suite) status() NodeStatus {
	s.t.Helper()
	status, err := AskStatus(s.t.Context(), s.node.File)
	if err != nil {
		s.t.Fatal(err)
	}
	return status
}

// TestBondFailsOver: the active port of a bond loses its link while connections run, whether the bond keeps its Ethernet address
// or takes that of the other port (fail_over_mac). They go on by the other port, and the LAN hears there who has the floating
// addresses: neither the bond nor what stands on it has an address of its own for which the kernel would say so.
func TestBondFailsOver(t *testing.T) {
	for name, tt := range map[string]struct {
		policy, nic, tags string
		lay               []string
	}{
		"none":   {"none", "bond0.100", "802.1Q 100", []string{"ip link add link bond0 name bond0.100 type vlan id 100", "ip link set bond0.100 up"}},
		"active": {"active", "bond0", "", nil},
		"bridge": {"none", "br-ext", "", []string{
			"ip link add br-ext type bridge", "ip link set bond0 master br-ext", "ip link set br-ext up"}},
		"VLAN in a bridge": {"none", "br-ext", "802.1Q 100", []string{
			"ip link add link bond0 name bond0.100 type vlan id 100", "ip link set bond0.100 up",
			"ip link add br-ext type bridge", "ip link set bond0.100 master br-ext", "ip link set br-ext up"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := fastSuite(t)
			s.bare()
			s.bond("active-backup fail_over_mac " + tt.policy)
			s.node.Run("ip link set bond0 type bond active_slave red0")
			if tt.tags != "" {
				trunk(s.bench)
			}
			s.node.Run(tt.lay...)
			pool := s.view.Pools["lan"]
			pool.Interface = tt.nic
			s.view.Pools["lan"] = pool
			s.run()
			var streams []*echo
			for _, a := range s.guests["vm1"].floating {
				stream := startEcho(t, s.guests["vm1"].Guest, s.world.Host, netip.AddrPortFrom(a, 7).String())
				stream.pass(1)
				streams = append(streams, stream)
			}
			conn := s.dialed(t, "host", "tcp", s.names["vm1's"][0], 7)
			s.await("the first announcements to be over", func() bool {
				for _, line := range s.status().Addresses {
					if time.Since(line.Announced) < 3*time.Second { // they are closer together than that, and the next ones are far away
						return false
					}
				}
				return true
			})
			tap := s.tap(s.world.LAN, "n10b")
			s.world.LAN.Run("ip link set n10 down")
			s.await("the other port", func() bool {
				return s.node.Get("bond0").(*netlink.Bond).ActiveSlave == s.node.Get("red1").Attrs().Index
			})
			mac := s.node.Get(tt.nic).Attrs().HardwareAddr.String()
			for i, a := range s.guests["vm1"].floating {
				s.await(fmt.Sprintf("an announcement of %s by the other port", a), func() bool {
					return tap.saw(sighting{"announcement", a, tt.tags, mac})
				})
				s.await("an answer by the other port", func() bool { return streams[i].send(100 * time.Millisecond) })
			}
			s.exchange(t, conn, []byte("!"))
		})
	}
}

// TestVRF: a NIC that is in a VRF is refused, and the refusal says what to do. Taken out of it, it works.
func TestVRF(t *testing.T) {
	t.Parallel()
	s := newSuite(t, floatip.DeliveryLeg)
	s.addDual(1, nil)
	s.node.Run("ip link add blue type vrf table 10", "ip link set blue up", "ip link set red0 master blue")
	s.node.Address("red0", s.cidrs()[1]) // the kernel took it when the NIC changed its table
	s.refused(t, "red0 is in the VRF blue", "take it out")
	s.node.Run("ip link set red0 nomaster")
	s.node.Address("red0", s.cidrs()[1])
	s.allReady()
	s.check(t, flow{"host", "vm1's", "tcp", 80, "host"}, flow{"vm1", "outside", "udp", 80, "vm1's"})
}

// refused starts the agent and wants each address to be refused in these words.
func (s *suite) refused(t *testing.T, words ...string) {
	t.Helper()
	s.start()
	s.publish()
	s.awaitReport("a node without the pool", func(r Report) bool {
		carries, known := r.Pools["lan"]
		return known && !carries
	})
	for _, one := range s.status().Refused {
		for _, word := range words {
			if !strings.Contains(one.Reason, word) {
				t.Errorf("%s is refused with %q, want %q in it", one.Address, one.Reason, word)
			}
		}
	}
	if len(s.status().Refused) != 2 {
		t.Errorf("refused are %+v, want both addresses", s.status().Refused)
	}
}

// TestOpenVSwitch: of a bridge of Open vSwitch the internal port is a provider NIC. One of its other ports is refused, with what
// to name instead.
func TestOpenVSwitch(t *testing.T) {
	t.Parallel()
	s := fastSuite(t)
	s.bare()
	const state = "/tmp/openvswitch"
	const database = "unix:" + state + "/db.sock"
	s.node.Run("mkdir -p "+state, "ovsdb-tool create "+state+"/conf.db /usr/share/openvswitch/vswitch.ovsschema",
		"env OVS_RUNDIR="+state+" ovsdb-server --detach --no-chdir --pidfile --remote=p"+database+" "+state+"/conf.db",
		"ovs-vsctl --db="+database+" --no-wait init",
		"env OVS_RUNDIR="+state+" ovs-vswitchd --detach --no-chdir --pidfile "+database,
		"ovs-vsctl --db="+database+" add-br br-ex -- add-port br-ex red0")
	s.onto("br-ex")
	pool := s.view.Pools["lan"]
	pool.Interface = "red0"
	s.view.Pools["lan"] = pool
	s.refused(t, "red0 is a port of Open vSwitch", "name the internal port of its bridge")
	s.stop()
	pool.Interface = ""
	s.view.Pools["lan"] = pool
	s.travels(t, "")
}

// TestOtherVLANs: on a trunk whose untagged network is the provider's, what other VLANs say of the same addresses is no
// business of the agent's: it does not answer there, and it sees no conflict.
func TestOtherVLANs(t *testing.T) {
	t.Parallel()
	s := newSuite(t, floatip.DeliveryLeg)
	s.addDual(1, nil)
	v := s.guests["vm1"]
	other := nodetest.NewNamespace(t)
	s.world.LAN.Cable("other", other, "eth0")
	s.world.LAN.Enslave("br", "other")
	s.world.LAN.Run("ip link set dev br type bridge vlan_filtering 1", "bridge vlan del dev other vid 1",
		"bridge vlan add dev other vid 200 pvid untagged", "bridge vlan add dev n10 vid 200")
	other.Address("eth0", v.floating[0].String()+"/24", v.floating[1].String()+"/64", "192.168.100.77/24")
	in, out := s.tap(s.node.Namespace, "red0"), s.tap(s.world.LAN, "n10")
	s.run()
	foreign := other.Get("eth0").Attrs().HardwareAddr.String()
	s.await("the other VLAN on the cable", func() bool {
		other.Claim("eth0", v.floating[0])
		return in.saw(sighting{"announcement", v.floating[0], "802.1Q 200", foreign})
	})
	s.check(t, flow{"host", "vm1's", "tcp", 80, "host"})
	if s.log.count("another host") > 0 {
		t.Error("what another VLAN says is a conflict")
	}
	other.Run("ip address flush dev eth0")
	if said, err := other.Probe("eth0", v.floating[0], silence); err == nil {
		t.Errorf("%s answers in another VLAN", said)
	}
	if others := out.others(""); len(others) > 0 {
		t.Errorf("the node says in other VLANs %+v", others)
	}
}
