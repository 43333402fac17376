package nat

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"floatip.io/floatip/test/lab"
)

// A guest that has no address yet asks the pod for one, by DHCP from no address and by DHCPv6 from its link-local one
// (RFC 2131 section 4.1, RFC 8415 section 14). The pod hears it, and neither is taken for an attack.
func TestGuestAsksForItsAddress(t *testing.T) { eachVariant(t, guestAsksForItsAddress) }

func guestAsksForItsAddress(t *testing.T, _ *world, vm *lab.VM) {
	for _, to := range []netip.AddrPort{
		netip.MustParseAddrPort("255.255.255.255:67"), netip.MustParseAddrPort("[ff02::1:2]:547"),
	} {
		server := listenOnBridge(t, vm.Pod, to)
		if to.Addr().Is4() {
			vm.Guest.IP(t, "addr del "+lab.Guest4+"/24 dev eth0")
		}
		if err := vm.Guest.Do(func() error { return ask(to) }); err != nil {
			t.Fatalf("%s: %v", to, err)
		}
		server.SetReadDeadline(time.Now().Add(patience))
		_, from, err := server.ReadFromUDPAddrPort(make([]byte, 16))
		if err != nil {
			t.Fatalf("%s: the pod does not hear the guest: %v", to, err)
		}
		if a := from.Addr().Unmap(); !a.IsUnspecified() && !a.IsLinkLocalUnicast() {
			t.Errorf("the guest asks as %s, which shows nothing", a)
		}
	}
	if n := guarded(t, vm); n != 0 {
		t.Errorf("%d of the guest's questions were taken for an attack", n)
	}
}

// listenOnBridge is a server for everybody on the guest's bridge.
func listenOnBridge(t *testing.T, pod *lab.Namespace, at netip.AddrPort) (server *net.UDPConn) {
	t.Helper()
	err := pod.Do(func() (err error) {
		if at.Addr().Is4() {
			server, err = net.ListenUDP("udp4", &net.UDPAddr{Port: int(at.Port())})
			return err
		}
		bridge, err := net.InterfaceByName(lab.Ordinary.Bridge())
		if err == nil {
			server, err = net.ListenMulticastUDP("udp6", bridge, net.UDPAddrFromAddrPort(at))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return server
}

// ask sends a datagram to everybody on eth0.
func ask(to netip.AddrPort) error {
	family, address := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		family, address = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1), unix.BindToDevice(fd, "eth0"))
	return errors.Join(err, unix.Sendto(fd, []byte("?"), 0, address))
}

// A guest that has migrated here before the node has plugged the leg goes on with connections that this pod has never
// seen. They wait: by the CNI's link they would leave under the pod's address, and whoever gets them would reset them.
func TestConnectionsWaitForTheLeg(t *testing.T) { eachVariant(t, connectionsWaitForTheLeg) }

func connectionsWaitForTheLeg(t *testing.T, w *world, vm *lab.VM) {
	vm.Pod.IP(t, "link del fip0") // of which the guest will know nothing
	if _, err := ForgetFlows(Config{NetNS: vm.Pod.FD()}, func(Flow) bool { return true }); err != nil {
		t.Fatal(err)
	}
	w.Node.NFT(t, `
table netdev watch {
	chain cni { type filter hook ingress device "cni-vm1" priority 0; meta l4proto tcp tcp flags & syn == 0 counter name left; }
	counter left { }
}`)
	for i, to := range []string{lab.Outside4, lab.Outside6} {
		before := guarded(t, vm)
		guest, outside := netip.MustParseAddr(vmAddress(vm, i)), netip.MustParseAddr(to)
		if err := vm.Guest.Do(func() error { return segmentOf(guest, outside) }); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the segment to "+to+" stays in the pod", func() bool { return guarded(t, vm) > before })
	}
	if out := w.Node.Run(t, "", "nft", "list", "counter", "netdev", "watch", "left"); !strings.Contains(out, "packets 0 bytes 0") {
		t.Errorf("a segment of an unknown connection left by the CNI's link: %s", out)
	}
}

// segmentOf sends a TCP segment from the middle of a connection (RFC 9293 section 3.1, ACK).
func segmentOf(source, to netip.Addr) error {
	raw := []byte{0x4e, 0x20, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, 0x10, 0xff, 0xff, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(raw[16:], checksum(raw, source, to, unix.IPPROTO_TCP))
	return sendRaw(unix.IPPROTO_TCP, source, to, raw)
}
