//go:build secondkernel

package node

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"unsafe"

	"github.com/mdlayher/arp"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/nodetest"
)

// sighting is what somebody says of an address on the wire: "probe" or "announcement".
type sighting struct {
	what    string
	address netip.Addr
	tags    string // for instance "802.1Q 100", the outer one first
	from    string // Ethernet address
}

// tap notes what comes in by a link.
type tap struct {
	mu   sync.Mutex // guards what follows
	seen map[sighting]bool
}

func (p *tap) saw(s sighting) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[s]
}

func (p *tap) sawAny() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.seen) > 0
}

// others returns what was seen with other tags.
func (p *tap) others(tags string) (list []sighting) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.seen {
		if s.tags != tags {
			list = append(list, s)
		}
	}
	return list
}

// tap listens at a link until the test ends. The kernel puts the outer tag beside the frame (packet(7),
// PACKET_AUXDATA).
func (b *bench) tap(at *nodetest.Namespace, link string) *tap {
	b.t.Helper()
	p := &tap{seen: map[sighting]bool{}}
	var file *os.File
	at.Do(func() error {
		const everything = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8 // in network order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "tap")
		for _, option := range []int{unix.PACKET_AUXDATA, unix.PACKET_IGNORE_OUTGOING} {
			if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, option, 1); err != nil {
				return err
			}
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: at.Get(link).Attrs().Index})
	})
	b.t.Cleanup(func() { file.Close() })
	conn, err := file.SyscallConn()
	if err != nil {
		b.t.Fatal(err)
	}
	go func() {
		frame, beside := make([]byte, 9000), make([]byte, 256)
		for {
			var n, m int
			var failed error
			err := conn.Read(func(fd uintptr) bool {
				n, m, _, _, failed = unix.Recvmsg(int(fd), frame, beside, 0)
				return failed != unix.EAGAIN
			})
			if err != nil {
				return
			}
			if failed == nil {
				p.note(frame[:n], beside[:m])
			}
		}
	}()
	return p
}

func (p *tap) note(frame, beside []byte) {
	if len(frame) < 14 {
		return
	}
	var tags []string
	messages, _ := unix.ParseSocketControlMessage(beside)
	for _, m := range messages {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA {
			if aux := (*unix.TpacketAuxdata)(unsafe.Pointer(&m.Data[0])); aux.Status&unix.TP_STATUS_VLAN_VALID != 0 {
				tags = append(tags, tag(aux.Vlan_tpid, aux.Vlan_tci))
			}
		}
	}
	from, kind, rest := net.HardwareAddr(frame[6:12]).String(), binary.BigEndian.Uint16(frame[12:]), frame[14:]
	for ; (kind == unix.ETH_P_8021Q || kind == unix.ETH_P_8021AD) && len(rest) > 4; rest = rest[4:] {
		tags = append(tags, tag(kind, binary.BigEndian.Uint16(rest)))
		kind = binary.BigEndian.Uint16(rest[2:])
	}
	what, address := said(kind, rest)
	if what != "" {
		p.mu.Lock()
		p.seen[sighting{what, address, strings.Join(tags, " "), from}] = true
		p.mu.Unlock()
	}
}

func tag(protocol, control uint16) string {
	name := "802.1Q"
	if protocol == unix.ETH_P_8021AD {
		name = "802.1ad"
	}
	return fmt.Sprintf("%s %d", name, control&0xfff)
}

// said tells probes (RFC 5227 section 2.1.1, RFC 4862 section 5.4.2) and announcements of addresses from all else.
func said(kind uint16, packet []byte) (what string, a netip.Addr) {
	const solicitation, advertisement = 135, 136
	switch {
	case kind == unix.ETH_P_ARP:
		p := new(arp.Packet)
		if p.UnmarshalBinary(packet) != nil {
			return "", a
		}
		switch {
		case p.Operation == arp.OperationRequest && p.SenderIP == netip.IPv4Unspecified():
			return "probe", p.TargetIP
		case p.SenderIP == p.TargetIP:
			return "announcement", p.TargetIP
		}
	case kind == unix.ETH_P_IPV6 && len(packet) >= 64 && packet[6] == unix.IPPROTO_ICMPV6:
		source, target := netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[48:64]))
		switch packet[40] {
		case solicitation:
			if source.IsUnspecified() {
				return "probe", target
			}
		case advertisement:
			if packet[24] == 0xff {
				return "announcement", target
			}
		}
	}
	return "", a
}
