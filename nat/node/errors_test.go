package node

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"floatip.io/floatip"
	"floatip.io/floatip/nat"
	"floatip.io/floatip/nat/node/nodetest"
	"floatip.io/floatip/test/lab"
)

// setMTU sets the MTU of a link.
func setMTU(t *testing.T, n *nodetest.Namespace, link string, mtu int) {
	t.Helper()
	if err := n.Link.LinkSetMTU(n.Get(link), mtu); err != nil {
		t.Fatal(err)
	}
}

// dialUDP opens a UDP socket in the namespace that never fragments what it sends itself where whole is true.
func dialUDP(t *testing.T, from *lab.Namespace, to netip.Addr, port int, whole bool) *net.UDPConn {
	t.Helper()
	conn, err := from.Dial("udp", to.String(), port, 0, answered)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	udp := conn.(*net.UDPConn)
	if !whole {
		return udp
	}
	raw, err := udp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		if to.Is4() {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		} else {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
		}
	})
	if err := errors.Join(err, set); err != nil {
		t.Fatal(err)
	}
	return udp
}

// learns sends packets that are too large for the way until the sender's kernel refuses them, because an ICMP error
// told it so.
func learns(conn *net.UDPConn, size int) bool {
	for deadline := time.Now().Add(answered); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if _, err := conn.Write(make([]byte, size)); errors.Is(err, unix.EMSGSIZE) {
			return true
		}
	}
	return false
}

// TestICMPErrors: errors about a floating address find their way, in both directions and families: "fragmentation
// needed" from a link with a smaller MTU on either side, and "port unreachable" from the guest.
func TestICMPErrors(t *testing.T) {
	t.Parallel()
	eachDelivery(t, func(t *testing.T, s *suite) {
		v := s.addDual(1, nil)
		setMTU(t, s.node.Namespace, "cali1", 1400)
		for _, link := range []string{"eth0", "k6t-eth0", "tap0"} {
			setMTU(t, v.Namespace, link, 1400)
		}
		setMTU(t, s.world.Host, "wan", 1350)
		s.run()
		for family, to := range v.floating {
			outside := netip.MustParseAddr(s.names["outside"][family])
			if !learns(dialUDP(t, s.places["host"], to, 9, true), 1430) {
				t.Errorf("a host on the LAN does not learn that the way to %s is narrow", to)
			}
			if !learns(dialUDP(t, s.places["vm1"], outside, 9, true), 1340) {
				t.Errorf("the guest does not learn that the way to %s is narrow", outside)
			}
			if !refused(dialUDP(t, s.places["host"], to, 9, false)) {
				t.Errorf("a host on the LAN is not told that nobody listens at %s", to)
			}
			if !refused(dialUDP(t, s.places["vm1"], outside, 9, false)) {
				t.Errorf("the guest is not told that nobody listens at %s", outside)
			}
		}
	})
}

// refused sends until the sender is told that the port is closed.
func refused(conn *net.UDPConn) bool {
	for deadline := time.Now().Add(answered); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if _, err := conn.Write([]byte("?")); errors.Is(err, unix.ECONNREFUSED) {
			return true
		}
	}
	return false
}

// TestErrorsBeyondTheGateway: the node itself says that a packet is too large for the pod's link, to a host that its
// own routes would look for elsewhere.
func TestErrorsBeyondTheGateway(t *testing.T) {
	t.Parallel()
	eachDelivery(t, func(t *testing.T, s *suite) {
		s.node.Route("::/0", nodetest.Peer6, "green0") // without any route the kernel says nothing
		v := s.addDual(1, nil)
		setMTU(t, s.node.Namespace, "cali1", 1400)
		for _, link := range []string{"eth0", "k6t-eth0", "tap0"} {
			setMTU(t, v.Namespace, link, 1400)
		}
		s.run()
		for _, to := range v.floating {
			if !learns(dialUDP(t, s.places["outside"], to, 9, true), 1430) {
				t.Errorf("a host beyond the gateway does not learn that the way to %s is narrow", to)
			}
		}
	})
}

