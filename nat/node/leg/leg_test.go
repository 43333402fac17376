package leg

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"floatip.io/floatip/nat/node/nodetest"
	"floatip.io/floatip/test/lab"
)

// patience bounds every wait for an answer that must come.
const patience = time.Minute

var (
	floating  = netip.MustParseAddr("192.168.100.50")
	floating2 = netip.MustParseAddr("192.168.100.51")
	redLAN    = Network{
		Prefix: netip.MustParsePrefix(nodetest.Pool), Gateway: netip.MustParseAddr(nodetest.Gateway), Interface: "red0",
		MTU: 1500,
	}
	floating6  = netip.MustParseAddr("2001:db8:100::50")
	floating62 = netip.MustParseAddr("2001:db8:100::51")
	redLAN6    = Network{
		Prefix: netip.MustParsePrefix(nodetest.Pool6), Gateway: netip.MustParseAddr(nodetest.Gateway6), Interface: "red0",
		MTU: 1500,
	}
)

func clusterNetworks() (list []netip.Prefix) {
	for _, n := range nodetest.ClusterNetworks {
		list = append(list, netip.MustParsePrefix(n))
	}
	return list
}

// rig is a node under test with its pods.
type rig struct {
	t      *testing.T
	world  *nodetest.World
	node   *nodetest.Node
	kernel *Node
	pods   map[string]*nodetest.Pod
	config Config
}

func newRig(t *testing.T) *rig {
	t.Helper()
	w := nodetest.NewWorld(t)
	r := &rig{t: t, world: w, node: w.AddNode("10"), pods: map[string]*nodetest.Pod{}}
	kernel, err := Open(r.node.File, DefaultSysctls)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kernel.Close)
	r.kernel = kernel
	r.config = Config{Networks: []Network{redLAN, redLAN6}, ClusterNetworks: clusterNetworks()}
	return r
}

// addPod makes a pod whose rules translate address, and adds its leg to the configuration.
func (r *rig) addPod(uid, podIP string, addresses ...netip.Addr) *nodetest.Pod {
	r.t.Helper()
	p := r.node.AddPod(uid, podIP)
	r.pods[uid] = p
	nodetest.Translate(r.t, p, addresses...)
	r.config.Legs = append(r.config.Legs, Leg{Pod: uid, Addresses: addresses})
	p.Guest.Serve(uid, ":80")
	return p
}

// apply plugs and applies everything and returns the lines of changes.
func (r *rig) apply() []string {
	r.t.Helper()
	var changes []string
	var raised []*os.File
	h := r.holding()
	for _, l := range r.config.Legs {
		made, err := r.kernel.Plug(&h, l.Pod, r.pods[l.Pod].File)
		if err != nil {
			r.t.Fatal(err)
		}
		if made {
			changes = append(changes, "plugged "+l.Pod)
		}
		report, err := ApplyPod(r.pods[l.Pod].File, DefaultSysctls, Pod{UID: l.Pod, Addresses: l.Addresses, MTU: redLAN.MTU})
		if err != nil {
			r.t.Fatal(err)
		}
		changes = append(changes, report.Changes...)
		if report.Raised {
			raised = append(raised, r.pods[l.Pod].File)
		}
	}
	if err := AwaitPods(raised); err != nil {
		r.t.Fatal(err)
	}
	report, err := r.kernel.ApplyTo(h, r.config)
	if err != nil {
		r.t.Fatal(err)
	}
	return append(changes, report.Changes...)
}

