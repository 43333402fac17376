package node

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/nodetest"
)

// TestNodeLost: a node goes with its VM, and KubeVirt starts the VM on another one. That one asks the LAN first, takes the
// address, and keeps it when the old node comes back with what its kernel holds.
func TestNodeLost(t *testing.T) {
	t.Parallel()
	w := nodetest.NewWorld(t)
	old, next := newBenchOn(t, w, "10"), newBenchOn(t, w, "11")
	peers := map[string]floatip.NodeAgent{}
	for _, b := range []*bench{old, next} {
		peers[b.name] = floatip.NodeAgent{MACs: []string{b.node.Get("red0").Attrs().HardwareAddr.String()}}
		b.view.Peers = peers
	}
	empty := inventory(t, old.node.Namespace)
	old.addVM(1, "192.168.100.50")
	for _, b := range []*bench{old, next} {
		b.start()
		b.publish()
	}
	old.awaitReport("ready on the first node", ready("192.168.100.50"))
	old.answers("vm1", "192.168.100.50")

	old.stop()
	old.node.Down("red0")
	next.addVM(2, "192.168.100.50")
	next.view.Addresses[fifty] = withNode(next.view.Addresses[fifty], old.name) // nobody has said that it left
	next.publish()
	next.awaitReport("ready on the other node", ready("192.168.100.50"))
	if probes := next.agent.responders.figures()["red0"][4].Probes; probes == 0 {
		t.Error("the LAN was not asked: somebody may have taken the address meanwhile")
	}
	next.answers("vm2", "192.168.100.50")

	old.node.Up("red0")
	old.start()
	old.view.Pods, old.view.Machines = nil, map[string]Machine{}
	old.publish()
	old.await("the old node is empty", func() bool { return cmp.Equal(empty, inventory(t, old.node.Namespace)) })
	next.awaitReport("still ready", ready("192.168.100.50"))
	w.Host.Run("ip neigh flush dev eth0")
	next.answers("vm2", "192.168.100.50")
}
