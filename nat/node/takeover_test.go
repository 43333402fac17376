package node

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/flows"
	"floatip.io/floatip/nat/node/nodetest"
)

// datagram is a UDP packet as package unread has it.
func datagram(to net.HardwareAddr, from, at netip.AddrPort, text string) []byte {
	f := make([]byte, 10, 100) // a virtio_net_hdr that asks for nothing
	f = append(f, to...)
	f = append(f, 2, 0, 0, 0, 0, 0, 8, 0)
	ip := make([]byte, 20)
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(text)))
	copy(ip[12:], from.Addr().AsSlice())
	copy(ip[16:], at.Addr().AsSlice())
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	f = append(f, ip...)
	for _, v := range []uint16{from.Port(), at.Port(), uint16(8 + len(text)), 0} { // no checksum
		f = binary.BigEndian.AppendUint16(f, v)
	}
	return append(f, text...)
}

// TestGive: what the old node has kept reaches the guest, if it is of a connection that was taken over, addressed to the guest,
// and the guest has just arrived; anything else does not.
func TestGive(t *testing.T) {
	t.Parallel()
	w := nodetest.NewWorld(t)
	pod := w.AddNode("10").AddPod("a", "100.0.0.1")
	mac := pod.Guest.Get("eth0").Attrs().HardwareAddr
	client, guest := netip.MustParseAddrPort(nodetest.LANHost+":4000"), netip.MustParseAddrPort(nodetest.GuestFixed+":7")
	var l net.PacketConn
	pod.Guest.Do(func() (err error) {
		l, err = net.ListenPacket("udp4", guest.String())
		return err
	})
	t.Cleanup(func() { l.Close() })
	table, err := flows.Open(pod.File)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	give := &writer{
		journey: new(journey), table: table, bindings: nodetest.Describe(floatip.Owner{}, fifty).Bindings,
		held: map[flows.Key]flows.Entry{}, inward: map[flows.Key]bool{}, ns: pod.File, bridge: "k6t-eth0", macs: []string{mac.String()},
		stale: patience,
	}
	give.apply(flows.Changes{Put: []flows.Entry{{
		Protocol: unix.IPPROTO_UDP, Timeout: 30,
		Original: flows.Tuple{Source: client.Addr(), SourcePort: 4000, Destination: fifty, DestinationPort: 7},
		Reply:    flows.Tuple{Source: guest.Addr(), SourcePort: 7, Destination: client.Addr(), DestinationPort: 4000},
	}}})
	if give.put != 1 {
		t.Fatal("the connection was not taken over")
	}
	give.give([][]byte{datagram(mac, client, guest, "too early")})
	give.journey.arrived = time.Now().Add(-2 * patience)
	give.give([][]byte{datagram(mac, client, guest, "too late")})
	give.journey.arrived = time.Now()
	give.give([][]byte{
		nil, make([]byte, 5), make([]byte, 30),
		datagram(mac, netip.AddrPortFrom(client.Addr(), 4001), guest, "of no connection"),
		datagram(net.HardwareAddr{0x52, 0x54, 0, 0, 0, 9}, client, guest, "to somebody else"),
		datagram(mac, client, guest, "good"),
	})
	if err := l.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, from, err := l.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "good" || from.String() != client.String() || give.given != 1 {
		t.Errorf("the guest got %q from %v, %v; %d packets were given, want the good one", buf[:n], from, err, give.given)
	}
}
