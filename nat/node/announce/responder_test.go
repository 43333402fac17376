package announce

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/arp"
	"github.com/mdlayher/ndp"
	"github.com/vishvananda/netlink"

	"floatip.io/floatip/nat/node/nodetest"
)

// patience bounds every wait of these tests.
const patience = 10 * time.Second

// lan is a node with a Responder on its red NIC, and the ears and mouth of a host on the same LAN.
type lan struct {
	t         *testing.T
	world     *nodetest.World
	node      *nodetest.Node
	responder *Responder
	host      *socket
}

func newLAN(t *testing.T, configure func(*Responder)) *lan {
	t.Helper()
	w := nodetest.NewWorld(t)
	l := &lan{t: t, world: w, node: w.AddNode("10")}
	l.responder = &Responder{NIC: "red0", NetNS: l.node.File, Log: slog.New(slog.DiscardHandler)}
	if configure != nil {
		configure(l.responder)
	}
	l.host = listenIn(t, w.Host, "eth0")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- l.responder.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return l
}

func listenIn(t *testing.T, ns *nodetest.Namespace, name string) *socket {
	t.Helper()
	f, err := newFinder(ns.File)
	if err != nil {
		t.Fatal(err)
	}
	defer f.handle.Close()
	n, err := f.find(name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := listen(ns.File, name, n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.conn.Close() })
	return s
}

func (l *lan) nodeMAC() string { return l.node.Get("red0").Attrs().HardwareAddr.String() }

// hear waits for the first packet that the host hears and that fits.
func (l *lan) hear(what string, fits func(*arp.Packet) bool) *arp.Packet {
	l.t.Helper()
	if err := l.host.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		l.t.Fatal(err)
	}
	for {
		p, err := l.host.receive()
		if err != nil || p == nil {
			l.t.Fatalf("%s: not heard within %s: %v", what, patience, err)
		}
		if fits(p) {
			return p
		}
	}
}

// ask sends a request from the host. sender is 0.0.0.0 for a probe.
func (l *lan) ask(sender, target netip.Addr) {
	l.t.Helper()
	p, err := arp.NewPacket(arp.OperationRequest, l.host.mac(), sender, make(net.HardwareAddr, 6), target)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := l.host.send(p, broadcast); err != nil {
		l.t.Fatal(err)
	}
}

func announcementOf(a netip.Addr) func(*arp.Packet) bool {
	return func(p *arp.Packet) bool { return p.SenderIP == a && p.TargetIP == a }
}

// toHost reports whether p answers the host, and is no announcement.
func (l *lan) toHost(p *arp.Packet) bool {
	return p.Operation == arp.OperationReply && string(p.TargetHardwareAddr) == string(l.host.mac())
}

func TestAnswers(t *testing.T) {
	l := newLAN(t, nil)
	l.responder.Set([]netip.Addr{ours})
	l.hear("responder at work", announcementOf(ours))
	for _, tt := range []struct {
		name   string
		sender netip.Addr
	}{{"request", asker}, {"probe of RFC 5227", zero}} {
		// The one nobody holds is asked for first: a wrong answer to it would be heard first.
		l.ask(tt.sender, free)
		l.ask(tt.sender, ours)
		answer := l.hear(tt.name, l.toHost)
		if answer.SenderIP != ours || answer.SenderHardwareAddr.String() != l.nodeMAC() || answer.TargetIP != tt.sender {
			t.Errorf("%s: have the answer %s is at %s to %s; want %s at %s to %s", tt.name, answer.SenderIP,
				answer.SenderHardwareAddr, answer.TargetIP, ours, l.nodeMAC(), tt.sender)
		}
	}
}

func TestWithdrawnAddressIsNotAnsweredFor(t *testing.T) {
	l := newLAN(t, nil)
	l.responder.Set([]netip.Addr{ours, free})
	l.hear("responder at work", announcementOf(ours))
	l.ask(asker, ours)
	l.hear("answer before", l.toHost)
	l.responder.Set([]netip.Addr{free})
	l.ask(asker, ours)
	l.ask(asker, free)
	if answer := l.hear("answer after", l.toHost); answer.SenderIP != free {
		t.Errorf("%s is answered for after Set has returned without it", answer.SenderIP)
	}
}

// TestAnnouncements hears the burst: request and reply, each five times, in order.
func TestAnnouncements(t *testing.T) {
	t.Parallel()
	l := newLAN(t, nil)
	l.responder.Set([]netip.Addr{ours})
	var heard []arp.Operation
	var first, last time.Time
	for range 2 * len(burst) {
		p := l.hear("announcement", announcementOf(ours))
		if p.SenderHardwareAddr.String() != l.nodeMAC() {
			t.Fatalf("announced by %s, want %s", p.SenderHardwareAddr, l.nodeMAC())
		}
		heard, last = append(heard, p.Operation), time.Now()
		if first.IsZero() {
			first = last
		}
	}
	var want []arp.Operation
	for range burst {
		want = append(want, arp.OperationRequest, arp.OperationReply)
	}
	if diff := cmp.Diff(want, heard); diff != "" {
		t.Errorf("announcements (-want +got):\n%s", diff)
	}
	if span := last.Sub(first); span < 2*time.Second {
		t.Errorf("the burst took %s, want about 2.2 s: announcements must survive a lossy second", span)
	}
}

