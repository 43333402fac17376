package nat

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"floatip.io/floatip"
	"floatip.io/floatip/test/lab"
)

const (
	patience = 3 * time.Second        // for an answer that must come
	silence  = 400 * time.Millisecond // for one that must not
)

// podNAT is the description that the webhook would write for vm.
func podNAT(vm *lab.VM) floatip.PodNAT {
	binding := func(floating, fixed, gateway, network string) floatip.Binding {
		return floatip.Binding{
			Floating: netip.MustParseAddr(floating), Fixed: netip.MustParseAddr(fixed),
			Gateway: netip.MustParseAddr(gateway), GuestNetwork: netip.MustParsePrefix(network), Ports: ports(vm.Ports),
		}
	}
	p := floatip.PodNAT{
		Version: floatip.PodNATVersion, Owner: floatip.Owner{Namespace: "shop", Name: "web", UID: "4711"},
		Interface: floatip.DefaultGuestInterface,
		Bindings: []floatip.Binding{
			binding(vm.Floating4, lab.Guest4, lab.Router4, "10.0.2.0/24"),
			binding(vm.Floating6, lab.Guest6, lab.Router6, "fd10:0:2::/120"),
		},
		ClusterNetworks: []netip.Prefix{
			netip.MustParsePrefix(lab.Node4 + "/32"), netip.MustParsePrefix(lab.Node6 + "/128"),
		},
	}
	for _, pods := range lab.Pods {
		p.ClusterNetworks = append(p.ClusterNetworks, netip.MustParsePrefix(pods))
	}
	return p
}

func ports(list []lab.Port) (out []floatip.Port) {
	for _, p := range list {
		name := map[string]string{"tcp": "TCP", "udp": "UDP"}[p.Protocol]
		out = append(out, floatip.Port{Protocol: name, Number: uint16(p.Number)})
	}
	return out
}

// flow is one line of a flow table.
type flow struct {
	from, to string // a place of the cloud; to may be a floating address: "vm1's"
	protocol string
	port     int
	seenAs   string // "" for silence
}

// world is a cloud with names for its places.
type world struct {
	*lab.Cloud
	vms    map[string]*lab.VM
	places map[string]*lab.Namespace
	names  map[string][2]string // address of each place and name, IPv4 and IPv6
}

func newWorld(t *testing.T, vms map[string][]lab.Port) *world {
	t.Helper()
	c := lab.NewCloud(t)
	w := &world{Cloud: c, vms: map[string]*lab.VM{}}
	w.places = map[string]*lab.Namespace{"host": c.Host, "outside": c.Outside, "node": c.Node, "peer": c.Peer}
	w.names = map[string][2]string{
		"host": {lab.Host4, lab.Host6}, "outside": {lab.Outside4, lab.Outside6}, "node": {lab.Node4, lab.Node6},
		"peer": {lab.Peer4, lab.Peer6},
	}
	for _, ns := range w.places {
		ns.Serve(t, 22, 80)
	}
	n := 0
	for _, name := range []string{"vm1", "vm2"} {
		ports, ok := vms[name]
		if n++; !ok {
			continue
		}
		vm := c.AddVM(t, n, ports...)
		vm.Guest.Serve(t, 22, 80, 7777)
		w.vms[name], w.places[name] = vm, vm.Guest
		w.names[name+"'s"] = [2]string{vm.Floating4, vm.Floating6}
		w.names[name+"'s pod"] = [2]string{vm.Pod4, vm.Pod6}
	}
	return w
}

func (w *world) address(t *testing.T, name string, family int) string {
	t.Helper()
	pair, ok := w.names[name]
	if !ok {
		t.Fatalf("no place %q", name)
	}
	return pair[family]
}

// check walks a flow table, once in IPv4 and once in IPv6.
func (w *world) check(t *testing.T, flows []flow) {
	t.Helper()
	for family, name := range []string{"IPv4", "IPv6"} {
		for _, f := range flows {
			t.Run(fmt.Sprintf("%s/%s to %s %s %d", name, f.from, f.to, f.protocol, f.port), func(t *testing.T) {
				w.checkFlow(t, f, family)
			})
		}
	}
}

