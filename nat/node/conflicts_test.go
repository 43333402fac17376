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
	"floatip.io/floatip/nat"
	"floatip.io/floatip/nat/node/announce"
	"floatip.io/floatip/nat/node/nodetest"
)

func TestUsable(t *testing.T) {
	here := Grant{Pod: Pod{UID: "u1"}, Mode: Active, Addresses: []netip.Addr{fifty}}
	moved := here
	moved.InUse = []netip.Addr{fifty}
	staged := here
	staged.Mode = Staged
	for _, tt := range []struct {
		name     string
		grant    Grant
		known    tests
		already  bool
		standing announce.State
		want     bool
	}{
		{"a new address is tested first", here, tests{}, false, "", false},
		{"while it is tested it is not used", here, tests{}, false, announce.Probing, false},
		{"nobody answered", here, tests{}, false, announce.Free, true},
		{"somebody has it", here, tests{}, false, announce.Taken, false},
		{"somebody has it, though it was free before", here, tests{fifty: "u1"}, true, announce.Taken, false},
		{"it was found free for this pod", here, tests{fifty: "u1"}, false, "", true},
		{"it was found free for another pod", here, tests{fifty: "u0"}, false, "", false},
		{"an earlier agent used it", here, tests{}, true, "", true},
		{"it came by a live migration", moved, tests{}, false, "", true},
		{"contested is in use", here, tests{fifty: "u1"}, true, announce.Contested, true},
		{"a staged one is used on another node", staged, tests{}, false, "", true},
	} {
		if have := tt.known.usable(tt.grant, tt.grant.Mode, fifty, tt.already, announce.Standing{State: tt.standing}); have != tt.want {
			t.Errorf("%s: usable is %t, want %t", tt.name, have, tt.want)
		}
	}
}

// taken is what the report says while the host has the address.
func (b *bench) taken(a netip.Addr) func(Report) bool {
	host := b.world.Host.Get("eth0").Attrs().HardwareAddr.String()
	return func(r Report) bool {
		c := r.Statuses[a].ConflictFree
		return !c.True && c.Reason == floatip.ReasonAddressTaken && strings.Contains(c.Message, host+" on red0") &&
			r.Statuses[a].Ready() == c
	}
}

// patientProbe is how long the agent waits for an answer to its probes where another host has the address, and may be slow on
// a busy machine.
const patientProbe = time.Second

// TestAddressTaken: a foreign host has both addresses of a pod. Nothing is said or sent for them, the neighbour pod works,
// an agent that restarts knows no better, and when the host gives one of them up it works.
func TestAddressTaken(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.timing.Wait = patientProbe
	b.dualStack()
	b.world.Host.Address("eth0", "192.168.100.50/24", "2001:db8:100::50/64")
	v := b.addVM(1, "192.168.100.50", "2001:db8:100::50")
	b.addVM(2, "192.168.100.51")
	b.start()
	b.publish()
	both := func(r Report) bool { return b.taken(fifty)(r) && b.taken(fifty6)(r) }
	b.awaitReport("conflict", func(r Report) bool { return both(r) && ready("192.168.100.51")(r) })
	b.tells(`floatip_agent_conflicts{state="taken"} 2`)
	b.answers("vm2", "192.168.100.51")

	heard := b.hearUDP("192.168.100.200:9", "[2001:db8:100::200]:9")
	silent := func(when string) {
		t.Helper()
		if have := b.holding().Answered["red0"]; !slices.Equal(have, []netip.Addr{netip.MustParseAddr("192.168.100.51")}) {
			t.Errorf("%s the kernel answers for %v, want the neighbour's alone", when, have)
		}
		v.SendMarked(nat.LegMark, "192.168.100.50", "192.168.100.200:9")
		v.SendMarked(nat.LegMark, "2001:db8:100::50", "[2001:db8:100::200]:9")
		select {
		case from := <-heard:
			t.Errorf("%s the LAN heard from %s, which another host has", when, from)
		case <-time.After(200 * time.Millisecond):
		}
	}
	v.Address("lo", "192.168.100.50/32", "2001:db8:100::50/128")
	silent("in the conflict")
	b.stop()
	b.start()
	b.publish()
	b.awaitReport("conflict after a restart", both)
	silent("after a restart")

	b.world.Host.Remove("eth0", "2001:db8:100::50/64")
	b.awaitReport("the conflict about one is over", func(r Report) bool {
		return b.taken(fifty)(r) && ready("2001:db8:100::50")(r)
	})
	said, err := b.world.Host.Ask("[2001:db8:100::50]:80", patience)
	if err != nil || !strings.HasPrefix(said, "vm1 sees") {
		t.Errorf("ask the guest by IPv6: %q, %v", said, err)
	}
	b.world.Host.Remove("eth0", "192.168.100.50/24")
	b.awaitReport("the conflict is over", ready("192.168.100.50"))
	b.answers("vm1", "192.168.100.50")
	b.tells(`floatip_agent_conflicts{state="taken"} 0`)
}

// tells waits until the agent's metrics have the line.
func (b *bench) tells(line string) {
	b.t.Helper()
	b.await("the line "+line+" of the metrics", func() bool {
		var out strings.Builder
		b.agent.WriteMetrics(&out)
		return strings.Contains(out.String(), "\n"+line+"\n")
	})
}

