package fastpath

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/nftrule"
)

// How long a flow is remembered. None of these is renewed by packets: that would cost each of them another look.
const (
	// Life is that of a TCP connection. One that lasts longer takes the ordinary way then.
	Life = 24 * time.Hour
	// closing is what is left of it after the guest's FIN, or anybody's RST: as long as nf_conntrack_tcp_timeout_close_wait
	// (Documentation/networking/nf_conntrack-sysctl.rst). A side that goes on for longer takes the ordinary way then.
	closing = time.Minute
	// datagrams is that of a UDP flow, nf_conntrack_udp_timeout. Two packets make it a flow again.
	datagrams = 30 * time.Second
	// seen is how long what came by the NIC waits for the answer. A SYN that is repeated (RFC 6298 section 2) is seen again.
	seen = 5 * time.Second
)

// Sizes of the sets. The kernel makes a table of 8 to 16 bytes for each of these at once, about 100 more for one that is
// there. Addresses have a size because the kernel searches a set faster that does not grow (nft_set_hash.c).
const (
	addressesMost = 16384
	tcpFlows      = 131072
	udpFlows      = 65536
	seenMost      = 32768
)

const (
	syn = 0x02
	fin = 0x01
	rst = 0x04
	ack = 0x10
)

// family is what rules of IPv4 and IPv6 differ in.
type family struct {
	name           string // in names of sets and chains
	word           string // of nft
	etherType      uint16
	size           uint32 // of an address in bytes
	source         uint32 // offset of the addresses in the header, the destination's follows the source's
	protocol       uint32 // offset of the number of the protocol that follows (RFC 791 section 3.1, RFC 8200 section 3)
	icmp           byte
	nfproto        uint32
	keyType        nftables.SetDatatype
	minimalHeaders uint32 // of the header without options
}

var (
	ipv4 = family{"4", "ip", unix.ETH_P_IP, 4, 12, 9, unix.IPPROTO_ICMP, unix.NFPROTO_IPV4, nftables.TypeIPAddr, 20}
	ipv6 = family{"6", "ip6", unix.ETH_P_IPV6, 16, 8, 6, unix.IPPROTO_ICMPV6, unix.NFPROTO_IPV6, nftables.TypeIP6Addr, 40}
)

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

// Names of sets and of the map. What is in here are the addresses of this node, what is in legs leads to the links of those
// that have a leg.
func (f family) flows(protocol string) string { return protocol + "_flows" + f.name }
func (f family) seen(protocol string) string  { return protocol + "_seen" + f.name }
func (f family) legs() string                 { return "legs" + f.name }
func (f family) here() string                 { return "here" + f.name }

type part = nftrule.Part

// rule makes a rule. Its text is for people: KEY stands for the addresses and ports of a flow in the order of the sets, @flows
// and @seen for the sets of the family and the protocol, and IP for the family's word. nft lists the rule in full.
func (f family) rule(text string, parts ...part) nftrule.Rule {
	return nftrule.New(nftables.TableFamilyNetdev, strings.ReplaceAll(text, "IP", f.word), parts...)
}

// Registers of a flow's key: who is outside, the floating address, and their ports. Behind them is room for others.
func (f family) outside() uint32  { return nftrule.Register(0) }
func (f family) floating() uint32 { return nftrule.Register(f.size / 4) }
func (f family) ports() (outside, floating uint32) {
	return nftrule.Register(f.size / 2), nftrule.Register(f.size/2 + 1)
}
func (f family) spare() uint32 { return nftrule.Register(f.size/2 + 4 - f.size/2%4) }

func load(register uint32, base expr.PayloadBase, offset, size uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: size}
}

func number(kind expr.CmpOp, register uint32, data ...byte) expr.Any {
	return &expr.Cmp{Op: kind, Register: register, Data: data}
}

// place is where a key's addresses and ports are in a packet.
type place struct {
	base                 expr.PayloadBase // of the addresses
	source, destination  uint32
	sourcePort, destPort uint32
}