func (w *world) checkFlow(t *testing.T, f flow, family int) {
	t.Helper()
	to := w.address(t, f.to, family)
	if f.seenAs == "" {
		if seen, err := w.places[f.from].Ask(f.protocol, to, f.port, 0, silence); err == nil {
			t.Fatalf("want silence, have an answer to %s", seen)
		}
		return
	}
	seen, err := w.places[f.from].Ask(f.protocol, to, f.port, 0, patience)
	if err != nil {
		t.Fatal(err)
	}
	if want := w.address(t, f.seenAs, family); f.protocol != "icmp" && seen.Addr().String() != want {
		t.Errorf("seen as %s, want %s", seen.Addr(), want)
	}
}

func TestFlows(t *testing.T) {
	w := newWorld(t, map[string][]lab.Port{"vm1": nil, "vm2": nil})
	for _, vm := range w.vms {
		vm.KubeVirt(t)
		vm.PlugLeg(t)
		if err := openKernel(t, vm.Pod).Apply(Desired(podNAT(vm))); err != nil {
			t.Fatal(err)
		}
	}
	var flows []flow
	for _, protocol := range []string{"tcp", "udp", "icmp"} {
		flows = append(flows,
			flow{"host", "vm1's", protocol, 22, "host"},
			flow{"outside", "vm1's", protocol, 80, "outside"},
			flow{"node", "vm1's", protocol, 22, "node"},
			flow{"peer", "vm1's", protocol, 22, "peer"},
			flow{"vm1", "host", protocol, 80, "vm1's"},
			flow{"vm1", "outside", protocol, 80, "vm1's"},
			flow{"vm1", "peer", protocol, 80, "vm1's pod"},
			flow{"vm1", "node", protocol, 80, "vm1's pod"},
			flow{"vm1", "vm1's", protocol, 80, "vm1's"},
			flow{"vm1", "vm2's", protocol, 80, "vm1's"},
			flow{"vm2", "vm1's", protocol, 80, "vm2's"},
			flow{"peer", "vm1's pod", protocol, 80, "peer"},
		)
	}
	w.check(t, flows)
}

// A VM that lists ports is reached at those and by ping. Other calls die without an answer and without going in circles,
// from everywhere, the guest itself included.
func TestListedPorts(t *testing.T) {
	w := newWorld(t, map[string][]lab.Port{"vm1": {{Protocol: "tcp", Number: 22}, {Protocol: "udp", Number: 80}}})
	vm := w.vms["vm1"]
	vm.KubeVirt(t)
	vm.PlugLeg(t)
	kernel := openKernel(t, vm.Pod)
	if err := kernel.Apply(Desired(podNAT(vm))); err != nil {
		t.Fatal(err)
	}
	w.check(t, []flow{
		{"host", "vm1's", "tcp", 22, "host"},
		{"host", "vm1's", "udp", 80, "host"},
		{"host", "vm1's", "icmp", 0, "host"},
		{"vm1", "vm1's", "tcp", 22, "vm1's"},
		{"vm1", "outside", "tcp", 80, "vm1's"},
		{"vm1", "outside", "udp", 22, "vm1's"},
		{"vm1", "peer", "tcp", 80, "vm1's pod"},
	})
	countCalls(t, w, vm)
	w.check(t, []flow{
		{"host", "vm1's", "tcp", 80, ""},
		{"host", "vm1's", "udp", 22, ""},
		{"outside", "vm1's", "tcp", 7777, ""},
		{"peer", "vm1's", "tcp", 80, ""},
		{"vm1", "vm1's", "tcp", 80, ""},
	})
	// Per family: 4 calls by the leg, of one packet each; a SYN may be repeated once.
	if n := calls(t, w); n < 8 || n > 16 {
		t.Errorf("8 calls of unlisted ports made %d packets on the leg, want one or two for each", n)
	}
	counters, err := kernel.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range counters {
		if c.Refused.Packets < 5 || c.In.Packets == 0 || c.Out.Packets == 0 || c.Guarded.Packets != 0 {
			t.Errorf("counters of %s: want 5 or more refused, traffic both ways and none guarded, have %+v", c.Floating, c)
		}
	}
}

