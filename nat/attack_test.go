package nat

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"floatip.io/floatip/test/lab"
)

// Even if the pod's routing sends everything by the leg, and the guest makes sources up, only the floating address
// leaves.
func TestGuardUnderAttack(t *testing.T) { eachVariant(t, guardUnderAttack) }

func guardUnderAttack(t *testing.T, w *world, vm *lab.VM) {
	vm.Pod.IP(t, "rule add pref 76 to 203.0.113.0/24 lookup 77", "-6 rule add pref 76 to 2001:db8:f::/64 lookup 77")
	vm.Pod.Sysctl(t, "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.k6t-eth0.rp_filter=0")
	vm.Guest.IP(t, "addr add 10.0.2.77/24 dev eth0", "addr add 192.0.2.66/32 dev eth0",
		"-6 addr add fd10:0:2::77/120 dev eth0 nodad", "-6 addr add 2001:db8:bad::66/128 dev eth0 nodad")
	w.Node.NFT(t, fmt.Sprintf(`
table netdev watch {
	chain in { type filter hook ingress device "fip1" priority 0;
		ip saddr %s accept
		ip6 saddr { %s, fe80::/10 } accept
		ip saddr 0.0.0.0/0 counter name leaked
		ip6 saddr ::/0 counter name leaked
	}
	counter leaked { }
}`, vm.Floating4, vm.Floating6))
	for source, to := range map[string]string{
		"10.0.2.77": lab.Outside4, "192.0.2.66": lab.Outside4, "fd10:0:2::77": lab.Outside6, "2001:db8:bad::66": lab.Outside6,
	} {
		if err := vm.Guest.Do(func() error { return sendFrom(source, to) }); err != nil {
			t.Fatalf("%s: %v", source, err)
		}
	}
	for _, to := range []string{lab.Outside4, lab.Outside6} { // the pod's own address by the wrong way
		if seen, err := vm.Pod.Ask("udp", to, 80, 0, silence); err == nil {
			t.Errorf("the pod called %s as %s by the leg", to, seen)
		}
	}
	eventually(t, "the guard drops 6 packets", func() bool { return guarded(t, vm) >= 6 })
	out := w.Node.Run(t, "", "nft", "list", "counter", "netdev", "watch", "leaked")
	if !strings.Contains(out, "packets 0 bytes 0") {
		t.Errorf("a foreign source left by the leg: %s", out)
	}
	if _, err := w.Host.Ask("tcp", vm.Floating4, 22, 0, patience); err != nil {
		t.Errorf("the floating address itself: %v", err)
	}
}

// What the guest sends under a foreign address leaves by no link at all, although neither the pod's kernel nor the CNI
// looks at sources: not under another VM's floating address, which the LAN would believe, not under its own, and not
// under a neighbour's of its own network. KubeVirt masquerades none of it.
func TestForeignSourcesStayInThePod(t *testing.T) { eachVariant(t, foreignSourcesStayInThePod) }

func foreignSourcesStayInThePod(t *testing.T, w *world, vm *lab.VM) {
	for _, link := range []string{"all", "default", "eth0", "k6t-eth0", "fip0"} {
		vm.Pod.Sysctl(t, "net.ipv4.conf."+link+".rp_filter=0")
	}
	w.Node.NFT(t, `
table netdev watch {
	chain cni { type filter hook ingress device "cni-vm1" priority 0; meta l4proto udp th dport 80 counter name left; }
	chain leg { type filter hook ingress device "fip1" priority 0; meta l4proto udp th dport 80 counter name left; }
	counter left { }
}`)
	foreign := map[string][]string{
		lab.Peer4: {"10.0.2.77", "192.0.2.66", "192.168.100.52", vm.Floating4, vm.Pod4, lab.Router4},
		lab.Peer6: {"fd10:0:2::77", "2001:db8:bad::66", "2001:db8:100::52", vm.Floating6, vm.Pod6, lab.Router6},
	}
	counted := func(want uint64) {
		t.Helper()
		eventually(t, fmt.Sprintf("the guard has dropped %d packets", want), func() bool { return guarded(t, vm) >= want })
	}
	n := uint64(0)
	outside := map[string]string{lab.Peer4: lab.Outside4, lab.Peer6: lab.Outside6}
	for peer, sources := range foreign {
		for _, source := range sources {
			family, bits, nodad := onLoopback(source)
			vm.Guest.IP(t, family+"addr add "+source+bits+nodad)
			for _, to := range []string{peer, outside[peer]} {
				if err := vm.Guest.Do(func() error { return sendFrom(source, to) }); err != nil {
					t.Fatalf("%s: %v", source, err)
				}
				n++
			}
			vm.Guest.IP(t, family+"addr del "+source+bits)
		}
	}
	counted(n)
	if out := w.Node.Run(t, "", "nft", "list", "counter", "netdev", "watch", "left"); !strings.Contains(out, "packets 0 bytes 0") {
		t.Errorf("a packet under a foreign source left the pod: %s", out)
	}
	w.check(t, []flow{{"vm1", "peer", "udp", 80, "vm1's pod"}, {"vm1", "outside", "udp", 80, "vm1's"}, {"vm1", "vm1's", "udp", 80, "vm1's"}})
}