func (f family) header() place {
	return place{expr.PayloadBaseNetworkHeader, f.source, f.source + f.size, 0, 2}
}

// quoted is the packet that an ICMP error is about (RFC 792, RFC 4443 section 3), behind 8 bytes.
func (f family) quoted() place {
	const behind = 8
	return place{
		expr.PayloadBaseTransportHeader, behind + f.source, behind + f.source + f.size,
		behind + f.minimalHeaders, behind + f.minimalHeaders + 2,
	}
}

// inbound is the key of what somebody outside sends to a floating address, outbound that of the other direction: one flow
// has one key.
func (f family) inbound(p place) part {
	outside, floating := f.ports()
	return part{
		load(f.outside(), p.base, p.source, f.size), load(f.floating(), p.base, p.destination, f.size),
		load(outside, expr.PayloadBaseTransportHeader, p.sourcePort, 2),
		load(floating, expr.PayloadBaseTransportHeader, p.destPort, 2),
	}
}

func (f family) outbound(p place) part {
	p.source, p.destination, p.sourcePort, p.destPort = p.destination, p.source, p.destPort, p.sourcePort
	return f.inbound(p)
}

func (f family) in(set string) part {
	return part{&expr.Lookup{SourceRegister: f.outside(), SetName: set}}
}

// remember puts the key into set, or makes it last anew.
func (f family) remember(set string, life time.Duration) part {
	return part{&expr.Dynset{
		SrcRegKey: f.outside(), SetName: set, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: life,
	}}
}

// leg finds the leg of the floating address of an inbound key.
func (f family) leg() part {
	return part{&expr.Lookup{
		SourceRegister: f.floating(), SetName: f.legs(), DestRegister: f.spare(), IsDestRegSet: true,
	}}
}

// toHere matches packets to a floating address of this node.
func (f family) toHere() part {
	return part{
		load(f.floating(), expr.PayloadBaseNetworkHeader, f.source+f.size, f.size),
		&expr.Lookup{SourceRegister: f.floating(), SetName: f.here()},
	}
}

// forward takes the link's number from the spare register (nft_fwd_netdev.c: fwd IP to ADDRESS device LINK). The
// neighbour table of that link knows, or finds out, the Ethernet address.
func (f family) forward(address uint32) part {
	u32 := binaryutil.BigEndian.PutUint32
	return part{nftrule.Expression("fwd",
		netlink.Attribute{Type: fwdDevice, Data: u32(f.spare())},
		netlink.Attribute{Type: fwdAddress, Data: u32(address)},
		netlink.Attribute{Type: fwdProtocol, Data: u32(f.nfproto)})}
}

// Attributes of fwd (NFTA_FWD_SREG_DEV and others in include/uapi/linux/netfilter/nf_tables.h).
const (
	fwdDevice = 1 + iota
	fwdAddress
	fwdProtocol
)

// of begins the rules of a protocol's chain, which only such packets reach: nft needs it to list the rest by its names.
func (f family) of(protocol byte) part {
	return append(f.any(), f.isProtocol(protocol)...)
}

// any matches packets of the family.
func (f family) any() part {
	return part{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: f.outside()},
		number(expr.CmpOpEq, f.outside(), binaryutil.BigEndian.PutUint16(f.etherType)...),
	}
}

func (f family) tcp() part { return f.of(unix.IPPROTO_TCP) }
func (f family) udp() part { return f.of(unix.IPPROTO_UDP) }

// isProtocol matches the protocol behind the header, and behind that of IPv6 alone when nothing stands in between: a
// fragment has an extension header (RFC 8200 section 4.5).
func (f family) isProtocol(protocol byte) part {
	return part{load(f.outside(), expr.PayloadBaseNetworkHeader, f.protocol, 1), number(expr.CmpOpEq, f.outside(), protocol)}
}

