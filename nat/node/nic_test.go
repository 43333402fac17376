package node

import (
	"testing"
	"time"
)

// TestOddNICs: what becomes of a provider NIC while an address is in use. Each time packets flow again, on the NIC that the
// network is on then, and the leg is the one from the start.
func TestOddNICs(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	v := b.addVM(1, "192.168.100.50")
	b.start()
	b.publish()
	b.awaitReport("ready", ready("192.168.100.50"))
	stream := startEcho(t, v.Guest, b.world.Host, "192.168.100.50:7")
	flows := func(when, nic string) {
		t.Helper()
		b.await(when, func() bool { return stream.send(100 * time.Millisecond) })
		b.awaitReport("ready "+when, ready("192.168.100.50"))
		b.await("the kernel answers on "+nic+" alone "+when, func() bool {
			answered := b.holding().Answered
			return len(answered) == 1 && len(answered[nic]) == 1
		})
		mac := b.node.Get(nic).Attrs().HardwareAddr.String()
		b.await("the agent answers on "+nic+" "+when, func() bool {
			said, err := b.world.Host.Probe("eth0", fifty, 100*time.Millisecond)
			return err == nil && said == mac
		})
	}
	flows("at first", "red0")

	b.node.Run("ip link set red0 down", "ip link set red0 name lan0", "ip link set lan0 up")
	flows("after it was renamed", "lan0")

	for range 20 {
		b.node.Run("ip link set lan0 down", "ip link set lan0 up")
	}
	flows("after it flapped", "lan0")

	b.node.Run("ip link set lan0 address 02:00:00:00:77:01")
	flows("with another Ethernet address", "lan0")

	// A child with an Ethernet address of its own, as on a trunk that is shared: it has the network now.
	b.node.Remove("lan0", "192.168.100.10/24")
	b.node.Run("ip link add link lan0 name child0 type macvlan mode bridge", "ip link set child0 up")
	b.node.Address("child0", "192.168.100.10/24")
	flows("on a macvlan child", "child0")

	b.node.Run("ip link del child0")
	b.node.Address("lan0", "192.168.100.10/24")
	flows("on the NIC again", "lan0")
	if len(b.holding().Ports) != 1 {
		t.Errorf("the node holds the legs %v, want the one from the start", b.holding().Ports)
	}
}
