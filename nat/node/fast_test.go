package node

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/fastpath"
	"floatip.io/floatip/test/lab"
)

// keeper is what kube-proxy has for forwarded packets (KUBE-FORWARD in pkg/proxy/iptables/proxier.go), and somebody's
// own rule against one port.
const keeper = `
table inet keeper {
	counter refused { }
	chain forward { type filter hook forward priority filter;
		th dport 22 counter name refused drop
		ct state invalid drop
		ct state established,related accept
	}
}`

// fastSuite is a VM with its leg on a node that filters what it forwards. It answers on port 7 with what it is sent.
func fastSuite(t *testing.T) *suite {
	t.Helper()
	s := newSuite(t, floatip.DeliveryLeg)
	s.places["node"].NFT(t, keeper)
	s.addDual(1, nil)
	s.places["vm1"].Echo(t, 7)
	s.places["host"].Echo(t, 7)
	s.places["outside"].Echo(t, 7)
	return s
}

func (s *suite) forwarded(t *testing.T) int { return forwardedBy(t, s.places["node"]) }

// forwardedBy is how many packets a node's IP layer has forwarded (ipForwDatagrams of RFC 4293).
func forwardedBy(t *testing.T, node *lab.Namespace) (packets int) {
	t.Helper()
	add := func(word string) {
		n, err := strconv.Atoi(word)
		if err != nil {
			t.Fatal(err)
		}
		packets += n
	}
	err := node.Do(func() error {
		four, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		six, err := os.ReadFile("/proc/thread-self/net/snmp6")
		if err != nil {
			return err
		}
		const forwDatagrams = 6 // of the line of values behind "Ip:"
		_, rest, _ := strings.Cut(string(four), "\n")
		add(strings.Fields(rest)[forwDatagrams])
		for line := range strings.Lines(string(six)) {
			if name, value, _ := strings.Cut(line, " "); name == "Ip6OutForwDatagrams" {
				add(strings.TrimSpace(value))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return packets
}

// dialed is a connection that has been answered on.
func (s *suite) dialed(t *testing.T, from, protocol, to string, port int) net.Conn {
	t.Helper()
	conn, err := s.places[from].Dial(protocol, to, port, 0, answered)
	if err != nil {
		t.Fatalf("%s to %s: %v", from, to, err)
	}
	t.Cleanup(func() { conn.Close() })
	s.exchange(t, conn, []byte("!"))
	return conn
}

// exchange sends data and waits for an answer, as often as datagrams are lost.
func (s *suite) exchange(t *testing.T, conn net.Conn, data []byte) {
	t.Helper()
	buf := make([]byte, 64)
	for deadline := time.Now().Add(answered); ; {
		if _, err := conn.Write(data); err != nil {
			t.Fatalf("%s to %s: %v", conn.LocalAddr(), conn.RemoteAddr(), err)
		}
		wait := answered
		if conn.LocalAddr().Network() == "udp" {
			wait = time.Second
		}
		conn.SetReadDeadline(time.Now().Add(wait))
		if _, err := conn.Read(buf); err == nil {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("%s to %s: no answer: %v", conn.LocalAddr(), conn.RemoteAddr(), err)
		}
	}
}

// forget makes the node's connection tracking forget all, as it does with a flow's beginning by and by.
func (s *suite) forget(t *testing.T) {
	t.Helper()
	if err := s.node.Link.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		t.Fatal(err)
	}
}

// TestFastPath: after the first packets, those of a connection pass the node without being routed there, in both directions,
// whoever began. The end of a connection reaches the other side, although the node's connection tracking knows nothing of it.
func TestFastPath(t *testing.T) {
	t.Parallel()
	s := fastSuite(t)
	s.run()
	for family, name := range []string{"IPv4", "IPv6"} {
		vm, host, outside := s.names["vm1's"][family], s.names["host"][family], s.names["outside"][family]
		for _, f := range []struct {
			from, protocol, to string
			port               int
		}{
			{"host", "tcp", vm, 7}, {"outside", "tcp", vm, 7}, {"vm1", "tcp", host, 7}, {"vm1", "tcp", outside, 7},
			{"host", "udp", vm, 80}, {"outside", "udp", vm, 80}, {"vm1", "udp", host, 80}, {"vm1", "udp", outside, 80},
		} {
			t.Run(fmt.Sprint(name, "/", f.protocol, "/", f.from, " to ", f.to), func(t *testing.T) {
				conn := s.dialed(t, f.from, f.protocol, f.to, f.port)
				s.exchange(t, conn, []byte("!"))
				before := s.forwarded(t)
				for range 20 {
					s.exchange(t, conn, []byte("!"))
				}
				if after := s.forwarded(t); after != before {
					t.Errorf("the node has routed %d packets of an established connection", after-before)
				}
				s.exchange(t, conn, bytes.Repeat([]byte("x"), 3000)) // datagrams come in fragments
				if half, ok := conn.(*net.TCPConn); ok {
					half.CloseWrite()
					half.SetReadDeadline(time.Now().Add(answered))
					if _, err := io.Copy(io.Discard, half); err != nil {
						t.Errorf("the other side does not close: %v", err)
					}
				}
			})
		}
	}
}

// TestFastPathFilters: what the node refuses to forward is refused, also when both sides send at once.
func TestFastPathFilters(t *testing.T) {
	t.Parallel()
	s := fastSuite(t)
	s.run()
	s.check(t,
		flow{"host", "vm1's", "tcp", 80, "host"}, flow{"host", "vm1's", "udp", 80, "host"},
		flow{"host", "vm1's", "tcp", 22, ""}, flow{"outside", "vm1's", "udp", 22, ""},
		flow{"vm1", "host", "tcp", 22, ""}, flow{"vm1", "outside", "udp", 22, ""},
	)
}

// TestFastPathTranslated: the node translates what a guest calls, as kube-proxy does for the address of a load balancer
// that it announces itself. Both directions of that take the ordinary way, and another connection to the same host does not.
func TestFastPathTranslated(t *testing.T) {
	t.Parallel()
	s := fastSuite(t)
	s.places["node"].NFT(t, `
table inet balancer { chain prerouting { type nat hook prerouting priority dstnat;
	ip daddr 192.168.100.99 tcp dport 80 dnat ip to 192.168.100.1:7
	ip6 daddr 2001:db8:100::99 tcp dport 80 dnat ip6 to [2001:db8:100::200]:7
}; }`)
	s.run()
	for family, balancer := range []string{"192.168.100.99", "2001:db8:100::99"} {
		conn, other := s.dialed(t, "vm1", "tcp", balancer, 80), s.dialed(t, "vm1", "tcp", s.names["host"][family], 7)
		before := s.forwarded(t)
		for range 10 {
			s.exchange(t, conn, []byte("!"))
			s.exchange(t, other, []byte("!"))
		}
		if routed := s.forwarded(t) - before; routed < 20 {
			t.Errorf("%s: %d packets were routed, want those of the translated connection, 20 at least", balancer, routed)
		}
	}
}

// TestFastPathTooBig: a router on the way says that a packet is too large. What the node would take for invalid, since it
// has not seen the packet, reaches the guest.
func TestFastPathTooBig(t *testing.T) {
	t.Parallel()
	s := fastSuite(t)
	s.run()
	lab.At("gateway", s.world.Host.File).IP(t, "link set wan mtu 1300")
	for family := range 2 {
		for _, way := range [][2]string{{"vm1", s.names["outside"][family]}, {"outside", s.names["vm1's"][family]}} {
			conn := s.dialed(t, way[0], "tcp", way[1], 7)
			s.forget(t)
			data := bytes.Repeat([]byte("x"), 20000)
			go conn.Write(data)
			conn.SetReadDeadline(time.Now().Add(answered))
			if n, err := io.ReadFull(conn, make([]byte, len(data))); err != nil {
				t.Errorf("%s to %s: %d of %d bytes came back: %v", way[0], way[1], n, len(data), err)
			}
		}
	}
}

// TestFastPathComesHere: somebody whom a guest talks to moves to the same node. What was sent out by the NIC before is not any
// more: nobody out there would answer for him.
func TestFastPathComesHere(t *testing.T) {
	t.Parallel()
	s := fastSuite(t)
	there := [2]string{"192.168.100.52/24", "2001:db8:100::52/64"}
	s.world.Host.Address("eth0", there[:]...)
	var servers []net.PacketConn
	for _, cidr := range there {
		err := s.places["host"].Do(func() error {
			a := netip.MustParsePrefix(cidr).Addr()
			server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 8000)))
			servers = append(servers, server)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, server := range servers {
		go func() {
			for buf := make([]byte, 64); ; {
				n, from, err := server.ReadFrom(buf)
				if err != nil {
					return
				}
				server.WriteTo(buf[:n], from)
			}
		}()
	}
	s.run()
	var conns []net.Conn
	for _, cidr := range there {
		conn := s.dialed(t, "vm1", "udp", netip.MustParsePrefix(cidr).Addr().String(), 8000)
		s.exchange(t, conn, []byte("!"))
		conns = append(conns, conn)
	}
	for i, server := range servers {
		server.Close()
		s.world.Host.Remove("eth0", there[i])
	}
	s.addDual(2, nil)
	s.places["vm2"].Serve(t, 8000)
	s.publish()
	s.allReady()
	for _, conn := range conns {
		s.exchange(t, conn, []byte("!"))
	}
}

// TestNoFastPath: an agent that is told so takes the fast path of an earlier one away, and so does the setting of the node
// with which a connection that left it would end. Connections go on by the ordinary way.
func TestNoFastPath(t *testing.T) {
	t.Parallel()
	s := fastSuite(t)
	table := func() bool {
		_, err := s.places["node"].Try("", "nft", "list", "table", "netdev", fastpath.Table)
		return err == nil
	}
	s.run()
	s.await("the fast path", table)
	var conns []net.Conn
	for family := range 2 {
		conns = append(conns, s.dialed(t, "host", "tcp", s.names["vm1's"][family], 7))
	}
	s.stop()
	s.noFastPath = true
	s.run()
	s.await("no fast path", func() bool { return !table() })
	s.tells("floatip_agent_fast_path 0")
	if status, err := AskStatus(t.Context(), s.node.File); err != nil || status.NoFastPath != errFastPathOff.Error() {
		t.Errorf("status %+v, %v; want %q as why there is no fast path", status, err, errFastPathOff)
	}
	for _, conn := range conns {
		before := s.forwarded(t)
		s.exchange(t, conn, []byte("!"))
		if s.forwarded(t) == before {
			t.Errorf("%s: nothing was routed", conn.RemoteAddr())
		}
	}
	s.stop()
	s.noFastPath = false
	s.run()
	s.await("the fast path again", table)
	s.tells("floatip_agent_fast_path 1")
	s.node.Sysctl("netfilter/nf_conntrack_tcp_loose=0")
	s.agent.Recheck()
	s.await("no fast path with tcp_loose=0", func() bool { return !table() })
	s.check(t, flow{"host", "vm1's", "tcp", 80, "host"})
}

// TestFastPathTooBigForGuest: the pod says that a packet is too large for the guest's link. The node, which would take that
// for invalid as well, lets it out.
func TestFastPathTooBigForGuest(t *testing.T) {
	t.Parallel()
	s := fastSuite(t)
	s.run()
	for family := range 2 {
		conn := s.dialed(t, "host", "tcp", s.names["vm1's"][family], 7)
		s.forget(t)
		lab.At("pod", s.guests["vm1"].File).IP(t, "link set k6t-eth0 mtu 1300")
		data := bytes.Repeat([]byte("x"), 20000)
		go conn.Write(data)
		conn.SetReadDeadline(time.Now().Add(answered))
		if n, err := io.ReadFull(conn, make([]byte, len(data))); err != nil {
			t.Errorf("%d of %d bytes came back: %v", n, len(data), err)
		}
		lab.At("pod", s.guests["vm1"].File).IP(t, "link set k6t-eth0 mtu 1500")
	}
}

// TestFastPathNewConnection: a connection with the ports of one that was a flow a moment ago is judged anew.
func TestFastPathNewConnection(t *testing.T) {
	t.Parallel()
	s := fastSuite(t)
	s.run()
	const port = 30000
	for family := range 2 {
		vm := s.names["vm1's"][family]
		conn, err := s.places["host"].Dial("tcp", vm, 7, port+family, answered)
		if err != nil {
			t.Fatal(err)
		}
		s.exchange(t, conn, []byte("!"))
		conn.(*net.TCPConn).SetLinger(0) // RST, so that the port is free at once
		conn.Close()
	}
	s.places["node"].NFT(t, fmt.Sprintf("insert rule inet keeper forward tcp sport %d-%d drop", port, port+1))
	for family := range 2 {
		if conn, err := s.places["host"].Dial("tcp", s.names["vm1's"][family], 7, port+family, silence); err == nil {
			conn.Close()
			t.Errorf("%s: a new connection passes what refuses it", conn.RemoteAddr())
		}
	}
}

// TestFastPathFlushed: somebody takes all rules of the node away. Young connections, of which connection tracking has seen the
// beginning alone, go on when the agent has put its own back.
func TestFastPathFlushed(t *testing.T) {
	t.Parallel()
	s := fastSuite(t)
	s.run()
	var conns []net.Conn
	for family := range 2 {
		conns = append(conns, s.dialed(t, "host", "tcp", s.names["vm1's"][family], 7))
	}
	s.places["node"].NFT(t, "flush ruleset")
	s.places["node"].NFT(t, keeper)
	s.agent.Recheck()
	for _, conn := range conns {
		s.exchange(t, conn, []byte("!"))
	}
}