// whole matches IPv4 packets that are no fragments (RFC 791 section 3.1): connection tracking puts those together, and a
// part of them must not pass it by.
func (f family) whole() part {
	if f.size != 4 {
		return nil
	}
	const offset, moreAndOffset = 6, 0x3fff
	return part{load(f.outside(), expr.PayloadBaseNetworkHeader, offset, 2),
		masked(f.outside(), f.outside(), binaryutil.BigEndian.PutUint16(moreAndOffset)),
		number(expr.CmpOpEq, f.outside(), 0, 0)}
}

func masked(from, to uint32, mask []byte) expr.Any {
	return &expr.Bitwise{SourceRegister: from, DestRegister: to, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))}
}

// flags matches TCP packets (RFC 9293 section 3.1) of whose flags under mask those of value are set, or are not.
func (f family) flags(mask byte, kind expr.CmpOp, value byte) part {
	const offset = 13
	return part{load(f.outside(), expr.PayloadBaseTransportHeader, offset, 1),
		masked(f.outside(), f.outside(), []byte{mask}), number(kind, f.outside(), value)}
}

func verdict(kind expr.VerdictKind, chain string) part {
	return part{&expr.Verdict{Kind: kind, Chain: chain}}
}

func gotoChain(chain string) part { return verdict(expr.VerdictGoto, chain) }

// shared are the chains that every NIC leads to. Packets of a flow meet the first rules, before any jump.
func (f family) shared() []nftrule.Chain {
	in := func(protocol string) string { return "in_" + protocol + f.name }
	key := f.inbound(f.header())
	first := []nftrule.Rule{
		f.rule("IP protocol tcp tcp flags & (syn|rst) == 0 IP frag-off & 0x3fff == 0 KEY @flows fwd IP to IP daddr device IP daddr map @legs",
			f.tcp(), f.flags(syn|rst, expr.CmpOpEq, 0), f.whole(), key, f.in(f.flows("tcp")), f.leg(), f.forward(f.floating())),
		f.rule("IP protocol udp IP frag-off & 0x3fff == 0 KEY @flows fwd IP to IP daddr device IP daddr map @legs",
			f.udp(), f.whole(), key, f.in(f.flows("udp")), f.leg(), f.forward(f.floating())),
	}
	return []nftrule.Chain{
		{Name: "in" + f.name, Rules: append(first, f.byProtocol(in)...)},
		{Name: in("tcp"), Rules: []nftrule.Rule{
			f.rule("tcp flags & rst != 0 IP frag-off & 0x3fff == 0 KEY @flows update @flows { KEY timeout 1m } fwd …",
				f.tcp(), f.flags(rst, expr.CmpOpNeq, 0), f.whole(), key, f.in(f.flows("tcp")), f.leg(),
				f.remember(f.flows("tcp"), closing), f.forward(f.floating())),
			f.rule("tcp flags & syn != 0 IP frag-off & 0x3fff == 0 update @seen { KEY timeout 5s }",
				f.tcp(), f.flags(syn, expr.CmpOpNeq, 0), f.whole(), key, f.remember(f.seen("tcp"), seen)),
		}},
		{Name: in("udp"), Rules: []nftrule.Rule{
			f.rule("IP frag-off & 0x3fff == 0 update @seen { KEY timeout 5s }",
				f.udp(), f.whole(), key, f.remember(f.seen("udp"), seen)),
		}},
		{Name: in("icmp"), Rules: f.errors(f.outbound(f.quoted()), part{
			load(f.floating(), expr.PayloadBaseNetworkHeader, f.source+f.size, f.size), f.leg()[0]}, f.forward(f.floating()))},
	}
}

