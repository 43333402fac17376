//go:build secondkernel

package node

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestMoveOnDevices: a guest goes from one node to another whose provider NICs are of a kind that the machine's own kernel may
// not know. Connections go on that nobody but the agents can carry over, the LAN hears of each address by the right port,
// under the right VLAN alone, and sends there from then on. When it goes on sending to the old node instead, as a host does
// that has not heard of the move, that is sent on.
func TestMoveOnDevices(t *testing.T) {
	for _, k := range []kind{vlan, backup, aggregate} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			r := newRoadOn(t, k.lay, "", fifty, fifty6)
			r.install(closed(fifty6))
			taps := map[string]*tap{} // by the LAN's end of the cable
			for _, b := range []*bench{r.from, r.to} {
				for _, cable := range b.cables() {
					taps[cable] = b.tap(b.world.LAN, cable)
				}
			}
			testHandOver(t, r, 1, func(streams []*stream) {
				r.announced(taps, k.tags)
				for _, a := range r.has {
					r.to.await(fmt.Sprintf("the host to know %s at %s", a, r.to.mac()), func() bool { return r.hostKnows(a) == r.to.mac() })
				}
				r.missed(r.has...)
				for _, s := range streams {
					s.proceeds(10)
				}
				r.from.world.Host.Run("ip neigh flush dev eth0 nud permanent")
			})
		})
	}
}

// announced wants the target to have said on the LAN where the guest is, by the cables that its NIC sends by, and nothing by
// the others.
func (r *road) announced(taps map[string]*tap, tags string) {
	r.t.Helper()
	sending := r.to.sending()
	for _, a := range r.has {
		want := sighting{"announcement", a, tags, r.to.mac()}
		r.to.await(fmt.Sprintf("%+v by %v", want, sending), func() bool {
			return slices.ContainsFunc(sending, func(cable string) bool { return taps[cable].saw(want) })
		})
	}
	for cable, tap := range taps {
		if others := tap.others(tags); len(others) > 0 {
			r.t.Errorf("by %s came %+v, want no other tags than %q", cable, others, tags)
		}
		if slices.Contains(r.to.cables(), cable) && !slices.Contains(sending, cable) && tap.sawAny() {
			r.t.Errorf("something came by %s, want it by %v", cable, sending)
		}
	}
}

// sending are the cables by which the NIC sends: of a bond that has one for reserve, the other.
func (b *bench) sending() []string {
	bond, ok := b.node.Get(b.nic).(*netlink.Bond)
	if !ok || bond.Mode != netlink.BOND_MODE_ACTIVE_BACKUP {
		return b.cables()
	}
	i := 0
	if bond.ActiveSlave == b.node.Get("red1").Attrs().Index {
		i = 1
	}
	return b.cables()[i : i+1]
}

// hostKnows is the Ethernet address to which the LAN's host sends what is for a.
func (r *road) hostKnows(a netip.Addr) string {
	r.t.Helper()
	host := r.from.world.Host
	family := netlink.FAMILY_V4
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	neighbours, err := host.Link.NeighList(host.Get("eth0").Attrs().Index, family)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, n := range neighbours {
		if n.IP.Equal(a.AsSlice()) {
			return n.HardwareAddr.String()
		}
	}
	return ""
}
