package nat

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// family holds the words of nft and the offsets of the header that differ between IPv4 and IPv6.
type family struct {
	id           nftables.TableFamily
	ip           string // in a rule and as the table's family
	addressType  nftables.SetDatatype
	saddr, daddr uint32 // offsets in the network header, bytes
	length       uint32 // of an address, bytes
	icmp         string // in a rule
	icmpProtocol byte
	echoRequest  byte
}

var (
	ipv4 = family{
		id: nftables.TableFamilyIPv4, ip: "ip", addressType: nftables.TypeIPAddr, saddr: 12, daddr: 16, length: 4,
		icmp: "icmp", icmpProtocol: unix.IPPROTO_ICMP, echoRequest: 8, // RFC 792
	}
	ipv6 = family{
		id: nftables.TableFamilyIPv6, ip: "ip6", addressType: nftables.TypeIP6Addr, saddr: 8, daddr: 24, length: 16,
		icmp: "ipv6-icmp", icmpProtocol: unix.IPPROTO_ICMPV6, echoRequest: 128, // RFC 4443
	}
)

// entryType is the key of the firewall's sets.
func (f family) entryType() nftables.SetDatatype {
	return nftables.MustConcatSetType(f.addressType, nftables.TypeInetProto, nftables.TypeInetService)
}

func words(id nftables.TableFamily) family {
	if id == nftables.TableFamilyIPv6 {
		return ipv6
	}
	return ipv4
}

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

// reg is the register of 16 bytes that every match uses. The fields of a concatenated key follow each other in the
// registers of 4 bytes that it consists of, NFT_REG32_00 to NFT_REG32_03, and those behind it.
const reg = unix.NFT_REG_1

// register returns the n-th register of 4 bytes by the name that the kernel prefers: four of them make one of 16
// (nft_dump_register in net/netfilter/nf_tables_api.c).
func register(n uint32) uint32 {
	if n%4 == 0 {
		return unix.NFT_REG_1 + n/4
	}
	return unix.NFT_REG32_00 + n
}

// Directions of a connection (IP_CT_DIR_ORIGINAL, IP_CT_DIR_REPLY). The kernel takes one byte (nft_ct_policy in
// net/netfilter/nft_ct.c) where the library, up to v0.3.0, writes a big-endian uint32: the byte that counts is the
// first. Later versions write one byte (https://github.com/google/nftables/pull/317), and reply is 1 again.
const (
	original uint32 = 0
	reply    uint32 = 1 << 24
)

// part is what one phrase of a rule's text becomes.
type part []expr.Any

func rule(text string, parts ...part) Rule {
	r := Rule{Text: text}
	for _, p := range parts {
		r.exprs = append(r.exprs, p...)
	}
	return r
}

func compare(op expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: reg, Data: data}
}

func equal(data []byte) expr.Any    { return compare(expr.CmpOpEq, data) }
func notEqual(data []byte) expr.Any { return compare(expr.CmpOpNeq, data) }

func in(set string) expr.Any    { return &expr.Lookup{SourceRegister: reg, SetName: set} }
func notIn(set string) expr.Any { return &expr.Lookup{SourceRegister: reg, SetName: set, Invert: true} }

// link returns name as the kernel compares it: 16 bytes, padded with zeros.
func link(name string) []byte {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return padded
}

func iifname(match expr.Any) part {
	return part{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg}, match}
}

func oifname(match expr.Any) part {
	return part{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg}, match}
}

func l4proto(match expr.Any) part {
	return part{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, match}
}

func pkttype(match expr.Any) part {
	return part{&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: reg}, match}
}

func network(offset, length uint32, match ...expr.Any) part {
	load := &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
	return append(part{load}, match...)
}

func transport(register, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}
}

func (f family) source(match expr.Any) part      { return network(f.saddr, f.length, match) }
func (f family) destination(match expr.Any) part { return network(f.daddr, f.length, match) }

// sourceIn matches a source in a network whose length is a multiple of 8 bits not larger than the address.
func (f family) sourceIn(n netip.Prefix) part {
	mask := make([]byte, f.length)
	for bit := range n.Bits() {
		mask[bit/8] |= 0x80 >> (bit % 8)
	}
	return network(f.saddr, f.length, masked(mask), equal(n.Addr().AsSlice()))
}

// masked keeps the bits of mask in the register.
func masked(mask []byte) expr.Any {
	return &expr.Bitwise{
		SourceRegister: reg, DestRegister: reg, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask)),
	}
}

// echo matches an echo request.
func (f family) echo() part {
	return append(l4proto(equal([]byte{f.icmpProtocol})), transport(reg, 0, 1), equal([]byte{f.echoRequest}))
}

// listedPort matches protocol and destination port of the packet against setPorts.
func listedPort() part {
	return append(service(register(0), register(1)), in(setPorts))
}

// service loads protocol and destination port.
func service(protocol, port uint32) part {
	return part{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: protocol}, transport(port, 2, 2)}
}

// admitted matches the address at offset of the network header, the protocol and the destination port against set.
func (f family) admitted(offset uint32, set string) part {
	behind := f.length / 4
	return append(append(network(offset, f.length), service(register(behind), register(behind+1))...), in(set))
}

func ctDestination(direction uint32, match expr.Any) part {
	return part{&expr.Ct{Key: expr.CtKeyDST, Register: reg, Direction: direction}, match}
}

func ctState(bits uint32) part {
	return part{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg},
		masked(binaryutil.NativeEndian.PutUint32(bits)),
		notEqual(make([]byte, 4)),
	}
}

// ctReply matches packets to whoever opened the connection.
func ctReply() part {
	return part{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg}, equal([]byte{1})}
}

// syn matches a TCP segment that opens a connection: the flag SYN in byte 13 of the header (RFC 9293 section 3.1).
func syn() part {
	return append(l4proto(equal([]byte{unix.IPPROTO_TCP})),
		transport(reg, 13, 1), masked([]byte{0x02}), notEqual([]byte{0}))
}

// segment matches TCP packets that open no connection.
func segment() part {
	return append(l4proto(equal([]byte{unix.IPPROTO_TCP})),
		transport(reg, 13, 1), masked([]byte{0x02}), equal([]byte{0}))
}

func marked(mark uint32) part {
	return part{&expr.Meta{Key: expr.MetaKeyMARK, Register: reg}, equal(binaryutil.NativeEndian.PutUint32(mark))}
}

// clamp writes what the packet's route can carry into the TCP option "maximum segment size": 2 bytes after kind and
// length of option 2 (RFC 9293 section 3.2).
func clamp() part {
	return part{
		&expr.Rt{Register: reg, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: reg, DestRegister: reg, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: reg, Type: 2, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	}
}

func setMark(mark uint32) part {
	return part{
		&expr.Immediate{Register: reg, Data: binaryutil.NativeEndian.PutUint32(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg},
	}
}

func translate(kind expr.NATType, to netip.Addr) part {
	return part{
		&expr.Immediate{Register: reg, Data: to.AsSlice()},
		&expr.NAT{Type: kind, Family: uint32(familyOf(to).id), RegAddrMin: reg, RegAddrMax: reg},
	}
}

func dnat(to netip.Addr) part { return translate(expr.NATTypeDestNAT, to) }
func snat(to netip.Addr) part { return translate(expr.NATTypeSourceNAT, to) }

func count(name string) part {
	return part{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: name}}
}

func verdict(kind expr.VerdictKind) part { return part{&expr.Verdict{Kind: kind}} }

func gotoChain(chain string) part { return part{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}} }