// byProtocol leads to the chains of the protocols.
func (f family) byProtocol(chain func(protocol string) string) (rules []nftrule.Rule) {
	for _, p := range []struct {
		name   string
		number byte
	}{{"tcp", unix.IPPROTO_TCP}, {"udp", unix.IPPROTO_UDP}, {"icmp", f.icmp}} {
		rules = append(rules, f.rule("IP protocol "+p.name+" goto "+chain(p.name), f.of(p.number), gotoChain(chain(p.name))))
	}
	return rules
}

// errors lets ICMP errors about packets of a flow pass. key is that of the quoted packet.
func (f family) errors(key part, pass ...part) (rules []nftrule.Rule) {
	kinds := []byte{3, 11, 12} // unreachable, time exceeded, parameter problem (RFC 792)
	if f.icmp == unix.IPPROTO_ICMPV6 {
		kinds = []byte{1, 2, 3, 4} // unreachable, too big, time exceeded, parameter problem (RFC 4443 section 2.1)
	}
	for _, kind := range kinds {
		for _, p := range []struct {
			name   string
			number byte
		}{{"tcp", unix.IPPROTO_TCP}, {"udp", unix.IPPROTO_UDP}} {
			rules = append(rules, f.rule(fmt.Sprintf("icmp type %d of %s KEY @flows fwd …", kind, p.name), append([]part{
				{load(f.outside(), expr.PayloadBaseTransportHeader, 0, 1), number(expr.CmpOpEq, f.outside(), kind)},
				f.whole(),
				{load(f.outside(), expr.PayloadBaseTransportHeader, 8+f.protocol, 1), number(expr.CmpOpEq, f.outside(), p.number)},
				key, f.in(f.flows(p.name)),
			}, pass...)...))
		}
	}
	return rules
}

// way is the chains that the legs of a network's addresses lead to.
type way struct {
	family
	prefix  netip.Prefix
	gateway netip.Addr
	nic     int // the number of the link
	cluster []netip.Prefix
}

// name of a chain of the network.
func (w way) name(chain string) string {
	return chain + "_" + strings.NewReplacer(".", "_", ":", "_", "/", "_").Replace(w.prefix.String())
}

func (w way) chains() []nftrule.Chain {
	key := w.outbound(w.header())
	out := func(protocol string) string { return w.name("out_" + protocol) }
	hop, admit := w.name("hop"), func(protocol string) string { return w.name("admit_" + protocol) }
	first := []nftrule.Rule{
		w.rule("IP protocol tcp tcp flags & (fin|syn|rst) == 0 IP frag-off & 0x3fff == 0 KEY @flows goto "+hop,
			w.tcp(), w.flags(fin|syn|rst, expr.CmpOpEq, 0), w.whole(), key, w.in(w.flows("tcp")), gotoChain(hop)),
		w.rule("IP protocol udp IP frag-off & 0x3fff == 0 KEY @flows goto "+hop,
			w.udp(), w.whole(), key, w.in(w.flows("udp")), gotoChain(hop)),
	}
	return []nftrule.Chain{
		{Name: w.name("out"), Rules: append(first, w.byProtocol(out)...)},
		{Name: out("tcp"), Rules: []nftrule.Rule{
			w.rule("tcp flags & (fin|rst) != 0 IP frag-off & 0x3fff == 0 KEY @flows update @flows { KEY timeout 1m } goto "+hop,
				w.tcp(), w.flags(fin|rst, expr.CmpOpNeq, 0), w.whole(), key, w.in(w.flows("tcp")), w.remember(w.flows("tcp"), closing),
				gotoChain(hop)),
			w.rule("tcp flags & (fin|rst|ack) == ack IP frag-off & 0x3fff == 0 KEY @seen goto "+admit("tcp"),
				w.tcp(), w.flags(fin|rst|ack, expr.CmpOpEq, ack), w.whole(), key, w.in(w.seen("tcp")), gotoChain(admit("tcp"))),
		}},
		{Name: out("udp"), Rules: []nftrule.Rule{
			w.rule("IP frag-off & 0x3fff == 0 KEY @seen goto "+admit("udp"),
				w.udp(), w.whole(), key, w.in(w.seen("udp")), gotoChain(admit("udp"))),
		}},
		{Name: out("icmp"), Rules: w.errors(w.inbound(w.quoted()), gotoChain(hop))},
		{Name: admit("tcp"), Rules: w.admit("tcp", unix.IPPROTO_TCP, Life, key, hop)},
		{Name: admit("udp"), Rules: w.admit("udp", unix.IPPROTO_UDP, datagrams, key, hop)},
		{Name: hop, Rules: w.hop()},
	}
}

