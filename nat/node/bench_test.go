package node

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/announce"
	"floatip.io/floatip/nat/node/nodetest"
)

// legs at once: what the kubelet allows on a node is 110 pods by default; large nodes are set to 250.
const legsAtOnce = 250

// BenchmarkManyAtOnce is a node on which 250 pods get their addresses at the same moment: from the objects to the last
// address announced, with the probes of the real timing, which take a second of it.
func BenchmarkManyAtOnce(bb *testing.B) {
	for range bb.N {
		bb.StopTimer()
		b := newBench(bb)
		p := b.view.Pools["lan"]
		p.Networks, p.Interface = []netip.Prefix{netip.MustParsePrefix("192.168.100.0/23")}, "red0"
		b.view.Pools["lan"] = p
		addresses := b.addBare(legsAtOnce)
		b.timing = announce.DefaultTiming
		b.start()
		bb.StartTimer()
		began := time.Now()
		b.publish()
		b.within(time.Minute, "all announced", func(r Report) bool {
			for _, a := range addresses {
				if !r.Statuses[a].Announced.True {
					return false
				}
			}
			return true
		})
		bb.ReportMetric(time.Since(began).Seconds()*1000/legsAtOnce, "ms/leg")
		bb.StopTimer()
		b.stop()
	}
}

// addBare adds pods that have a sidecar and no guest.
func (b *bench) addBare(count int) (addresses []netip.Addr) {
	b.t.Helper()
	a := netip.MustParseAddr("192.168.100.11")
	for n := range count {
		if a = a.Next(); a.String() == nodetest.LANHost || a.As4()[3] == 255 {
			a = netip.MustParseAddr("192.168.101.1") // the pool of this benchmark is wider
		}
		uid, name := uidOf(1000+n), fmt.Sprintf("vm%d", n)
		pod := &nodetest.Pod{Namespace: nodetest.NewNamespace(b.t)}
		b.serveSidecar(pod, uid, a)
		owner := floatip.Owner{Namespace: "prod", Name: name, UID: "vm-" + uid}
		text, err := nodetest.Describe(owner, a).Encode()
		if err != nil {
			b.t.Fatal(err)
		}
		b.view.Pods = append(b.view.Pods, Pod{
			UID: uid, Namespace: "prod", Name: name, Machine: Reference{Name: name, UID: "vmi-" + uid}, NAT: text,
		})
		b.view.Addresses[a] = Held{Pool: "lan", Owner: owner}
		b.view.Machines["vmi-"+uid] = Machine{Namespace: "prod", Name: name, UID: "vmi-" + uid, VM: owner.UID, Node: b.name}
		addresses = append(addresses, a)
	}
	return addresses
}