func (r *rig) holding() Holding {
	r.t.Helper()
	h, err := r.kernel.Holding()
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

// TestFlows shows who reaches whom through the leg, and as whom.
func TestFlows(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a := r.addPod("a", "100.0.0.5", floating)
	b := r.addPod("b", "100.0.0.6", floating2)
	t.Log(strings.Join(r.apply(), "\n"))

	r.world.Host.Serve("lan", nodetest.LANHost+":80")
	r.world.Host.Serve("beyond", nodetest.Beyond+":80")
	r.world.Cluster.Serve("peer", nodetest.Peer+":80")
	r.node.Serve("node", "201.0.0.10:80")

	for _, flow := range []struct {
		from    *nodetest.Namespace
		to      string
		answers string
	}{
		{r.world.Host, "192.168.100.50:80", "a sees " + nodetest.Gateway},
		{r.world.Host, "192.168.100.51:80", "b sees " + nodetest.Gateway},
		{a.Guest, nodetest.LANHost + ":80", "lan sees 192.168.100.50"},
		{a.Guest, nodetest.Beyond + ":80", "beyond sees 192.168.100.50"},
		{b.Guest, nodetest.Beyond + ":80", "beyond sees 192.168.100.51"},
		{a.Guest, nodetest.Peer + ":80", "peer sees 100.0.0.5"},
		{a.Guest, "201.0.0.10:80", "node sees 100.0.0.5"},
		{a.Guest, "192.168.100.51:80", "b sees 192.168.100.50"},
		{a.Guest, "192.168.100.50:80", "a sees 192.168.100.50"},
		{b.Namespace, "192.168.100.50:80", "a sees 100.0.0.6"},
		{r.world.Cluster, "192.168.100.50:80", "a sees " + nodetest.Peer},
		{r.node.Namespace, "192.168.100.50:80", "a sees 192.168.100.10"},
	} {
		t.Run(flow.to, func(t *testing.T) {
			said, err := flow.from.Ask(flow.to, patience)
			if err != nil || said != flow.answers {
				t.Errorf("ask %s: have %q, %v; want %q", flow.to, said, err, flow.answers)
			}
		})
	}
}

// TestFirstPacketArrives: a client that comes at the very moment the leg stands waits no second for its SYN to be sent
// again (RFC 6298 section 2): each SYN of its reaches the guest, and each answer comes back.
func TestFirstPacketArrives(t *testing.T) {
	t.Parallel()
	for range 5 {
		r := newRig(t)
		guest := r.addPod("a", "100.0.0.5", floating).Guest
		for _, ns := range []*nodetest.Namespace{r.world.Host, guest} {
			lab.At("", ns.File).NFT(t, handshakes)
		}
		r.apply()
		if _, err := r.world.Host.Ask("192.168.100.50:80", patience); err != nil {
			t.Fatal(err)
		}
		// A busy machine sends packets again that arrived late; those that were lost are missing for ever.
		var sent, came [2]string
		all := nodetest.Until(patience, func() bool {
			sent = [2]string{counted(t, r.world.Host, "sent"), counted(t, guest, "sent")}
			came = [2]string{counted(t, guest, "came"), counted(t, r.world.Host, "came")}
			return sent == came
		})
		if !all || sent[0] == "0" || sent[0] == "" {
			t.Fatalf("packets of the handshake, there and back: sent %q, came %q", sent, came)
		}
	}
}

// handshakes counts SYNs and the answers to them.
const handshakes = `
table inet handshakes {
	counter sent { }
	counter came { }
	chain out { type filter hook output priority 0;
		tcp dport 80 tcp flags & syn == syn counter name sent
		tcp sport 80 tcp flags & syn == syn counter name sent
	}
	chain in { type filter hook input priority 0;
		tcp dport 80 tcp flags & syn == syn counter name came
		tcp sport 80 tcp flags & syn == syn counter name came
	}
}`

func counted(t *testing.T, ns *nodetest.Namespace, counter string) string {
	t.Helper()
	_, figures, _ := strings.Cut(lab.At("", ns.File).Run(t, "", "nft", "list", "counter", "inet", "handshakes", counter), "packets ")
	packets, _, _ := strings.Cut(figures, " ")
	return packets
}

// TestFlows6 is TestFlows in IPv6.
func TestFlows6(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a := r.addPod("a", "100.0.0.5", floating, floating6)
	b := r.addPod("b", "100.0.0.6", floating2, floating62)
	t.Log(strings.Join(r.apply(), "\n"))
	r.world.Host.Serve("lan", "["+nodetest.LANHost6+"]:80")
	r.world.Host.Serve("beyond", "["+nodetest.Beyond6+"]:80")
	r.world.Cluster.Serve("peer", "["+nodetest.Peer6+"]:80")
	r.node.Serve("node", "[fd20::10]:80")
	for _, flow := range []struct {
		from    *nodetest.Namespace
		to      string
		answers string
	}{
		{r.world.Host, "[2001:db8:100::50]:80", "a sees " + nodetest.Gateway6},
		{a.Guest, "[" + nodetest.LANHost6 + "]:80", "lan sees 2001:db8:100::50"},
		{a.Guest, "[" + nodetest.Beyond6 + "]:80", "beyond sees 2001:db8:100::50"},
		{a.Guest, "[" + nodetest.Peer6 + "]:80", "peer sees fd30::5"},
		{a.Guest, "[fd20::10]:80", "node sees fd30::5"},
		{a.Guest, "[2001:db8:100::51]:80", "b sees 2001:db8:100::50"},
		{a.Guest, "[2001:db8:100::50]:80", "a sees 2001:db8:100::50"},
		{b.Namespace, "[2001:db8:100::50]:80", "a sees fd30::6"},
		{r.world.Cluster, "[2001:db8:100::50]:80", "a sees " + nodetest.Peer6},
	} {
		t.Run(flow.to, func(t *testing.T) {
			said, err := flow.from.Ask(flow.to, patience)
			if err != nil || !sameAnswer(said, flow.answers) {
				t.Errorf("ask %s: have %q, %v; want %q", flow.to, said, err, flow.answers)
			}
		})
	}
	if again := r.apply(); len(again) != 0 {
		t.Errorf("the second Apply changed:\n%s", strings.Join(again, "\n"))
	}
}

// sameAnswer: the LAN host has two addresses of the network and may take either.
func sameAnswer(said, want string) bool {
	return said == want || strings.Replace(said, nodetest.LANHost6, nodetest.Gateway6, 1) == want
}

// TestSecondApplyChangesNothing: the kernel holds all that the agent wants, and the agent sees that.
func TestSecondApplyChangesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.addPod("a", "100.0.0.5", floating)
	r.addPod("b", "100.0.0.6", floating2)
	if first := r.apply(); len(first) == 0 {
		t.Fatal("the first Apply changed nothing")
	}
	if again := r.apply(); len(again) != 0 {
		t.Errorf("the second Apply changed:\n%s", strings.Join(again, "\n"))
	}
}

// TestNothingStaysBehind compares the node before the first address came and after the last one left.
func TestNothingStaysBehind(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	before := r.node.Inventory()
	r.addPod("a", "100.0.0.5", floating, floating6)
	r.apply()
	if cmp.Equal(before, r.node.Inventory()) {
		t.Fatal("a plugged leg is not in the inventory")
	}
	r.config.Legs = nil
	report, err := r.kernel.Apply(r.config)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]netip.Addr{floating, floating6}, report.Withdrawn, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("withdrawn (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, r.node.Inventory()); diff != "" {
		t.Errorf("left behind (-before +after):\n%s", diff)
	}
	if again, err := r.kernel.Apply(r.config); err != nil || len(again.Changes) != 0 {
		t.Errorf("a second Apply of nothing: %v, %v", again.Changes, err)
	}
}

func parseAddr(t *testing.T, cidr string) *netlink.Addr {
	t.Helper()
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