// admit makes a flow. Answers to the cluster take the node's ordinary routes, whatever these are.
func (w way) admit(protocol string, number byte, life time.Duration, key part, hop string) (rules []nftrule.Rule) {
	for _, n := range w.cluster {
		rules = append(rules, w.rule("IP daddr "+n.String()+" accept", w.any(), w.towards(n), verdict(expr.VerdictAccept, "")))
	}
	return append(rules, w.rule("update @flows { KEY timeout "+life.String()+" } goto "+hop,
		w.of(number), key, w.remember(w.flows(protocol), life), gotoChain(hop)))
}

// hop says who on the provider network gets the packet: its destination, or the gateway.
func (w way) hop() []nftrule.Rule {
	to := part{&expr.Immediate{Register: w.spare(), Data: binaryutil.NativeEndian.PutUint32(uint32(w.nic))}}
	rules := []nftrule.Rule{
		// Somebody outside may have come to this node since, and nobody on the provider network answers for him here.
		w.rule("IP daddr @here accept", w.any(), w.toHere(), verdict(expr.VerdictAccept, "")),
		w.rule("IP daddr "+w.prefix.String()+" fwd IP to IP daddr device NIC", w.any(), w.towards(w.prefix),
			part{load(w.outside(), expr.PayloadBaseNetworkHeader, w.source+w.size, w.size)}, to, w.forward(w.outside())),
	}
	if w.gateway.IsValid() {
		rules = append(rules, w.rule("fwd IP to "+w.gateway.String()+" device NIC",
			part{&expr.Immediate{Register: w.outside(), Data: w.gateway.AsSlice()}}, to, w.forward(w.outside())))
	}
	return rules
}

// towards matches packets to a network.
func (w way) towards(n netip.Prefix) part {
	mask := net.CIDRMask(n.Bits(), n.Addr().BitLen())
	return part{
		load(w.outside(), expr.PayloadBaseNetworkHeader, w.source+w.size, w.size), masked(w.outside(), w.outside(), mask),
		number(expr.CmpOpEq, w.outside(), n.Masked().Addr().AsSlice()...),
	}
}

// onNIC leads what the NIC has received for floating addresses to the chains of their families; all else is done with. A
// frame of a VLAN is none of those, also where the NIC has put the tag aside: what the Ethernet header says counts.
func onNIC(families []family) (rules []nftrule.Rule) {
	for _, f := range families {
		rules = append(rules, f.rule("pkttype host IP daddr @here ether type IP goto in"+f.name, f.any(), part{
			&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: f.outside()},
			number(expr.CmpOpEq, f.outside(), unix.PACKET_HOST),
		}, f.toHere(), part{
			load(f.outside(), expr.PayloadBaseLLHeader, 12, 2),
			number(expr.CmpOpEq, f.outside(), binaryutil.BigEndian.PutUint16(f.etherType)...),
		}, gotoChain("in"+f.name)))
	}
	return rules
}

// onLeg leads what comes from a floating address of the leg to the chains of its network.
func onLeg(a netip.Addr, w way) nftrule.Rule {
	return w.rule("IP saddr "+a.String()+" goto "+w.name("out"), w.any(), part{
		load(w.outside(), expr.PayloadBaseNetworkHeader, w.source, w.size), number(expr.CmpOpEq, w.outside(), a.AsSlice()...),
	}, gotoChain(w.name("out")))
}
