package announce

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/ndp"
)

var (
	ours6  = netip.MustParseAddr("2001:db8:100::50")
	asker6 = netip.MustParseAddr("2001:db8:100::200")
)

func solicit(options []ndp.Option) *ndp.NeighborSolicitation {
	return &ndp.NeighborSolicitation{TargetAddress: ours6, Options: options}
}

func TestHearNeighbour(t *testing.T) {
	sll := []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: otherMAC}}
	group := groupOf(ours6)
	for _, tt := range []struct {
		name string
		in   message
		want heard
	}{
		{"a solicitation asks, and claims the sender's address", message{asker6, group, solicit(sll)},
			heard{from: otherMAC, claims: asker6, asks: ours6, asker: asker6}},
		{"one to the address itself too", message{asker6, ours6, solicit(nil)},
			heard{from: otherMAC, asks: ours6, asker: asker6}},
		{"one from nowhere probes", message{netip.IPv6Unspecified(), group, solicit(nil)},
			heard{from: otherMAC, asks: ours6, probe: true, asker: netip.IPv6Unspecified()}},
		{"one from nowhere with an address is none", message{netip.IPv6Unspecified(), group, solicit(sll)},
			heard{}},
		{"one from nowhere to a single host is none", message{netip.IPv6Unspecified(), ours6, solicit(nil)},
			heard{}},
		{"an advertisement claims", message{ours6, allNodes, advertisement(otherMAC, ours6, false)},
			heard{from: otherMAC, claims: ours6, asker: ours6}},
		{"our own, reflected by the switch, says nothing", message{ours6, allNodes, advertisement(ownMAC, ours6, false)}, heard{}},
		{"a router's says nothing", message{asker6, allNodes, &ndp.RouterAdvertisement{}}, heard{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := hearNeighbour(tt.in, otherMAC, ownMAC)
			if !ok {
				got = heard{}
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(heard{}), compareAddresses); diff != "" {
				t.Errorf("heard (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPackets: what is sent can be read again, and says what it shall.
func TestPackets(t *testing.T) {
	for _, tt := range []struct {
		name                 string
		make                 func() ([]byte, net.HardwareAddr, error)
		to, destination      string
		source               netip.Addr
		solicited, advertise bool
	}{
		{"announcement", func() ([]byte, net.HardwareAddr, error) { return announceNeighbour(ownMAC, ours6) },
			"33:33:00:00:00:01", "ff02::1", ours6, false, true},
		{"answer to a host", func() ([]byte, net.HardwareAddr, error) {
			return answerNeighbour(ownMAC, heard{from: otherMAC, asks: ours6, asker: asker6})
		}, otherMAC.String(), asker6.String(), ours6, true, true},
		{"answer to a probe", func() ([]byte, net.HardwareAddr, error) {
			return answerNeighbour(ownMAC, heard{from: otherMAC, asks: ours6, probe: true, asker: netip.IPv6Unspecified()})
		}, "33:33:00:00:00:01", "ff02::1", ours6, false, true},
		{"probe", func() ([]byte, net.HardwareAddr, error) { return probeNeighbour(ours6) },
			"33:33:ff:00:00:50", "ff02::1:ff00:50", netip.IPv6Unspecified(), false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			raw, to, err := tt.make()
			if err != nil {
				t.Fatal(err)
			}
			m, ok := parseNeighbour(raw)
			if !ok || to.String() != tt.to || m.destination.String() != tt.destination || m.source != tt.source {
				t.Fatalf("read %t, to %s; from %s to %s", ok, to, m.source, m.destination)
			}
			na, is := m.body.(*ndp.NeighborAdvertisement)
			if is != tt.advertise {
				t.Fatalf("message is %T", m.body)
			}
			if is && (!na.Override || na.Router || na.Solicited != tt.solicited || na.TargetAddress != ours6 ||
				linkAddress(na.Options, ndp.Target).String() != ownMAC.String()) {
				t.Errorf("advertisement is %+v", na)
			}
			for i := range raw { // any bit that flips on the way is found, or lies in what nothing depends on
				bad := slices.Clone(raw)
				bad[i] ^= 0x10
				if _, ok := parseNeighbour(bad); ok && i > 3 {
					t.Errorf("byte %d changed, and still read", i)
				}
			}
		})
	}
}

// FuzzParseNeighbour: what anybody on the LAN sends.
func FuzzParseNeighbour(f *testing.F) {
	raw, _, err := announceNeighbour(ownMAC, ours6)
	if err != nil {
		f.Fatal(err)
	}
	probe, _, err := probeNeighbour(ours6)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(probe)
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, ok := parseNeighbour(raw)
		if !ok {
			return
		}
		if h, ok := hearNeighbour(m, otherMAC, ownMAC); ok && !h.claims.IsValid() && !h.asks.IsValid() {
			t.Errorf("heard something that says nothing: %+v", h)
		}
	})
}
