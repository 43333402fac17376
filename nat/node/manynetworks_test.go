package node

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/nat/node/nodetest"
)

// wide is a bench whose node has several provider networks, each with a NIC, a pool, a gateway and a VM of its own.
type wide struct {
	*bench
	hosts []*nodetest.Namespace
	vms   []*vm
}

func newWide(t *testing.T, d floatip.Delivery, networks int) *wide {
	t.Helper()
	w := &wide{bench: newBench(t)}
	w.delivery = d
	for i := range networks {
		host, nic := nodetest.NewNamespace(t), fmt.Sprintf("blue%d", i)
		w.node.Cable(nic, host, "eth0")
		w.node.Address(nic, w.in(i, 10)+"/24")
		w.node.Sysctl("ipv4/conf/" + nic + "/rp_filter=1")
		host.Address("eth0", w.in(i, 1)+"/24")
		w.hosts = append(w.hosts, host)
		pool := fmt.Sprintf("pool%d", i)
		w.view.Pools[pool] = Pool{
			Name: pool, Delivery: d, Networks: []netip.Prefix{netip.MustParsePrefix(w.in(i, 0) + "/24")},
			Gateways: []netip.Addr{netip.MustParseAddr(w.in(i, 1))}, Sample: []netip.Addr{w.floating(i)},
		}
		w.vms = append(w.vms, w.addVM(i+1, w.floating(i).String()))
		held := w.view.Addresses[w.floating(i)]
		held.Pool = pool
		w.view.Addresses[w.floating(i)] = held
	}
	w.start()
	w.publish()
	return w
}

// in returns an address of the i-th network.
func (w *wide) in(i, host int) string { return fmt.Sprintf("10.50.%d.%d", i, host) }

// floating is that of the VM of the i-th network.
func (w *wide) floating(i int) netip.Addr { return netip.MustParseAddr(w.in(i, 50)) }

// reached asks the VMs of the networks from their gateways.
func (w *wide) reached(networks ...int) {
	w.t.Helper()
	for _, i := range networks {
		said, err := w.hosts[i].Ask(w.floating(i).String()+":80", patience)
		if want := fmt.Sprintf("vm%d sees %s", i+1, w.in(i, 1)); err != nil || said != want {
			w.t.Errorf("ask %s: have %q, %v; want %q", w.floating(i), said, err, want)
		}
	}
}

func (w *wide) ready(networks ...int) func(Report) bool {
	var all []string
	for _, i := range networks {
		all = append(all, w.floating(i).String())
	}
	return ready(all...)
}

// TestManyNetworks: a node carries any number of provider networks by legs.
func TestManyNetworks(t *testing.T) {
	w := newWide(t, floatip.DeliveryLeg, 5)
	w.awaitReport("ready", w.ready(0, 1, 2, 3, 4))
	w.reached(0, 1, 2, 3, 4)
}

// TestMoreNetworksThanMarks: where packets go by the CNI's links a node carries three networks. The addresses of a fourth
// say why they wait and nobody is told of them; the others work, and when one of them goes the fourth takes its place.
func TestMoreNetworksThanMarks(t *testing.T) {
	for _, d := range []floatip.Delivery{floatip.DeliveryRouted, floatip.DeliveryNodeNAT} {
		t.Run(string(d), func(t *testing.T) {
			w := newWide(t, d, 4)
			fourth := w.floating(3)
			told := func(c Condition) bool { return !c.True && strings.Contains(c.Message, leg.ErrTooManyMarks.Error()) }
			w.awaitReport("three ready, and the fourth says why not", func(r Report) bool {
				return w.ready(0, 1, 2)(r) && told(r.Statuses[fourth].LegReady)
			})
			w.reached(0, 1, 2)
			if have := w.holding(); have.Answers(fourth) || have.Active[fourth] != "" || w.last.Statuses[fourth].Announced.True {
				t.Errorf("%s is answered for on %v and leads to %q", fourth, have.Answered, have.Active[fourth])
			}
			if err := w.agent.Healthy(); err != nil {
				t.Errorf("the agent calls itself unhealthy: %v", err)
			}
			stays := startEcho(t, w.vms[1].Guest, w.hosts[1], w.floating(1).String()+":7")
			stays.pass(3)
			w.set(uidOf(1), func(p *Pod) { p.Final = true })
			w.publish()
			w.awaitReport("the fourth in the place of the first", w.ready(1, 2, 3))
			w.reached(1, 2, 3)
			stays.pass(3)
		})
	}
}