// onLoopback returns the words of an ip command that puts source there.
func onLoopback(source string) (family, bits, nodad string) {
	if strings.Contains(source, ":") {
		return "-6 ", "/128 dev lo", " nodad"
	}
	return "", "/32 dev lo", ""
}

// countersOf leaves no socket behind: it is asked again and again.
func countersOf(t *testing.T, vm *lab.VM) []Counter {
	t.Helper()
	k, err := Open(Config{NetNS: vm.Pod.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	counters, err := k.Counters()
	if err != nil {
		t.Fatal(err)
	}
	return counters
}

func guarded(t *testing.T, vm *lab.VM) (n uint64) {
	t.Helper()
	for _, c := range countersOf(t, vm) {
		n += c.Guarded.Packets
	}
	return n
}

// What the node's kernel says to the pod's on the leg itself is heard and answered, and is no call that was refused.
func TestNeighboursOnTheLeg(t *testing.T) {
	t.Parallel()
	w, vm, kernel := newPlugged(t)
	if err := kernel.Apply(Desired(podNAT(vm))); err != nil {
		t.Fatal(err)
	}
	w.Node.IP(t, "route add 224.0.0.0/4 dev fip1")
	fields := strings.Fields(vm.Pod.Run(t, "", "ip", "-6", "-o", "addr", "show", "dev", "fip0", "scope", "link"))
	pod, _, _ := strings.Cut(fields[3], "/") // index, link, inet6, address
	say := func(network, to string) {
		t.Helper()
		err := w.Node.Do(func() error {
			conn, err := net.Dial(network, to)
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write([]byte("hello"))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	say("udp4", "224.0.0.1:9")
	say("udp6", "[ff02::1%fip1]:9")
	w.check(t, []flow{{"host", "vm1's", "udp", 80, "host"}}) // behind them on the leg
	if n := refused(t, vm); n != 0 {
		t.Errorf("%d packets to everybody on the leg were counted as refused calls", n)
	}
	say("udp6", "["+pod+"%fip1]:9")
	eventually(t, "the pod says where its link-local address is", func() bool {
		return strings.Contains(w.Node.Run(t, "", "ip", "-6", "neigh", "show", pod, "dev", "fip1"), "lladdr")
	})
}

// Whoever calls by the leg as the guest or its gateway gets nothing in, although the pod's kernel does not look at sources
// there (the agent's settings).
func TestPretendersAreRefused(t *testing.T) { eachVariant(t, pretendersAreRefused) }

func pretendersAreRefused(t *testing.T, w *world, vm *lab.VM) {
	vm.Pod.Sysctl(t, "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.fip0.rp_filter=0", "net.ipv4.conf.fip0.accept_local=1")
	vm.Guest.NFT(t, `
table inet watch {
	chain in { type filter hook input priority 0; udp dport 80 counter name came; }
	counter came { }
}`)
	before, tries := refused(t, vm), uint64(0)
	for source, to := range map[string]string{
		lab.Guest4: vm.Floating4, lab.Router4: vm.Floating4, "10.0.2.200": vm.Floating4,
		lab.Guest6: vm.Floating6, lab.Router6: vm.Floating6,
	} {
		family, bits, nodad := onLoopback(source)
		w.Node.IP(t, family+"addr add "+source+bits+nodad)
		if err := w.Node.Do(func() error { return sendFrom(source, to) }); err != nil {
			t.Fatalf("%s: %v", source, err)
		}
		tries++
	}
	eventually(t, "all of them are refused", func() bool { return refused(t, vm) >= before+tries })
	if out := vm.Guest.Run(t, "", "nft", "list", "counter", "inet", "watch", "came"); !strings.Contains(out, "packets 0 bytes 0") {
		t.Errorf("the guest heard somebody who pretends to be it or its gateway: %s", out)
	}
}

func refused(t *testing.T, vm *lab.VM) (n uint64) {
	t.Helper()
	for _, c := range countersOf(t, vm) {
		n += c.Refused.Packets
	}
	return n
}

func sendFrom(source, to string) error {
	conn, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(source)}, &net.UDPAddr{IP: net.ParseIP(to), Port: 80})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte("spoofed"))
	return err
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("not within %s: %s", patience, what)
		case <-again.C:
		}
	}
}

