package nat

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"floatip.io/floatip"
	"floatip.io/floatip/test/lab"
)

// The kernel lets through what Admitted.Admits says, and nothing else: random firewalls against every packet of a small
// universe, in both directions and both families. The entries are few and close to each other, so that ends of ranges of
// addresses, protocols and ports meet packets on both sides.
func TestKernelAgreesWithAdmits(t *testing.T) {
	w, vm, kernel := newPlugged(t)
	for family := range familyNames {
		outside := outsiders(t, w, family)
		for seed := range uint64(8) {
			t.Run(fmt.Sprintf("%s/%d", familyNames[family], seed), func(t *testing.T) {
				r := rand.New(rand.NewPCG(seed, uint64(family)))
				p := podNAT(vm)
				p.Firewall = &floatip.Firewall{Ingress: randomly(r, outside), Egress: randomly(r, outside)}
				if err := p.Validate(); err != nil {
					t.Fatal(err)
				}
				if err := kernel.Apply(Desired(p)); err != nil {
					t.Fatal(err)
				}
				guest := netip.MustParseAddr(vmAddress(vm, family))
				floating := p.Bindings[family].Floating
				inwards := direction{vm.Pod, vm.Guest, "saddr", func(c Counter) uint64 { return c.In.Packets + c.Refused.Packets },
					func(o netip.Addr, x probe) error { return x.send(w.Host, o, floating) }}
				inwards.agrees(t, kernel, floating, p.Firewall.Ingress, outside)
				outwards := direction{vm.Pod, w.Host, "daddr", func(c Counter) uint64 { return c.Out.Packets + c.Refused.Packets },
					func(o netip.Addr, x probe) error { return x.send(vm.Guest, guest, o) }}
				outwards.agrees(t, kernel, floating, p.Firewall.Egress, outside)
			})
		}
	}
}

// outsiders gives the host of the LAN some addresses in a row.
func outsiders(t *testing.T, w *world, family int) (out []netip.Addr) {
	t.Helper()
	a := netip.MustParseAddr([]string{"192.168.100.30", "2001:db8:100::30"}[family])
	for range 6 {
		out = append(out, a)
		w.Host.IP(t, fmt.Sprintf([]string{"addr add %s/24 dev eth0", "-6 addr add %s/64 dev eth0 nodad"}[family], a))
		a = a.Next()
	}
	return out
}

// probe is a packet that opens a connection.
type probe struct {
	protocol floatip.Protocol
	port     uint16
}

// gre stands for the protocols that have no name in an entry.
const gre floatip.Protocol = unix.IPPROTO_GRE

var probes = func() (list []probe) {
	for _, protocol := range []floatip.Protocol{floatip.ProtocolTCP, floatip.ProtocolUDP, floatip.ProtocolSCTP} {
		for port := range uint16(6) {
			list = append(list, probe{protocol, 1000 + port})
		}
	}
	return append(list, probe{floatip.ProtocolICMP, 0}, probe{gre, 0})
}()

// randomly admits some of the universe: now and then all or nothing of it, else disjoint entries.
func randomly(r *rand.Rand, outside []netip.Addr) (a floatip.Admitted) {
	a.Everything = r.IntN(12) == 0
	for range r.IntN(12) {
		first, port := r.IntN(len(outside)), uint16(r.IntN(6))
		e := floatip.Entry{
			Addresses: floatip.AddressRange{First: outside[first], Last: outside[first+r.IntN(len(outside)-first)]},
			Protocol: []floatip.Protocol{floatip.ProtocolAny, floatip.ProtocolICMP, floatip.ProtocolTCP, floatip.ProtocolUDP,
				floatip.ProtocolSCTP}[r.IntN(5)],
			Ports: floatip.AllPorts(),
		}
		if e.Protocol.HasPorts() && r.IntN(5) > 0 {
			e.Ports = floatip.PortRange{First: 1000 + port, Last: 1000 + port + uint16(r.IntN(6-int(port)))}
		}
		if !a.Everything && !slices.ContainsFunc(a.Entries, e.Overlaps) {
			a.Entries = append(a.Entries, e)
		}
	}
	slices.SortFunc(a.Entries, floatip.CompareEntries)
	return a
}

// direction is that of the probes.
type direction struct {
	pod    *lab.Namespace
	at     *lab.Namespace // where they arrive
	side   string         // of the outsider in a packet that arrives
	judged func(Counter) uint64
	send   func(outsider netip.Addr, x probe) error
}

// agrees sends every probe from or to every outsider and compares what arrives with what a says.
func (d direction) agrees(t *testing.T, kernel *Kernel, floating netip.Addr, a floatip.Admitted, outside []netip.Addr) {
	t.Helper()
	// An answer to an earlier probe of the other direction would pass: GRE has no ports to tell it from a call.
	if _, err := ForgetFlows(Config{NetNS: d.pod.FD()}, func(Flow) bool { return true }); err != nil {
		t.Fatal(err)
	}
	d.listen(t, floating)
	var want []string
	sent, before := uint64(0), d.count(t, kernel, floating)
	for _, o := range outside {
		for _, x := range probes {
			if err := d.send(o, x); err != nil {
				t.Fatalf("%s %v: %v", o, x, err)
			}
			sent++
			if a.Admits(o, x.protocol, x.port) {
				want = append(want, x.heardAs(o))
			}
		}
	}
	slices.Sort(want)
	var have []string
	defer func() {
		if t.Failed() {
			t.Logf("%s: admitted %v\n(-want +have)\n%s", d.side, a, cmp.Diff(want, have))
		}
	}()
	eventually(t, "every packet is judged", func() bool {
		have = heard(t, d.at, familyOf(floating))
		return d.count(t, kernel, floating)-before >= sent
	})
	eventually(t, "what arrives is what is admitted", func() bool {
		have = heard(t, d.at, familyOf(floating))
		return slices.Equal(want, have)
	})
}