// countCalls counts from now on what the node sends to the floating addresses of vm by the leg. Neighbour discovery is
// not among it: it is for other addresses.
func countCalls(t *testing.T, w *world, vm *lab.VM) {
	t.Helper()
	w.Node.NFT(t, fmt.Sprintf(`
table inet calls {
	counter calls { }
	chain out { type filter hook postrouting priority 300;
		oifname "fip-br" ip daddr %s counter name calls
		oifname "fip-br" ip6 daddr %s counter name calls
	}
}`, vm.Floating4, vm.Floating6))
}

func calls(t *testing.T, w *world) (n int) {
	t.Helper()
	listing := w.Node.Run(t, "", "nft", "list", "counter", "inet", "calls", "calls")
	_, figures, _ := strings.Cut(listing, "packets ")
	if _, err := fmt.Sscan(figures, &n); err != nil {
		t.Fatalf("%s: %v", listing, err)
	}
	return n
}

// NAT is one to one: addresses change, ports do not. Connections survive a migration because of that.
func TestPortsArePreserved(t *testing.T) {
	w, _ := oneVM(t)
	for family := range 2 {
		for i, f := range []flow{{"host", "vm1's", "tcp", 22, "host"}, {"vm1", "outside", "udp", 80, "vm1's"}, {"vm1", "vm1's", "tcp", 22, "vm1's"}} {
			port := 40000 + 10*family + i
			seen, err := w.places[f.from].Ask(f.protocol, w.address(t, f.to, family), f.port, port, patience)
			want := netip.AddrPortFrom(netip.MustParseAddr(w.address(t, f.seenAs, family)), uint16(port))
			if err != nil || seen != want {
				t.Errorf("%s to %s: want to be seen as %s, have %s, %v", f.from, f.to, want, seen, err)
			}
		}
	}
}

// oneVM is a world with one VM without a port list whose rules stand.
func oneVM(t *testing.T) (*world, *lab.VM) {
	t.Helper()
	w := newWorld(t, map[string][]lab.Port{"vm1": nil})
	vm := w.vms["vm1"]
	vm.KubeVirt(t)
	vm.PlugLeg(t)
	if err := openKernel(t, vm.Pod).Apply(Desired(podNAT(vm))); err != nil {
		t.Fatal(err)
	}
	return w, vm
}

// The rules may come before KubeVirt's commands, between any two, or after them.
func TestFlowsInWhateverOrderTheRulesCame(t *testing.T) {
	for _, tc := range []struct {
		name   string
		before int // of KubeVirt's commands
	}{{"before", 0}, {"halfway", 9}, {"after", 26}} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, map[string][]lab.Port{"vm1": nil})
			vm := w.vms["vm1"]
			commands := vm.KubeVirtCommands()
			runNFT(t, vm.Pod, commands[:tc.before])
			if err := openKernel(t, vm.Pod).Apply(Desired(podNAT(vm))); err != nil {
				t.Fatal(err)
			}
			runNFT(t, vm.Pod, commands[tc.before:])
			vm.PlugLeg(t)
			w.check(t, []flow{
				{"host", "vm1's", "tcp", 22, "host"},
				{"vm1", "outside", "tcp", 80, "vm1's"},
				{"vm1", "vm1's", "udp", 80, "vm1's"},
				{"vm1", "peer", "udp", 80, "vm1's pod"},
			})
		})
	}
}

func runNFT(t *testing.T, ns *lab.Namespace, commands []string) {
	t.Helper()
	for _, c := range commands {
		ns.Run(t, "", "nft", c)
	}
}