// Errors pass the translation in both directions: a closed port is refused to whoever called it.
func TestICMPErrorsReachTheCaller(t *testing.T) { eachVariant(t, icmpErrorsReachTheCaller) }

func icmpErrorsReachTheCaller(t *testing.T, w *world, vm *lab.VM) {
	for _, tc := range []struct {
		from *lab.Namespace
		to   string
	}{
		{w.Host, vm.Floating4}, {w.Host, vm.Floating6}, {vm.Guest, lab.Outside4}, {vm.Guest, lab.Outside6},
		{vm.Guest, vm.Floating4},
	} {
		eventually(t, "a closed port of "+tc.to+" is refused", func() bool { // a datagram may be lost
			_, err := tc.from.Ask("udp", tc.to, 9999, 0, silence)
			return errors.Is(err, unix.ECONNREFUSED)
		})
	}
}

// Path MTU discovery works through the translation: towards a narrow link behind the gateway, for what the guest opens and
// for what it answers, where the leg itself is the narrow one, and towards a guest whose own link is narrower than the leg.
// The latter two errors are made by the pod itself, one for the guest and one for the caller.
func TestPathMTU(t *testing.T) { eachVariant(t, pathMTU) }

func pathMTU(t *testing.T, w *world, vm *lab.VM) {
	w.Gateway.IP(t, "link set wan mtu 1400")
	w.Outside.IP(t, "link set eth0 mtu 1400")
	for _, to := range []string{lab.Outside4, lab.Outside6} {
		learnsMTU(t, vm.Guest, to, 1400)
	}
	for _, to := range []string{vm.Floating4, vm.Floating6} {
		answererLearnsMTU(t, w.Outside, vm, to, 1400)
	}
	vm.Pod.IP(t, "link set fip0 mtu 1370")
	w.Node.IP(t, "link set fip1 mtu 1370")
	for _, to := range []string{lab.Outside4, lab.Outside6} {
		learnsMTU(t, vm.Guest, to, 1370)
	}
	vm.Pod.IP(t, "link set tap0 mtu 1340", "link set k6t-eth0 mtu 1340")
	for _, to := range []string{vm.Floating4, vm.Floating6} {
		learnsMTU(t, w.Host, to, 1340)
		learnsMTU(t, w.Outside, to, 1340)
	}
}

