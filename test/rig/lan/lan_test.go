package lan

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip/test/rig/reaper"
)

// crashed removes the LAN of a test that was killed, with the folder that testing gave it.
var crashed = reaper.Register("lan test", func(_ context.Context, dir string) error {
	return errors.Join(Remove(dir), os.RemoveAll(filepath.Dir(dir)))
})

// start returns a LAN that is removed when the test ends.
func start(t *testing.T, nodes int) *LAN {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("FLOATIP_TEST_ROOT") == "1" {
			t.Fatal("this test makes network namespaces: run it as root")
		}
		t.Skip("not root: cannot make network namespaces")
	}
	dir := t.TempDir()
	guard, err := crashed.Guard(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := guard.Dismiss(); err != nil {
			t.Error(err)
		}
	})
	l, err := Start(dir, nodes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func addPod(t *testing.T, l *LAN, node, id string) Pod {
	t.Helper()
	p, err := l.AddPod(node, id)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// pings reports whether one echo request from the namespace is answered within a second.
func pings(t *testing.T, from string, to netip.Addr, options ...string) bool {
	t.Helper()
	_, err := Exec(t.Context(), from, "ping", slices.Concat([]string{"-c1", "-w1"}, options, []string{to.String()})...)
	return err == nil
}

// patiently is pings for somebody who must answer, which may take longer on a busy machine.
func patiently(t *testing.T, from string, to netip.Addr, options ...string) bool {
	t.Helper()
	return pings(t, from, to, append(options, "-w30")...)
}

func TestMachinesReachEachOther(t *testing.T) {
	l := start(t, 2)
	one, two := addPod(t, l, "node-1", "pod-one"), addPod(t, l, "node-2", "pod-two")
	neighbour := addPod(t, l, "node-1", "pod-neighbour")
	type end struct {
		name, namespace string
		v4, v6          netip.Addr
	}
	podOne := end{"pod on node-1", one.Namespace, one.Address, one.Address6}
	podTwo := end{"pod on node-2", two.Namespace, two.Address, two.Address6}
	podNext := end{"its neighbour", neighbour.Namespace, neighbour.Address, neighbour.Address6}
	host := func(name string, h Host) end { return end{name, h.Namespace, h.Address, h.Address6} }
	node1, node2 := host("node-1", l.Nodes[0].Host), host("node-2", l.Nodes[1].Host)
	node2Red := end{"node-2 on red", "", l.Nodes[1].Provider, l.Nodes[1].Provider6}
	gateway, provider := host("gateway", l.Gateway), host("provider host", l.ProviderHost)
	outside := host("outside host", l.OutsideHost)

	for _, flow := range []struct {
		from, to end
		reaches  bool
	}{
		{podOne, podTwo, true},
		{podTwo, podOne, true},
		{podOne, podNext, true},
		{podOne, node1, true},
		{podOne, node2, true},
		{node1, podOne, true},
		{node2, podOne, true},
		{node1, node2, true},
		{podTwo, provider, true},
		{podTwo, outside, true},
		{provider, gateway, true},
		{provider, outside, true},
		{provider, node2Red, true},
		{outside, provider, true},
		{outside, node2Red, false}, // the way back would be green: strict filtering on the node refuses it
		{provider, podOne, false},
		{outside, podOne, false},
	} {
		asks := pings
		if flow.reaches {
			asks = patiently
		}
		if got := asks(t, flow.from.namespace, flow.to.v4); got != flow.reaches {
			t.Errorf("%s -> %s by IPv4: reaches = %t, want %t", flow.from.name, flow.to.name, got, flow.reaches)
		}
		if flow.to == node2Red && !flow.reaches {
			continue // IPv6 has no reverse-path filter
		}
		if got := asks(t, flow.from.namespace, flow.to.v6); got != flow.reaches {
			t.Errorf("%s -> %s by IPv6: reaches = %t, want %t", flow.from.name, flow.to.name, got, flow.reaches)
		}
	}
}

// A foreign address is dropped as a source from the pod and as a destination towards it, and both are counted.
func TestForeignAddressesAreDroppedBothWays(t *testing.T) {
	l := start(t, 1)
	p := addPod(t, l, "node-1", "pod")
	node := l.Nodes[0]
	foreign := netip.MustParseAddr("192.168.100.50")
	foreign6 := netip.MustParseAddr("2001:db8:100::50")
	for _, args := range [][]string{
		{"address", "add", foreign.String() + "/32", "dev", "lo"},
		{"address", "add", foreign6.String() + "/128", "dev", "lo"},
	} {
		if _, err := Exec(t.Context(), p.Namespace, "ip", args...); err != nil {
			t.Fatal(err)
		}
	}
	if !patiently(t, p.Namespace, node.Address) {
		t.Fatal("the pod does not reach its node with its own address")
	}
	drops := func() Drops {
		d, err := l.Drops(p)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if diff := cmp.Diff(Drops{}, drops()); diff != "" {
		t.Errorf("drops before anything foreign was sent (-want +got):\n%s", diff)
	}

	if pings(t, p.Namespace, node.Address, "-I", foreign.String()) ||
		pings(t, p.Namespace, node.Address6, "-I", foreign6.String()) {
		t.Error("the node answered a packet of the pod with a foreign source")
	}
	if diff := cmp.Diff(Drops{FromPod: 2}, drops()); diff != "" {
		t.Errorf("drops after two packets with a foreign source (-want +got):\n%s", diff)
	}

	for _, route := range []string{foreign.String() + "/32", foreign6.String() + "/128"} {
		if _, err := Exec(t.Context(), node.Namespace, "ip", "route", "add", route, "dev", p.Link); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range []struct{ foreign, own netip.Addr }{{foreign, p.Address}, {foreign6, p.Address6}} {
		args := []string{"neigh", "replace", a.foreign.String(), "lladdr", podMAC(t, p), "dev", p.Link}
		if _, err := Exec(t.Context(), node.Namespace, "ip", args...); err != nil {
			t.Fatal(err)
		}
		if pings(t, node.Namespace, a.foreign) {
			t.Errorf("the pod answered for the foreign address %s", a.foreign)
		}
	}
	// ping repeats what a local filter refused, so the number of packets is open.
	if d := drops(); d.FromPod != 2 || d.ToPod < 2 {
		t.Errorf("drops after packets with a foreign destination: %+v, want 2 from the pod and at least 2 towards it", d)
	}
}

func podMAC(t *testing.T, p Pod) string {
	t.Helper()
	var mac string
	err := Do(p.Namespace, func() error {
		nic, err := net.InterfaceByName("eth0")
		if err == nil {
			mac = nic.HardwareAddr.String()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return mac
}

func TestPodAddressesGoRoundAndAreFreed(t *testing.T) {
	l := start(t, 1)
	first := addPod(t, l, "node-1", "first")
	if diff := cmp.Diff(first, addPod(t, l, "node-1", "first"), cmp.Comparer(equalAddr)); diff != "" {
		t.Errorf("plugging a pod again gave another (-first +second):\n%s", diff)
	}
	if err := l.DelPod("node-1", "first"); err != nil {
		t.Fatal(err)
	}
	if err := l.DelPod("node-1", "first"); err != nil {
		t.Errorf("removing a removed pod: %v", err)
	}
	if _, err := os.Stat(first.Namespace); !os.IsNotExist(err) {
		t.Errorf("namespace of the removed pod: %v, want it gone", err)
	}
	if second := addPod(t, l, "node-1", "second"); second.Address != netip.MustParseAddr("100.0.1.3") {
		t.Errorf("address after 100.0.1.2 was freed: %s, want the next one, 100.0.1.3", second.Address)
	}
}

func equalAddr(a, b netip.Addr) bool { return a == b }

func TestPodNetworkFull(t *testing.T) {
	l := &LAN{Prefix: "fiptest", Dir: t.TempDir()}
	n := l.node(1)
	for i := range podsPerNode {
		p, _, err := l.reserve(n, string(rune('a'+i)))
		if err != nil {
			t.Fatal(err)
		}
		if want := at(Pods, 1<<8+firstPod+i); p.Address != want {
			t.Fatalf("address of pod %d: %s, want %s", i, p.Address, want)
		}
	}
	if _, _, err := l.reserve(n, "one too many"); !errors.Is(err, ErrPodNetworkFull) {
		t.Errorf("reserve in a full network: %v, want ErrPodNetworkFull", err)
	}
}

// What a crashed run leaves is found by its state file alone.
func TestCloseAfterCrash(t *testing.T) {
	l := start(t, 1)
	addPod(t, l, "node-1", "pod")
	found, err := Open(l.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := found.Close(); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(l.namespace("*"))
	if err != nil || len(left) != 0 {
		t.Errorf("namespaces after Close: %v (%v), want none", left, err)
	}
	if _, err := Open(l.Dir); !os.IsNotExist(err) {
		t.Errorf("Open after Close: %v, want that nothing exists", err)
	}
}

func TestAddressPlan(t *testing.T) {
	l := &LAN{Prefix: "fip"}
	n := l.node(3)
	want := Node{
		Host:        Host{"/run/netns/fip-node-3", netip.MustParseAddr("201.0.0.3"), netip.MustParseAddr("2001:db8:201::3")},
		Name:        "node-3",
		Provider:    netip.MustParseAddr("192.168.100.13"),
		Provider6:   netip.MustParseAddr("2001:db8:100::d"),
		PodNetwork:  netip.MustParsePrefix("100.0.3.0/24"),
		PodNetwork6: netip.MustParsePrefix("fd00:100::3:0/112"),
	}
	equalPrefix := func(a, b netip.Prefix) bool { return a == b }
	if diff := cmp.Diff(want, n, cmp.Comparer(equalAddr), cmp.Comparer(equalPrefix)); diff != "" {
		t.Errorf("node 3 (-want +got):\n%s", diff)
	}
}
