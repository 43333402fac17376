package kubevirt19

import (
	"net/netip"
	"testing"
	"time"

	"floatip.io/floatip/test/lab"
)

// silence is how long an answer that must not come is waited for.
const silence = 400 * time.Millisecond

// call is one line of a flow table. It is answered when it is seen as somebody.
type call struct {
	from     *lab.Namespace
	to       [2]string // IPv4 and IPv6
	protocol string
	port     int
	seenAs   [2]string
}

// A guest behind KubeVirt's own table and a running sidecar is reached at the first and the last port of each range, from
// the provider network and by itself, under the port that the caller has; not beside them.
func TestPortRangesAreReached(t *testing.T) {
	t.Parallel()
	program := build(t)
	for _, name := range []string{"port-ranges-dual-stack", "port-ranges-and-ports", "port-ranges-istio", "port-ranges-not-eth0"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := variants[name]
			c := lab.NewCloud(t)
			c.Outside.Serve(t, 80)
			vm := c.AddVMOf(t, 2, v.pod())
			vm.Guest.Serve(t, 19, 20, 30, 31, 7999, 8000, 8999, 9000, 4999, 5000, 5010, 5011)
			// Half of KubeVirt's commands, the sidecar, the other half.
			_, err := v.setup(vm.Pod, func(done int) {
				if done == v.commands/2 {
					startSidecar(t, program, vm.Pod, v)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			vm.PlugLeg(t)
			host, outside := [2]string{lab.Host4, lab.Host6}, [2]string{lab.Outside4, lab.Outside6}
			floating, nobody := [2]string{vm.Floating4, vm.Floating6}, [2]string{}
			for i, f := range []call{
				{c.Host, floating, "tcp", 20, host}, {c.Host, floating, "tcp", 30, host},
				{c.Outside, floating, "tcp", 8000, outside}, {c.Outside, floating, "tcp", 8999, outside},
				{c.Host, floating, "udp", 5000, host}, {c.Outside, floating, "udp", 5010, outside},
				{vm.Guest, floating, "tcp", 8999, floating}, {vm.Guest, floating, "udp", 5000, floating},
				{vm.Guest, outside, "tcp", 80, floating},
				{c.Host, floating, "tcp", 19, nobody}, {c.Host, floating, "tcp", 31, nobody},
				{c.Outside, floating, "tcp", 7999, nobody}, {c.Host, floating, "tcp", 9000, nobody},
				{c.Host, floating, "udp", 4999, nobody}, {c.Outside, floating, "udp", 5011, nobody},
				{c.Host, floating, "udp", 8000, nobody}, {vm.Guest, floating, "tcp", 9000, nobody},
			} {
				for family := range 2 {
					f.check(t, family, 40000+2*i+family)
				}
			}
		})
	}
}

// Without floatip's rules, as with Kube-OVN, which translates a floating address to the pod's own, KubeVirt's table keeps the
// VM's list: what is listed comes to the guest, and nothing else does.
func TestListHoldsForThePodsOwnAddress(t *testing.T) {
	t.Parallel()
	for name, listed := range map[string]struct{ in, out []call }{
		"ports-dual-stack": {
			in:  []call{{protocol: "tcp", port: 22}, {protocol: "tcp", port: 80}, {protocol: "udp", port: 53}},
			out: []call{{protocol: "tcp", port: 23}, {protocol: "tcp", port: 53}, {protocol: "udp", port: 80}},
		},
		"port-ranges-dual-stack": {
			in:  []call{{protocol: "tcp", port: 8000}, {protocol: "tcp", port: 8999}, {protocol: "udp", port: 5010}},
			out: []call{{protocol: "tcp", port: 7999}, {protocol: "tcp", port: 9000}, {protocol: "udp", port: 8000}},
		},
		"dual-stack": {in: []call{{protocol: "tcp", port: 9000}, {protocol: "udp", port: 53}}}, // no list
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := variants[name]
			c := lab.NewCloud(t)
			vm := c.AddVMOf(t, 2, v.pod())
			vm.Guest.Serve(t, 22, 23, 53, 80, 5010, 7999, 8000, 8999, 9000)
			if _, err := v.setup(vm.Pod, func(int) {}); err != nil {
				t.Fatal(err)
			}
			for i, f := range append(listed.in, listed.out...) {
				f.from, f.to = c.Peer, [2]string{vm.Pod4, vm.Pod6}
				if i < len(listed.in) {
					f.seenAs = [2]string{lab.Peer4, lab.Peer6}
				}
				for family := range 2 {
					f.check(t, family, 41000+2*i+family)
				}
			}
		})
	}
}

// check calls from a port and wants to be seen with it.
func (c call) check(t *testing.T, family, port int) {
	t.Helper()
	wait := patience
	if c.seenAs[family] == "" {
		wait = silence
	}
	seen, err := c.from.Ask(c.protocol, c.to[family], c.port, port, wait)
	switch want := c.seenAs[family]; {
	case want == "" && err == nil:
		t.Errorf("%s %s/%d: want silence, have an answer to %s", c.to[family], c.protocol, c.port, seen)
	case want != "" && (err != nil || seen != netip.AddrPortFrom(netip.MustParseAddr(want), uint16(port))):
		t.Fatalf("%s %s/%d: want to be seen as %s with port %d, have %s, %v", c.to[family], c.protocol, c.port, want, port, seen, err)
	}
}
