package node

import (
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"floatip.io/floatip/nat/node/announce"
)

// TestAnnouncedAtOnce: a guest that has arrived is announced and reached without waiting for a round of the agent. Here the API
// server's view keeps each of them waiting until then.
func TestAnnouncedAtOnce(t *testing.T) {
	t.Parallel()
	r := newRoad(t)
	host := r.from.world.Host
	udp := startEcho(t, r.source.Guest, host, fifty.String()+":7")
	udp.pass(3)
	r.begin()
	r.listened()
	heard := host.Frames("eth0")
	r.to.cluster.mu.Lock()
	unlock := sync.OnceFunc(r.to.cluster.mu.Unlock)
	defer unlock()
	r.cut()
	r.to.awaitAnnouncement(heard, fifty)
	for deadline := time.Now().Add(patience); !udp.send(20 * time.Millisecond); { // the first may still go to the other node
		if time.Now().After(deadline) {
			t.Fatal("the guest is announced and not reached")
		}
	}
	unlock()
	r.arrived()
	r.finish()
}

// TestYieldsToOne: an address is given up when the node that the guest goes to announces it, and when no other one does.
func TestYieldsToOne(t *testing.T) {
	right, wrong := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	for name, tt := range map[string]struct {
		move announce.Move
		want bool
	}{
		"the node that it goes to":    {announce.Move{Address: fifty, Node: "there", MAC: right, NIC: "red0"}, true},
		"a third node":                {announce.Move{Address: fifty, Node: "third", MAC: wrong, NIC: "red0"}, false},
		"this node by another NIC":    {announce.Move{Address: fifty, Node: "here", MAC: right, NIC: "red0"}, false},
		"an address that does not go": {announce.Move{Address: fifty6, Node: "there", MAC: right, NIC: "red0"}, false},
	} {
		yielded := false
		r := newResponders(Options{Name: "here", Log: slog.New(slog.DiscardHandler)}, func() {})
		r.leaving = map[netip.Addr]leaving{fifty: {macs: []string{right.String()}, yielded: func() { yielded = true }}}
		r.moved(tt.move)
		change, changed := r.changes[tt.move.Address]
		if yielded != tt.want || changed != tt.want || change.nic != "" {
			t.Errorf("%s announces %s: yielded %t, dropped %t; want %t", name, tt.move.Address, yielded, changed, tt.want)
		}
	}
}