// answererLearnsMTU is learnsMTU for a guest that answers a caller: the error is about a packet whose source is translated
// because its connection's destination was.
func answererLearnsMTU(t *testing.T, caller *lab.Namespace, vm *lab.VM, to string, want int) {
	t.Helper()
	const port = 9999
	var server net.PacketConn
	err := free(t, func() error {
		return vm.Guest.Do(func() (err error) {
			server, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	call, err := caller.Dial("udp", to, port, 0, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer call.Close()
	if _, err := call.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	server.SetReadDeadline(time.Now().Add(patience))
	_, from, err := server.ReadFrom(make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	var answer net.Conn
	err = free(t, func() (err error) {
		answer, err = vm.Guest.Dial("udp", from.(*net.UDPAddr).IP.String(), from.(*net.UDPAddr).Port, port, patience)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Close()
	learns(t, answer, to, want)
}

// free opens a socket on a port that was closed a moment ago: a program that another test starts at that moment has it for as
// long as it takes to begin.
func free(t *testing.T, open func() error) (err error) {
	t.Helper()
	eventually(t, "the port is free", func() bool {
		err = open()
		return !errors.Is(err, unix.EADDRINUSE)
	})
	return err
}

// learnsMTU sends datagrams that must not be fragmented until the kernel knows the path's MTU.
func learnsMTU(t *testing.T, from *lab.Namespace, to string, want int) {
	t.Helper()
	conn, err := from.Dial("udp", to, 80, 0, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// The connection is known everywhere before something on its way turns out to be narrow.
	conn.SetDeadline(time.Now().Add(patience))
	_, err = conn.Write([]byte{1})
	if err == nil {
		_, err = conn.Read(make([]byte, 128))
	}
	if err != nil {
		t.Fatal(err)
	}
	learns(t, conn, to, want)
}

func learns(t *testing.T, conn net.Conn, to string, want int) {
	t.Helper()
	level, discover, mtu := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_MTU
	if strings.Contains(to, ":") {
		level, discover, mtu = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_MTU
	}
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	control := func(f func(fd int) error) {
		if e := raw.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil || err != nil {
			t.Fatal(errors.Join(e, err))
		}
	}
	control(func(fd int) error { return unix.SetsockoptInt(fd, level, discover, unix.IP_PMTUDISC_DO) })
	have := 0
	eventually(t, fmt.Sprintf("path MTU to %s is %d", to, want), func() bool {
		control(func(fd int) (err error) { have, err = unix.GetsockoptInt(fd, level, mtu); return err })
		if have != want {
			conn.Write(make([]byte, have-48)) // EMSGSIZE is what we are here for
		}
		return have == want
	})
}

// Where the leg is the narrowest link, TCP learns it from the segment size in the handshake and needs no error.
func TestSegmentSizeFitsTheLeg(t *testing.T) { eachVariant(t, segmentSizeFitsTheLeg) }

func segmentSizeFitsTheLeg(t *testing.T, w *world, vm *lab.VM) {
	vm.Pod.IP(t, "link set fip0 mtu 1300")
	w.Node.IP(t, "link set fip1 mtu 1300")
	for to, headers := range map[string]int{vm.Floating4: 20 + 20, vm.Floating6: 40 + 20} {
		conn, err := w.Host.Dial("tcp", to, 22, 0, patience)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		size := 0
		control := raw.Control(func(fd uintptr) { size, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) })
		const timestamps = 12 // the option that both ends use
		if want := 1300 - headers - timestamps; err != nil || control != nil || size != want {
			t.Errorf("segment size to %s: want %d, have %d, %v", to, want, size, errors.Join(err, control))
		}
	}
}

func TestFragmentsAreTranslated(t *testing.T) { eachVariant(t, fragmentsAreTranslated) }

func fragmentsAreTranslated(t *testing.T, w *world, vm *lab.VM) {
	for _, tc := range []struct {
		from *lab.Namespace
		to   string
		seen string
	}{
		{w.Host, vm.Floating4, lab.Host4}, {w.Host, vm.Floating6, lab.Host6},
		{vm.Guest, lab.Outside4, vm.Floating4}, {vm.Guest, lab.Outside6, vm.Floating6},
	} {
		conn, err := tc.from.Dial("udp", tc.to, 80, 0, patience)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(patience))
		buf := make([]byte, 128)
		_, err = conn.Write(make([]byte, 4000))
		n := 0
		if err == nil {
			n, err = conn.Read(buf)
		}
		conn.Close()
		if err != nil || !strings.Contains(string(buf[:n]), tc.seen) {
			t.Errorf("4000 bytes to %s: want an answer to %s, have %q, %v", tc.to, tc.seen, buf[:n], err)
		}
	}
}