// The firewall admits what its entries say, in both directions. Answers always pass, and the cluster and the guest's
// calls of itself are no business of the leg.
func TestFirewall(t *testing.T) {
	w := newWorld(t, map[string][]lab.Port{"vm1": nil})
	vm := w.vms["vm1"]
	vm.KubeVirt(t)
	vm.PlugLeg(t)
	kernel := openKernel(t, vm.Pod)
	p := podNAT(vm)
	p.Firewall = &floatip.Firewall{
		Ingress: admitted("192.168.100.0/24 tcp/20-30", "203.0.113.9 icmp", "2001:db8:100::/64 tcp/20-30", "2001:db8:f::9 icmp"),
		Egress:  admitted("192.168.100.9 any", "2001:db8:100::9 any"),
	}
	if err := kernel.Apply(Desired(p)); err != nil {
		t.Fatal(err)
	}
	w.check(t, []flow{
		{"host", "vm1's", "tcp", 22, "host"},
		{"host", "vm1's", "tcp", 80, ""},
		{"host", "vm1's", "udp", 22, ""},
		{"host", "vm1's", "icmp", 0, ""},
		{"outside", "vm1's", "tcp", 22, ""},
		{"outside", "vm1's", "icmp", 0, "outside"},
		{"vm1", "host", "tcp", 80, "vm1's"},
		{"vm1", "host", "udp", 22, "vm1's"},
		{"vm1", "outside", "tcp", 80, ""},
		{"vm1", "outside", "icmp", 0, ""},
		{"vm1", "vm1's", "tcp", 80, "vm1's"},
		{"vm1", "peer", "tcp", 80, "vm1's pod"},
	})
	p.Firewall = &floatip.Firewall{}
	if err := kernel.Apply(Desired(p)); err != nil {
		t.Fatal(err)
	}
	w.check(t, []flow{
		{"host", "vm1's", "tcp", 22, ""},
		{"vm1", "host", "tcp", 80, ""},
		{"vm1", "peer", "tcp", 80, "vm1's pod"},
	})
}

// Even if the pod's routing sends everything by the leg, and the guest makes sources up, only the floating address
// leaves.
func TestGuardUnderAttack(t *testing.T) {
	w, vm := oneVM(t)
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
	kernel := openKernel(t, vm.Pod)
	guarded := func() (n uint64) {
		counters, err := kernel.Counters()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range counters {
			n += c.Guarded.Packets
		}
		return n
	}
	eventually(t, "the guard drops 6 packets", func() bool { return guarded() >= 6 })
	if out := w.Node.Run(t, "", "nft", "list", "counter", "netdev", "watch", "leaked"); !strings.Contains(out, "packets 0 bytes 0") {
		t.Errorf("a foreign source left by the leg: %s", out)
	}
	if _, err := w.Host.Ask("tcp", vm.Floating4, 22, 0, patience); err != nil {
		t.Errorf("the floating address itself: %v", err)
	}
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
	deadline := time.After(5 * time.Second)
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("not within 5 s: %s", what)
		case <-again.C:
		}
	}
}

// Errors pass the translation in both directions: a closed port is refused to whoever called it.
func TestICMPErrorsReachTheCaller(t *testing.T) {
	w, vm := oneVM(t)
	for _, tc := range []struct {
		from *lab.Namespace
		to   string
	}{{w.Host, vm.Floating4}, {vm.Guest, lab.Outside4}, {w.Host, vm.Floating6}, {vm.Guest, lab.Outside6}, {vm.Guest, vm.Floating4}} {
		eventually(t, "a closed port of "+tc.to+" is refused", func() bool { // a datagram may be lost
			_, err := tc.from.Ask("udp", tc.to, 9999, 0, silence)
			return errors.Is(err, unix.ECONNREFUSED)
		})
	}
}

// Path MTU discovery works through the translation: towards a narrow link behind the gateway, and towards a guest whose
// own link is narrower than the leg; the latter error is made by the pod itself.
func TestPathMTU(t *testing.T) {
	w, vm := oneVM(t)
	w.Gateway.IP(t, "link set wan mtu 1400")
	w.Outside.IP(t, "link set eth0 mtu 1400")
	for _, to := range []string{lab.Outside4, lab.Outside6} {
		learnsMTU(t, vm.Guest, to, 1400)
	}
	vm.Pod.IP(t, "link set tap0 mtu 1340", "link set k6t-eth0 mtu 1340")
	for _, to := range []string{vm.Floating4, vm.Floating6} {
		learnsMTU(t, w.Host, to, 1340)
		learnsMTU(t, w.Outside, to, 1340)
	}
}

// learnsMTU sends datagrams that must not be fragmented until the kernel knows the path's MTU.
func learnsMTU(t *testing.T, from *lab.Namespace, to string, want int) {
	t.Helper()
	conn, err := from.Dial("udp", to, 80, 0, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
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
func TestSegmentSizeFitsTheLeg(t *testing.T) {
	w, vm := oneVM(t)
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

func TestFragmentsAreTranslated(t *testing.T) {
	w, vm := oneVM(t)
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
