package announce

import (
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/ndp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hear6 waits for the first neighbour message that the host hears and that fits.
func (l *lan) hear6(what string, fits func(message) bool) message {
	l.t.Helper()
	if err := l.host6.setDeadline(time.Now().Add(patience)); err != nil {
		l.t.Fatal(err)
	}
	for {
		raw, _, err := l.host6.read()
		if err != nil || raw == nil {
			l.t.Fatalf("%s: not heard within %s: %v", what, patience, err)
		}
		if m, ok := parseNeighbour(raw); ok && fits(m) {
			return m
		}
	}
}

// say6 sends a message from the host.
func (l *lan) say6(m message) {
	l.t.Helper()
	raw, err := packetOf(m)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := l.host6.send(raw, multicastMAC(m.destination)); err != nil {
		l.t.Fatal(err)
	}
}

// advertise has the host say that it has the address.
func (l *lan) advertise(a netip.Addr) {
	l.t.Helper()
	l.say6(message{a, allNodes, advertisement(l.host6.own, a, false)})
}

func advertises(m message, a netip.Addr) bool {
	na, ok := m.body.(*ndp.NeighborAdvertisement)
	return ok && na.TargetAddress == a
}

// TestAnswers6 speaks by hand: to the group, to the address itself, and as one who wants to have the address. The
// kernel holds no proxy entry.
func TestAnswers6(t *testing.T) {
	t.Parallel()
	l := newLAN(t, nil)
	l.responder.Set([]netip.Addr{ours6}, nil)
	l.hear6("announcement", func(m message) bool { return advertises(m, ours6) && m.destination == allNodes })
	sll := []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: l.host6.own}}
	other := netip.MustParseAddr("2001:db8:100::51")
	for _, tt := range []struct {
		name   string
		source netip.Addr
		to     netip.Addr
		want   netip.Addr // where the answer goes
	}{
		{"solicitation", asker6, groupOf(ours6), asker6},
		{"probe", netip.IPv6Unspecified(), groupOf(ours6), allNodes},
	} {
		options := sll
		if tt.source.IsUnspecified() {
			options = nil
		}
		// The one nobody holds is asked for first: a wrong answer to it would be heard first.
		l.say6(message{tt.source, groupOf(other), &ndp.NeighborSolicitation{TargetAddress: other, Options: options}})
		l.say6(message{tt.source, tt.to, &ndp.NeighborSolicitation{TargetAddress: ours6, Options: options}})
		m := l.hear6(tt.name, func(m message) bool {
			na, ok := m.body.(*ndp.NeighborAdvertisement)
			return ok && m.destination == tt.want && na.Solicited == (tt.want != allNodes)
		})
		na := m.body.(*ndp.NeighborAdvertisement)
		if na.TargetAddress != ours6 || !na.Override || na.Router || linkAddress(na.Options, ndp.Target).String() != l.nodeMAC() {
			t.Errorf("%s: answer is %+v", tt.name, na)
		}
	}
}

// TestRealHost6: the kernel of a host finds the address, and does not take it for its own.
func TestRealHost6(t *testing.T) {
	t.Parallel()
	l := newLAN(t, nil)
	l.responder.Set([]netip.Addr{ours6}, nil)
	l.hear6("announcement", func(m message) bool { return advertises(m, ours6) })
	h := l.world.Host
	link := h.Get("eth0")
	// A neighbour that is PROBE is solicited at its own address, one that is unknown by its group.
	for _, state := range []int{netlink.NUD_NONE, netlink.NUD_PROBE} {
		entry := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: ours6.AsSlice(), State: state, HardwareAddr: l.mac(), Flags: netlink.NTF_USE}
		if err := h.Link.NeighSet(entry); err != nil {
			t.Fatal(err)
		}
		l.until("reachable", func() bool {
			list, err := h.Link.NeighList(link.Attrs().Index, netlink.FAMILY_V6)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range list {
				if n.IP.Equal(ours6.AsSlice()) && n.State == netlink.NUD_REACHABLE && n.HardwareAddr.String() == l.nodeMAC() {
					return true
				}
			}
			return false
		})
	}
	h.Sysctl("ipv6/conf/all/accept_dad=1", "ipv6/conf/eth0/accept_dad=1")
	a, err := netlink.ParseAddr(ours6.String() + "/64")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Link.AddrAdd(link, a); err != nil {
		t.Fatal(err)
	}
	l.until("duplicate address detected", func() bool {
		list, err := h.Link.AddrList(link, netlink.FAMILY_V6)
		if err != nil {
			t.Fatal(err)
		}
		for _, have := range list {
			if have.IP.Equal(ours6.AsSlice()) {
				return have.Flags&unix.IFA_F_DADFAILED != 0
			}
		}
		return false
	})
}

func (l *lan) mac() []byte { return l.node.Get("red0").Attrs().HardwareAddr }

// until polls until f is true.
func (l *lan) until(what string, f func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// TestGroups: the NIC is in the solicited-node groups of what is looked after, and in no others, past the number that
// one socket can join.
func TestGroups(t *testing.T) {
	t.Parallel()
	l := newLAN(t, nil)
	before := len(l.groups())
	many := make([]netip.Addr, 2*groupsPerSocket+1)
	for i, a := 0, ours6; i < len(many); i, a = i+1, a.Next() {
		many[i] = a
	}
	l.responder.Set(many[:1], many[1:])
	l.until("joined", func() bool { return len(l.groups()) == before+len(many) })
	l.responder.Set(many[:1], nil)
	l.until("left", func() bool { return len(l.groups()) == before+1 })
	if !l.groups()[groupOf(ours6)] {
		t.Errorf("groups are %v", l.groups())
	}
	l.responder.Set(nil, nil)
	l.until("left all", func() bool { return len(l.groups()) == before })
}

// groups reads the NIC's groups from /proc/net/igmp6.
func (l *lan) groups() map[netip.Addr]bool {
	l.t.Helper()
	return l.node.Groups6("red0")
}
