package ipam

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// num is an address as a number of 128 bits. Its family is known from where it is kept. It has no pointer, unlike
// netip.Addr, so the garbage collector does not look into what is made of it.
type num struct{ hi, lo uint64 }

func numOf(a netip.Addr) num {
	if a.Is4() {
		raw := a.As4()
		return num{lo: uint64(binary.BigEndian.Uint32(raw[:]))}
	}
	raw := a.As16()
	return num{binary.BigEndian.Uint64(raw[:8]), binary.BigEndian.Uint64(raw[8:])}
}

func (n num) addr(family Family) netip.Addr {
	if family == IPv4 {
		var raw [4]byte
		binary.BigEndian.PutUint32(raw[:], uint32(n.lo))
		return netip.AddrFrom4(raw)
	}
	var raw [16]byte
	binary.BigEndian.PutUint64(raw[:8], n.hi)
	binary.BigEndian.PutUint64(raw[8:], n.lo)
	return netip.AddrFrom16(raw)
}

func (n num) less(m num) bool { return n.hi < m.hi || n.hi == m.hi && n.lo < m.lo }

// below is less as a number, 1 or 0, without a branch.
func (n num) below(m num) int {
	_, borrow := bits.Sub64(n.lo, m.lo, 0)
	_, borrow = bits.Sub64(n.hi, m.hi, borrow)
	return int(borrow)
}

// next and prev wrap around.
func (n num) next() num {
	lo, carry := bits.Add64(n.lo, 1, 0)
	return num{n.hi + carry, lo}
}

func (n num) prev() num {
	lo, borrow := bits.Sub64(n.lo, 1, 0)
	return num{n.hi - borrow, lo}
}
