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
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/nodetest"
)

// patience bounds every wait of these tests. A machine that is busy elsewhere may stand still for seconds, and TCP backs off.
const patience = time.Minute

// lan is a node with a Responder on its red NIC, and the ears and mouth of a host on the same LAN.
type lan struct {
	t         *testing.T
	world     *nodetest.World
	node      *nodetest.Node
	responder *Responder
	host      frames // ARP
	host6     frames // neighbour discovery
}

func newLAN(t *testing.T, configure func(*Responder)) *lan {
	t.Helper()
	w := nodetest.NewWorld(t)
	l := &lan{t: t, world: w, node: w.AddNode("10")}
	r := Responder{NIC: "red0", NetNS: l.node.File, Log: slog.New(slog.DiscardHandler)}
	if configure != nil {
		configure(&r)
	}
	l.responder = NewResponder(r)
	n := nicIn(t, w.Host, "eth0")
	l.host = opened(openFrames(w.Host.File, n, unix.ETH_P_ARP, everything))(t)
	six, err := openNeighbour(w.Host.File, n)
	l.host6 = opened(six.(neighbourWire).frames, err)(t)
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

func nicIn(t *testing.T, ns *nodetest.Namespace, name string) nic {
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
	return n
}

func opened(f frames, err error) func(*testing.T) frames {
	return func(t *testing.T) frames {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.close() })
		return f
	}
}

func (l *lan) nodeMAC() string { return l.node.Get("red0").Attrs().HardwareAddr.String() }

// hear waits for the first packet that the host hears and that fits.
func (l *lan) hear(what string, fits func(*arp.Packet) bool) *arp.Packet {
	l.t.Helper()
	if err := l.host.setDeadline(time.Now().Add(patience)); err != nil {
		l.t.Fatal(err)
	}
	for {
		raw, _, err := l.host.read()
		if err != nil || raw == nil {
			l.t.Fatalf("%s: not heard within %s: %v", what, patience, err)
		}
		if p := new(arp.Packet); p.UnmarshalBinary(raw) == nil && fits(p) {
			return p
		}
	}
}

// ask sends a request from the host. sender is 0.0.0.0 for a probe.
func (l *lan) ask(sender, target netip.Addr) {
	l.t.Helper()
	p, err := arp.NewPacket(arp.OperationRequest, l.host.own, sender, make(net.HardwareAddr, 6), target)
	if err != nil {
		l.t.Fatal(err)
	}
	l.say(p)
}

// say sends an ARP packet from the host.
func (l *lan) say(p *arp.Packet) {
	l.t.Helper()
	if err := (arpWire{l.host}).sendPacket(p, nil, broadcast); err != nil {
		l.t.Fatal(err)
	}
}

// claim has the host say that the address is its own, or that of another Ethernet address.
func (l *lan) claim(a netip.Addr, mac net.HardwareAddr) {
	l.t.Helper()
	p, err := announcement(mac, a)
	if err != nil {
		l.t.Fatal(err)
	}
	l.say(p)
}

func announcementOf(a netip.Addr) func(*arp.Packet) bool {
	return func(p *arp.Packet) bool { return p.SenderIP == a && p.TargetIP == a }
}

// toHost reports whether p answers the host, and is no announcement.
func (l *lan) toHost(p *arp.Packet) bool {
	return p.Operation == arp.OperationReply && string(p.TargetHardwareAddr) == string(l.host.own)
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	l := newLAN(t, nil)
	l.responder.Set([]netip.Addr{ours}, nil)
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
	t.Parallel()
	l := newLAN(t, nil)
	l.responder.Set([]netip.Addr{ours, free}, nil)
	l.hear("responder at work", announcementOf(ours))
	l.ask(asker, ours)
	l.hear("answer before", l.toHost)
	l.responder.Set([]netip.Addr{free}, nil)
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
	l.responder.Set([]netip.Addr{ours}, nil)
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
	t.Parallel()
	l := newLAN(t, nil)
	l.responder.Set([]netip.Addr{free}, nil)
	l.hear("responder at work", announcementOf(free))
	began := time.Now()
	l.responder.Set([]netip.Addr{free, ours}, nil)
	l.hear("announcement", announcementOf(ours))
	t.Logf("first announcement after %s", time.Since(began))
}

// TestRecovers: the NIC goes down, or away altogether, and comes back.
func TestRecovers(t *testing.T) {
	t.Parallel()
	first := make(chan netip.Addr, 20)
	l := newLAN(t, func(r *Responder) { r.Changed = func(a netip.Addr, _ Standing) { first <- a } })
	await := func(what string) {
		t.Helper()
		for missing := map[netip.Addr]bool{ours: true, ours6: true}; len(missing) > 0; {
			select {
			case a := <-first:
				delete(missing, a)
			case <-time.After(patience):
				t.Fatalf("%s: %v not announced within %s", what, missing, patience)
			}
		}
	}
	l.responder.Set([]netip.Addr{ours, ours6}, nil)
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

// TestNICWithoutAddress: a provider NIC needs no address of its own, not even a link-local one.
func TestNICWithoutAddress(t *testing.T) {
	t.Parallel()
	l := newLAN(t, nil)
	link := l.node.Get("red0")
	addresses, err := l.node.Link.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if err := l.node.Link.AddrDel(link, &a); err != nil {
			t.Fatal(err)
		}
	}
	l.responder.Set([]netip.Addr{ours, ours6}, nil)
	l.hear("responder at work", announcementOf(ours))
	l.ask(asker, ours)
	l.hear("answer", l.toHost)
	l.hear6("announcement", func(m message) bool { return advertises(m, ours6) })
}