// listen keeps what arrives from now on.
func (d direction) listen(t *testing.T, floating netip.Addr) {
	t.Helper()
	f := familyOf(floating)
	d.at.NFT(t, strings.NewReplacer("FAMILY", f.ip, "OUTSIDER", f.ip+" "+d.side, "ICMP", map[bool]string{true: "icmp", false: "icmpv6"}[floating.Is4()]).Replace(`
table FAMILY heard
delete table FAMILY heard
table FAMILY heard {
	set ports { typeof OUTSIDER . meta l4proto . th dport; flags dynamic; size 4096; }
	set others { typeof OUTSIDER . meta l4proto; flags dynamic; size 4096; }
	chain heard { type filter hook prerouting priority raw;
		meta l4proto { tcp, udp, sctp } th dport 1000-1005 add @ports { OUTSIDER . meta l4proto . th dport }
		ICMP type echo-request add @others { OUTSIDER . meta l4proto }
		meta l4proto gre add @others { OUTSIDER . meta l4proto }
	}
}`))
}

// count returns how many packets were judged since the pod started.
func (d direction) count(t *testing.T, kernel *Kernel, floating netip.Addr) uint64 {
	t.Helper()
	counters, err := kernel.Counters()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(counters, func(c Counter) bool { return c.Floating == floating })
	return d.judged(counters[i])
}

var setElements = regexp.MustCompile(`elements = \{([^}]*)\}`)

// heard returns what listen has kept, sorted.
func heard(t *testing.T, at *lab.Namespace, f family) (out []string) {
	t.Helper()
	listing := at.Run(t, "", "nft", "-n", "list", "table", f.ip, "heard")
	for _, match := range setElements.FindAllStringSubmatch(listing, -1) {
		for _, element := range strings.Split(match[1], ",") {
			out = append(out, strings.TrimSpace(element))
		}
	}
	slices.Sort(out)
	return out
}

// heardAs is how nft lists x from or to o: "-n" shows protocols as numbers.
func (x probe) heardAs(o netip.Addr) string {
	if x.protocol.HasPorts() {
		return fmt.Sprintf("%s . %d . %d", o, x.protocol, x.port)
	}
	return fmt.Sprintf("%s . %d", o, x.number(o))
}

// number is that of the protocol header.
func (x probe) number(o netip.Addr) int {
	if x.protocol == floatip.ProtocolICMP && o.Is6() {
		return unix.IPPROTO_ICMPV6
	}
	return int(x.protocol)
}

// send sends x from a raw socket: nothing of the sender's kernel stands between.
func (x probe) send(from *lab.Namespace, source, to netip.Addr) error {
	return from.Do(func() error { return sendRaw(x.number(source), source, to, x.bytes(source, to)) })
}

// sendRaw sends what stands behind the network header of a packet.
func sendRaw(protocol int, source, to netip.Addr, raw []byte) error {
	family := unix.AF_INET
	if source.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, sockaddr(source)); err != nil {
		return err
	}
	return unix.Sendto(fd, raw, 0, sockaddr(to))
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

// bytes is the packet behind its network header, with a checksum that connection tracking finds right.
func (x probe) bytes(source, to netip.Addr) []byte {
	const port = 20000 // of the source
	raw := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, port), x.port)
	switch x.protocol {
	case floatip.ProtocolTCP: // RFC 9293 section 3.1, SYN
		raw = append(raw, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, 0x02, 0xff, 0xff, 0, 0, 0, 0)
		binary.BigEndian.PutUint16(raw[16:], checksum(raw, source, to, unix.IPPROTO_TCP))
	case floatip.ProtocolUDP: // RFC 768
		raw = append(raw, 0, 8, 0, 0)
		binary.BigEndian.PutUint16(raw[6:], checksum(raw, source, to, unix.IPPROTO_UDP))
	case floatip.ProtocolSCTP: // RFC 9260 sections 3.1 and 3.3.2, INIT
		raw = append(raw, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 2, 0, 2, 0, 0, 0, 1)
		binary.LittleEndian.PutUint32(raw[8:], crc32.Checksum(raw, crc32.MakeTable(crc32.Castagnoli)))
	case floatip.ProtocolICMP: // RFC 792, RFC 4443 section 4.1; the kernel fills in the checksum of ICMPv6
		raw = []byte{8, 0, 0, 0, 0, 1, 0, 1}
		if source.Is6() {
			raw[0] = 128
		} else {
			binary.BigEndian.PutUint16(raw[2:], onesComplement(raw, 0))
		}
	default: // RFC 2784, and as much behind it as the kernel's translation wants (gre_manip_pkt in net/netfilter/nf_nat_proto.c)
		raw = []byte{0, 0, 0x08, 0x00, 0, 0, 0, 0}
	}
	return raw
}

// checksum includes the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1).
func checksum(raw []byte, source, to netip.Addr, protocol uint32) uint16 {
	sum := protocol + uint32(len(raw))
	for _, a := range [][]byte{source.AsSlice(), to.AsSlice()} {
		for i := 0; i < len(a); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(a[i:]))
		}
	}
	return onesComplement(raw, sum)
}

// onesComplement is that of RFC 1071, of an even number of bytes.
func onesComplement(raw []byte, sum uint32) uint16 {
	for i := 0; i < len(raw); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(raw[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