// TestFragments: a datagram that takes three packets arrives whole, both ways.
func TestFragments(t *testing.T) {
	t.Parallel()
	eachDelivery(t, func(t *testing.T, s *suite) {
		v := s.addDual(1, nil)
		s.run()
		var server net.PacketConn
		v.Guest.Do(func() (err error) {
			server, err = net.ListenPacket("udp", ":9")
			return err
		})
		t.Cleanup(func() { server.Close() })
		go func() {
			buf := make([]byte, 9000)
			for {
				n, from, err := server.ReadFrom(buf)
				if err != nil {
					return
				}
				server.WriteTo(buf[:n], from)
			}
		}()
		large := bytes.Repeat([]byte("floatip."), 500)
		for _, to := range v.floating {
			for _, from := range []string{"host", "outside", "peer"} {
				conn := dialUDP(t, s.places[from], to, 9, false)
				conn.SetDeadline(time.Now().Add(answered))
				if _, err := conn.Write(large); err != nil {
					t.Fatal(err)
				}
				back := make([]byte, 9000)
				if n, err := conn.Read(back); err != nil || !bytes.Equal(back[:n], large) {
					t.Errorf("%s to %s: %d of %d bytes come back, %v", from, to, n, len(large), err)
				}
			}
		}
	})
}

// TestForgedSources: a pod in foreign hands, whose rules are gone, sends under the addresses of its neighbour. The node
// drops it, also where reverse-path filtering is off, as some CNIs set it.
func TestForgedSources(t *testing.T) {
	t.Parallel()
	eachDelivery(t, func(t *testing.T, s *suite) {
		s.addDual(1, nil)
		evil := s.addDual(2, nil)
		s.run()
		for _, path := range []string{"all", "cali1", "cali2", "red0"} {
			s.node.Sysctl("ipv4/conf/" + path + "/rp_filter=0")
		}
		heard := s.hear(t, nodetest.LANHost+":9")
		evil.Run("nft flush ruleset")
		mark := map[floatip.Delivery]int{floatip.DeliveryLeg: nat.LegMark}[s.delivery]
		sources := []string{"192.168.100.51", "192.168.100.77", "100.0.0.1"}
		last := "192.168.100.52"
		if s.delivery == floatip.DeliveryNodeNAT {
			sources, last = append(sources, "192.168.100.52"), evil.IP
		}
		for _, source := range append(sources, last) {
			if source != evil.IP {
				evil.Address("lo", source+"/32")
			}
			evil.SendMarked(mark, source, nodetest.LANHost+":9")
		}
		for timeout := time.After(answered); ; {
			select {
			case from := <-heard:
				switch from {
				case "192.168.100.52":
					return // its own, sent last
				case "100.0.0.1":
					// A forged address of a pod is the CNI's business; it must not become a floating one.
				default:
					t.Errorf("the LAN heard %s", from)
				}
				continue
			case <-timeout:
				t.Fatal("the LAN heard nothing, not even from the pod's own address")
			}
		}
	})
}

// hear listens on the LAN host and says whom it hears.
func (s *suite) hear(t *testing.T, address string) <-chan string {
	t.Helper()
	var lan net.PacketConn
	s.world.Host.Do(func() (err error) {
		lan, err = net.ListenPacket("udp4", address)
		return err
	})
	t.Cleanup(func() { lan.Close() })
	heard := make(chan string, 8)
	go func() {
		for buf := make([]byte, 64); ; {
			_, from, err := lan.ReadFrom(buf)
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(from.String())
			heard <- host
		}
	}()
	return heard
}

// TestAntiSpoofingCNI: a CNI that lets a pod use its own address alone is past what Routed can do, and no matter to the
// others.
func TestAntiSpoofingCNI(t *testing.T) {
	t.Parallel()
	eachDelivery(t, func(t *testing.T, s *suite) {
		v := s.addDual(1, nil)
		s.node.Run("nft add table inet cni", "nft add chain inet cni from { type filter hook prerouting priority raw ; }",
			"nft add rule inet cni from iifname cali1 ip saddr != "+v.IP+" drop",
			"nft add rule inet cni from iifname cali1 ip6 saddr != { fd30::1, fe80::/10, :: } drop")
		s.run()
		flows := []flow{{"host", "vm1's", "tcp", 22, "host"}, {"vm1", "outside", "tcp", 80, "vm1's"}}
		if s.delivery == floatip.DeliveryRouted {
			flows = []flow{{"host", "vm1's", "tcp", 22, ""}, {"peer", "vm1's pod", "tcp", 22, "peer"}}
		}
		s.check(t, flows...)
	})
}
