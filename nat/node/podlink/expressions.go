package podlink

import (
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/nat/node/nftrule"
)

// part is what one phrase of a rule's text becomes.
type part = nftrule.Part

// writer writes rules for a family.
type writer struct{ layout }

// rule puts the family's word for %s into text.
func (w writer) rule(text string, parts ...part) nftrule.Rule {
	word := "ip"
	if w.v6 {
		word = "ip6"
	}
	return nftrule.New(w.table.Family, strings.NewReplacer("%[1]s", word, "%s", word).Replace(text), parts...)
}

// Offsets of the addresses in the header (RFC 791 section 3.1, RFC 8200 section 3).
func (w writer) offsets() (saddr, daddr uint32) {
	if w.v6 {
		return 8, 24
	}
	return 12, 16
}

// A match consumes what a phrase has loaded into reg.
type match expr.Any

func in(set string) match    { return &expr.Lookup{SourceRegister: reg, SetName: set} }
func notIn(set string) match { return &expr.Lookup{SourceRegister: reg, SetName: set, Invert: true} }

// look replaces the key in reg by the map's value.
func look(set string) match {
	return &expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: set}
}

func (w writer) address(register, offset uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: w.size}
}

func (w writer) saddr(m match) part {
	offset, _ := w.offsets()
	return part{w.address(reg, offset), m}
}

func (w writer) daddr(m match) part {
	_, offset := w.offsets()
	return part{w.address(reg, offset), m}
}

// sender matches the link that a packet came from, which fills a register of 16 bytes, and its source.
func (w writer) sender(m match) part {
	offset, _ := w.offsets()
	return part{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg}, w.address(reg+1, offset), m}
}

// pair matches the pod's address that was called, and who called it.
func (w writer) pair(m match) part {
	saddr, daddr := w.offsets()
	return part{w.address(nftrule.Register(0), daddr), w.address(nftrule.Register(w.size/4), saddr), m}
}

// caller matches the pod's address that was called, who called it, and how.
func (w writer) caller(m match) part {
	saddr, daddr := w.offsets()
	words := w.size / 4
	return part{
		w.address(nftrule.Register(0), daddr),
		w.address(nftrule.Register(words), saddr),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: nftrule.Register(2 * words)},
		&expr.Payload{DestRegister: nftrule.Register(2*words + 1), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		m,
	}
}

func iifname(m match) part { return part{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg}, m} }
func oifname(m match) part { return part{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg}, m} }

// ctDestination matches whom the connection was opened to, or whom its answers go to; direction is original or reply.
//
// The key is the one that says how long an address is (NFT_CT_DST_IP and NFT_CT_DST_IP6, Linux 4.17). nft cannot list a
// rule that looks an address of unknown length up in a set, and the library knows no other.
func (w writer) ctDestination(direction byte, m match) part {
	key := uint32(20)
	if w.v6 {
		key = 22
	}
	return part{nftrule.Expression("ct",
		netlink.Attribute{Type: unix.NFTA_CT_KEY, Data: binaryutil.BigEndian.PutUint32(key)},
		netlink.Attribute{Type: unix.NFTA_CT_DREG, Data: binaryutil.BigEndian.PutUint32(reg)},
		netlink.Attribute{Type: unix.NFTA_CT_DIRECTION, Data: []byte{direction}}), m}
}

// ctDirection matches packets of whoever opened the connection, 0, or answers, 1.
func ctDirection(direction byte) part {
	return part{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{direction}},
	}
}

func ctState(bits uint32) part {
	return append(part{&expr.Ct{Key: expr.CtKeySTATE, Register: reg}}, bitsSet(bits)...)
}

func ctNew() part     { return ctState(expr.CtStateBitNEW) }
func ctRelated() part { return ctState(expr.CtStateBitRELATED) }

// marked matches packets that have one of our marks.
func marked() part {
	return append(part{&expr.Meta{Key: expr.MetaKeyMARK, Register: reg}}, bitsSet(leg.MarkMask)...)
}

// bitsSet matches when one of the bits is set in reg, a number in the byte order of the machine.
func bitsSet(bits uint32) part {
	return part{
		bitwise(bits, 0),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
	}
}

func bitwise(mask, xor uint32) expr.Any {
	return &expr.Bitwise{
		SourceRegister: reg, DestRegister: reg, Len: 4,
		Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: binaryutil.NativeEndian.PutUint32(xor),
	}
}

// setMark changes our bits of the packet's mark.
func setMark(mark uint32) part {
	return part{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg},
		bitwise(^leg.MarkMask, mark),
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg},
	}
}

// translate takes the address in reg.
func translate(kind expr.NATType, family nftables.TableFamily) part {
	return part{&expr.NAT{Type: kind, Family: uint32(family), RegAddrMin: reg, RegAddrMax: reg}}
}

func verdict(kind expr.VerdictKind) part { return part{&expr.Verdict{Kind: kind}} }

func jump(kind expr.VerdictKind, chain string) part {
	return part{&expr.Verdict{Kind: kind, Chain: chain}}
}

// String is the table's rules as nft reads them, for people.
func (l layout) String() string {
	var out strings.Builder
	for _, c := range l.chains {
		fmt.Fprintf(&out, "chain %s {\n", c.Name)
		for _, r := range c.Rules {
			fmt.Fprintf(&out, "\t%s\n", r.Text)
		}
		out.WriteString("}\n")
	}
	return out.String()
}