// hearUDP returns from whom packets come to addresses of the LAN host.
func (b *bench) hearUDP(addresses ...string) <-chan string {
	b.t.Helper()
	heard := make(chan string, 16)
	for _, address := range addresses {
		var lan net.PacketConn
		b.world.Host.Do(func() (err error) {
			lan, err = net.ListenPacket("udp", address)
			return err
		})
		b.t.Cleanup(func() { lan.Close() })
		go func() {
			buf := make([]byte, 64)
			for {
				_, from, err := lan.ReadFrom(buf)
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(from.String())
				heard <- host
			}
		}()
	}
	return heard
}

// TestMigrationIsNotProbed: the guest comes with its address, which is in use. A probe would find the guest itself.
func TestMigrationIsNotProbed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.addVM(1, "192.168.100.50")
	entry := &b.view.Pods[0]
	entry.MigrationTarget, entry.GuestArrived = true, true
	// The source still has it, and its agent's Ethernet address is known.
	b.world.Host.Address("eth0", "192.168.100.50/24")
	b.view.Peers["node11"] = floatip.NodeAgent{MACs: []string{b.world.Host.Get("eth0").Attrs().HardwareAddr.String()}}
	b.start()
	b.publish()
	b.awaitReport("ready", ready("192.168.100.50"))
	for nic, f := range b.agent.responders.figures() {
		if f[4].Probes != 0 || f[4].Claims != 0 {
			t.Errorf("%s: %d probes, %d claims heard; want none", nic, f[4].Probes, f[4].Claims)
		}
	}
}

// TestUnprovenAddressMoves: no node could say so far that nobody else has the address, and its guest migrates. The new node asks
// before it answers; that the guest is heard there is no reason not to.
func TestUnprovenAddressMoves(t *testing.T) {
	t.Parallel()
	r := newRoad(t)
	held := r.to.view.Addresses[fifty]
	held.Unproven = true
	r.to.view.Addresses = map[netip.Addr]Held{fifty: held}
	r.begin()
	r.listened()
	r.cut()
	r.arrived()
	if f := r.to.agent.responders.figures()["red0"][4]; f.Probes == 0 {
		t.Errorf("%s was taken over without a question: %+v", fifty, f)
	}
	r.here("moved", r.to, r.from)
	r.finish()
}

// TestUnasked: a router on the LAN answers for every address. A pool that says so has its addresses used all the same,
// also those that were found taken before.
func TestUnasked(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	// The kernel of such a router answers no probe (arp_process in net/ipv4/arp.c), but announcements: those of the trial.
	b.timing.Trial = time.Minute
	// Proxy ARP answers for what the kernel routes elsewhere (arp_fwd_proxy in net/ipv4/arp.c).
	b.world.Host.Sysctl("ipv4/conf/eth0/proxy_arp=1", "ipv4/neigh/eth0/proxy_delay=0", "ipv4/ip_forward=1")
	b.world.Host.Route("192.168.100.50/32", "", "lo")
	b.addVM(1, "192.168.100.50")
	b.start()
	b.publish()
	b.awaitReport("taken", b.taken(fifty))
	p := b.view.Pools["lan"]
	p.Unasked = true
	b.view.Pools = map[string]Pool{"lan": p}
	b.publish()
	b.awaitReport("ready", ready("192.168.100.50"))
	b.world.Host.Run("ip route del 192.168.100.50/32") // the host is the router, and has to find the guest itself now
	b.answers("vm1", "192.168.100.50")
}

// TestContested: a host takes an address that is in use. Its connections go on, and the condition names the host.
func TestContested(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.timing.Quiet = 5 * time.Second // the reports of that time are looked at, on a busy machine too
	v := b.addVM(1, "192.168.100.50")
	b.start()
	b.publish()
	b.awaitReport("ready", ready("192.168.100.50"))
	stream := startEcho(t, v.Guest, b.world.Host, "192.168.100.50:7")
	stream.pass(5)
	foreign := nodetest.NewNamespace(t)
	b.world.LAN.Cable("foreign", foreign, "eth0")
	b.world.LAN.Enslave("br", "foreign")
	foreign.Address("eth0", "192.168.100.50/24")
	foreign.Claim("eth0", fifty)
	mac := foreign.Get("eth0").Attrs().HardwareAddr.String()
	r := b.awaitReport("contested", func(r Report) bool {
		return r.Statuses[fifty].ConflictFree.Reason == floatip.ReasonAddressContested
	})
	if s := r.Statuses[fifty]; !strings.Contains(s.ConflictFree.Message, mac+" on red0") || !s.Ready().True {
		t.Errorf("status is %+v, want Ready and the foreign address %s on red0", s, mac)
	}
	b.tells(`floatip_agent_conflicts{state="contested"} 1`)
	b.tells(`floatip_agent_defences_total{interface="red0",family="IPv4"} 1`)
	stream.pass(5)
	if !stream.send(patience) {
		t.Error("the connection broke")
	}
	b.awaitReport("over", func(r Report) bool { return r.Statuses[fifty].ConflictFree.True })
	if diff := cmp.Diff(uint64(1), b.agent.responders.figures()["red0"][4].Defences); diff != "" {
		t.Errorf("defences (-want +got):\n%s", diff)
	}
}
