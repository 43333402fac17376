package node

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/nat/node/nodetest"
)

// change gives a running VM other addresses, as the webhook does in the description of its pod.
func (b *bench) change(v *vm, addresses ...netip.Addr) {
	b.t.Helper()
	owner := floatip.Owner{Namespace: "prod", Name: v.entry.Machine.Name, UID: "vm-" + v.entry.UID}
	d := nodetest.Describe(owner, addresses...)
	text, err := d.Encode()
	if err != nil {
		b.t.Fatal(err)
	}
	b.view.Pods = slices.Clone(b.view.Pods)
	for i := range b.view.Pods {
		if b.view.Pods[i].UID == v.entry.UID {
			b.view.Pods[i].NAT = text
		}
	}
	old := b.view.Addresses
	b.view.Addresses = map[netip.Addr]Held{}
	for a, h := range old {
		if h.Owner.UID != owner.UID {
			b.view.Addresses[a] = h
		}
	}
	for _, a := range addresses {
		b.view.Addresses[a] = Held{Pool: "lan", Owner: owner}
	}
	nodetest.Install(b.t, v.Pod, d)
	v.sidecar.set(installed(addresses...))
	b.publish()
}

// TestAddressChanges: a running VM gets other addresses, as after a conflict. Old connections are dead within a second, the
// new addresses are asked about, announced and reachable, and nothing of the old ones stays.
func TestAddressChanges(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.dualStack()
	v := b.addVM(1, "192.168.100.50", "2001:db8:100::50")
	b.start()
	b.publish()
	b.awaitReport("ready", ready("192.168.100.50", "2001:db8:100::50"))
	streams := []*echo{
		startEcho(t, v.Guest, b.world.Host, "192.168.100.50:7"), startEcho(t, v.Guest, b.world.Host, "[2001:db8:100::50]:7"),
	}
	for _, s := range streams {
		s.pass(5)
	}
	probes := b.agent.responders.figures()["red0"][4].Probes
	b.change(v, fiftyOne, netip.MustParseAddr("2001:db8:100::51"))
	b.awaitReport("ready at the new addresses", ready("192.168.100.51", "2001:db8:100::51"))
	for _, s := range streams {
		if !s.dead(time.Second) {
			t.Errorf("an old flow to %s still passes a second after the change", s.conn.RemoteAddr())
		}
	}
	b.answers("vm1", "192.168.100.51")
	if now := b.agent.responders.figures()["red0"][4].Probes; now == probes {
		t.Error("the new address was not asked about")
	}
	for _, line := range inventory(t, b.node.Namespace, v.Namespace) {
		if strings.Contains(line, "192.168.100.50") || strings.Contains(line, "2001:db8:100::50 ") {
			t.Errorf("left of the old addresses: %s", line)
		}
	}
}

// TestLeftovers: an agent finds what another version left that knew other pods: legs, entries, rules and routes of ours
// that nothing calls for any more. All of it goes, and what is needed works.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	numbers := regexp.MustCompile(`(red0_|fip[0-9a-f]{12}_|192.168.100.50 : )\d+`) // of links
	clean := newBench(t)
	clean.addVM(1, "192.168.100.50")
	clean.start()
	clean.publish()
	clean.awaitReport("ready", ready("192.168.100.50"))
	names := func(b *bench) (lines []string) {
		for _, line := range inventory(t, b.node.Namespace) {
			if !strings.Contains(line, "fe80::") && !strings.Contains(line, "link") && !strings.Contains(line, "bridge fdb") {
				lines = append(lines, numbers.ReplaceAllString(line, "$1"))
			}
		}
		return lines
	}
	want := names(clean)

	b := newBench(t)
	b.addVM(1, "192.168.100.50")
	for _, command := range []string{
		"ip link add fip0123456789ab type veth peer name gone", "ip link set fip0123456789ab up",
		"ip route add 192.168.100.66/32 dev fip0123456789ab table 7100 proto 119",
		"ip route add 192.168.100.67/32 dev fip0123456789ab table 7102 proto 119",
		"ip neigh add 192.168.100.66 lladdr 02:f1:00:00:00:66 dev fip0123456789ab nud permanent", "ip neigh add proxy 192.168.100.66 dev red0",
		"ip rule add pref 5000 to 172.16.0.0/24 lookup 7100 proto 119", "nft add table netdev floatip",
		"nft add chain netdev floatip old { type filter hook ingress device fip0123456789ab priority 0 ; }",
	} {
		b.node.Run(command)
	}
	b.start()
	b.publish()
	b.awaitReport("ready among leftovers", ready("192.168.100.50"))
	b.answers("vm1", "192.168.100.50")
	if diff := cmp.Diff(want, names(b)); diff != "" {
		t.Errorf("node (-that began clean +with leftovers):\n%s", diff)
	}
}

// TestReboot: nothing of the kernel's state is left, and KubeVirt starts the VM in a new pod.
func TestReboot(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	old := b.addVM(1, "192.168.100.50")
	b.start()
	b.publish()
	b.awaitReport("ready", ready("192.168.100.50"))
	b.stop()
	for _, command := range []string{
		"ip link del " + leg.PortName(old.entry.UID), "ip rule flush", "ip rule add pref 32766 lookup main", "nft flush ruleset",
		"ip route flush table 7101", "ip neigh flush dev red0",
	} {
		b.node.Run(command)
	}
	// The kubelet knows the old pod for a while; its sandbox is gone.
	old.sidecar.set(installed())
	b.view.Pods, b.view.Machines = nil, map[string]Machine{}
	b.addVM(2, "192.168.100.50")
	b.start()
	b.publish()
	b.awaitReport("ready after the reboot", func(r Report) bool {
		return ready("192.168.100.50")(r) && r.Statuses[fifty].Pod == "virt-launcher-vm2"
	})
	b.answers("vm2", "192.168.100.50")
	if probes := b.agent.responders.figures()["red0"][4].Probes; probes == 0 {
		t.Error("the LAN was not asked: somebody may have taken the address meanwhile")
	}
}
