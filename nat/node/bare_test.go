package node

import (
	"fmt"
	"testing"

	"floatip.io/floatip/nat/node/nodetest"
)

// TestNICWithoutAddress: the provider NIC has no address, and the hosts of the LAN answer nobody whose address is not of
// their network, as reverse-path filtering has it. The guest reaches them and the router all the same, under its floating
// address, also after everybody has forgotten everybody's Ethernet address.
func TestNICWithoutAddress(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	p := b.view.Pools["lan"]
	p.Interface = "red0"
	b.view.Pools["lan"] = p
	b.node.Remove("red0", nodetest.NodeAddress+"/24")
	b.world.Host.Sysctl("ipv4/conf/all/rp_filter=1", "ipv4/conf/eth0/rp_filter=1")
	b.world.Host.Serve("lan", nodetest.LANHost+":80")
	b.world.Host.Serve("beyond", nodetest.Beyond+":80")
	v := b.addVM(1, "192.168.100.50")
	b.start()
	b.publish()
	b.awaitReport("ready", ready("192.168.100.50"))
	for _, when := range []string{"at first", "after all was forgotten"} {
		for who, address := range map[string]string{"lan": nodetest.LANHost, "beyond": nodetest.Beyond} {
			b.node.Run("ip neigh flush dev red0")
			b.world.Host.Run("ip neigh flush dev eth0")
			said, err := v.Guest.Ask(address+":80", patience)
			if want := who + " sees 192.168.100.50"; err != nil || said != want {
				t.Errorf("%s: ask %s: have %q, %v; want %q", when, address, said, err, want)
			}
		}
		b.answers("vm1", "192.168.100.50")
	}
	if have := b.node.ReadSysctl("ipv4/neigh/red0/app_solicit"); have != "1" {
		t.Errorf("app_solicit of the NIC is %s, want 1", have)
	}

	// Many hosts that do not exist keep nobody waiting for one that does.
	for n := range 120 {
		v.Guest.SendMarked(0, nodetest.GuestFixed, fmt.Sprintf("192.168.100.%d:9", 60+n))
	}
	b.node.Run("ip neigh flush dev red0")
	if said, err := v.Guest.Ask(nodetest.LANHost+":80", patience); err != nil || said != "lan sees 192.168.100.50" {
		t.Errorf("beside many questions: %q, %v", said, err)
	}
}