// TestFirstAnnouncementIsImmediate measures from Set to the wire.
func TestFirstAnnouncementIsImmediate(t *testing.T) {
	l := newLAN(t, nil)
	l.responder.Set([]netip.Addr{free})
	l.hear("responder at work", announcementOf(free))
	began := time.Now()
	l.responder.Set([]netip.Addr{free, ours})
	l.hear("announcement", announcementOf(ours))
	t.Logf("first announcement after %s", time.Since(began))
}

// TestRecovers: the NIC goes down, or away altogether, and comes back.
func TestRecovers(t *testing.T) {
	first := make(chan netip.Addr, 10)
	l := newLAN(t, func(r *Responder) { r.First = func(a netip.Addr) { first <- a } })
	await := func(what string) {
		t.Helper()
		select {
		case <-first:
		case <-time.After(patience):
			t.Fatalf("%s: not announced within %s", what, patience)
		}
	}
	l.responder.Set([]netip.Addr{ours})
	await("at the start")

	l.node.Down("red0")
	l.node.Up("red0")
	await("after the NIC was down")

	if err := l.node.Link.LinkDel(l.node.Get("red0")); err != nil {
		t.Fatal(err)
	}
	l.world.LAN.Cable("again", l.node.Namespace, "red0")
	l.world.LAN.Enslave("br", "again")
	await("on the new NIC")
	l.ask(asker, ours)
	if answer := l.hear("answer", l.toHost); answer.SenderHardwareAddr.String() != l.nodeMAC() {
		t.Errorf("answered with %s, want that of the new NIC, %s", answer.SenderHardwareAddr, l.nodeMAC())
	}

	mac := net.HardwareAddr{2, 0, 0, 0, 0x12, 0x34}
	if err := l.node.Link.LinkSetHardwareAddr(l.node.Get("red0"), mac); err != nil {
		t.Fatal(err)
	}
	await("with another Ethernet address")
	l.hear("announcement with the new address", func(p *arp.Packet) bool {
		return announcementOf(ours)(p) && p.SenderHardwareAddr.String() == mac.String()
	})
}

// TestAnnounces6: hosts learn of an IPv6 address that came, or moved, by an unsolicited advertisement.
func TestAnnounces6(t *testing.T) {
	l := newLAN(t, nil)
	host, err := listenNeighbour(l.world.Host.File, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.conn.Close()
	address := netip.MustParseAddr("2001:db8:100::50")
	l.responder.Set([]netip.Addr{address, ours})
	l.hear("IPv4 beside it", announcementOf(ours))
	if err := host.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for {
		message, _, _, err := host.conn.ReadFrom()
		if err != nil {
			t.Fatalf("no advertisement of %s: %v", address, err)
		}
		na, ok := message.(*ndp.NeighborAdvertisement)
		if !ok || na.TargetAddress != address {
			continue
		}
		if len(na.Options) != 1 || !na.Override || na.Solicited {
			t.Fatalf("have %+v, want an unsolicited one that overrides and says where", na)
		}
		if at := na.Options[0].(*ndp.LinkLayerAddress).Addr.String(); at != l.nodeMAC() {
			t.Errorf("advertised at %s, want %s", at, l.nodeMAC())
		}
		return
	}
}

// TestConflict: another host claims the address.
func TestConflict(t *testing.T) {
	conflicts := make(chan Conflict, 10)
	l := newLAN(t, func(r *Responder) { r.Conflict = func(c Conflict) { conflicts <- c } })
	l.responder.Set([]netip.Addr{ours})
	l.hear("announcement", announcementOf(ours))
	if err := l.host.announce(ours); err != nil {
		t.Fatal(err)
	}
	select {
	case c := <-conflicts:
		want := Conflict{Address: ours, MAC: l.host.mac(), NIC: "red0"}
		if diff := cmp.Diff(want, c, compareAddresses); diff != "" {
			t.Errorf("conflict (-want +got):\n%s", diff)
		}
	case <-time.After(patience):
		t.Fatal("no conflict reported")
	}
}

// TestNICWithoutAddress: a provider NIC needs no address of its own.
func TestNICWithoutAddress(t *testing.T) {
	l := newLAN(t, nil)
	link := l.node.Get("red0")
	addresses, err := l.node.Link.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if err := l.node.Link.AddrDel(link, &a); err != nil {
			t.Fatal(err)
		}
	}
	l.responder.Set([]netip.Addr{ours})
	l.hear("responder at work", announcementOf(ours))
	l.ask(asker, ours)
	l.hear("answer", l.toHost)
}
