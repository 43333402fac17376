package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"time"

	"floatip.io/floatip"
)

// castagnoli is the polynomial of the CRC-32C, which amd64 and arm64 compute in hardware.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	errShort    = errors.New("value ends too early")
	errChecksum = errors.New("checksum does not match")
	errRest     = errors.New("bytes after the end of the value")
)

// appendAddress appends the address key: the family and the bytes, so that keys sort as addresses.
func appendAddress(to []byte, a netip.Addr) []byte {
	if a.Is4() {
		raw := a.As4()
		return append(append(to, byte(IPv4)), raw[:]...)
	}
	raw := a.As16()
	return append(append(to, byte(IPv6)), raw[:]...)
}

// cutAddress reads an address key from the front of from.
func cutAddress(from []byte) (netip.Addr, []byte, error) {
	size := 0
	if len(from) > 0 {
		switch Family(from[0]) {
		case IPv4:
			size = 4
		case IPv6:
			size = 16
		default:
			return netip.Addr{}, nil, fmt.Errorf("unknown address family %d", from[0])
		}
	}
	if size == 0 || len(from) < 1+size {
		return netip.Addr{}, nil, errShort
	}
	a, _ := netip.AddrFromSlice(from[1 : 1+size])
	if a.Is4In6() {
		return netip.Addr{}, nil, fmt.Errorf("%s is stored as IPv6", a)
	}
	return a, from[1+size:], nil
}

// ownerKey is the key of the owner index. Claims grow with time (floatip.NewClaim), so what is new stands at the end.
func ownerKey(to []byte, claim floatip.Claim, a netip.Addr) []byte {
	return appendAddress(append(to, claim[:]...), a)
}

// appendOwner appends namespace, name and UID.
func appendOwner(to []byte, o floatip.Owner) []byte {
	return appendText(to, o.Namespace, o.Name, o.UID)
}

func decodeOwner(key, sealed []byte) (floatip.Claim, netip.Addr, floatip.Owner, error) {
	k := reader{rest: key}
	claim, a := k.claim(), k.address()
	if err := k.end(); err != nil {
		return claim, a, floatip.Owner{}, err
	}
	value, err := unseal(key, sealed)
	if err != nil {
		return claim, a, floatip.Owner{}, err
	}
	r := reader{rest: value}
	owner := r.owner()
	return claim, a, owner, r.end()
}

func appendText(to []byte, texts ...string) []byte {
	for _, text := range texts {
		to = append(binary.AppendUvarint(to, uint64(len(text))), text...)
	}
	return to
}

func appendTime(to []byte, t time.Time) []byte {
	return binary.BigEndian.AppendUint64(to, uint64(t.UnixNano()))
}

// seal appends the checksum of the key and the value, so that a value under another key is noticed as well.
func seal(key, value []byte) []byte { return sealFrom(key, value, 0) }

// sealFrom is seal for the value that begins in to at start.
func sealFrom(key, to []byte, start int) []byte {
	return binary.BigEndian.AppendUint32(to, checksum(key, to[start:]))
}

func checksum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

// unseal checks the checksum and removes it.
func unseal(key, sealed []byte) ([]byte, error) {
	if len(sealed) < crc32.Size {
		return nil, errShort
	}
	value := sealed[:len(sealed)-crc32.Size]
	if binary.BigEndian.Uint32(sealed[len(value):]) != checksum(key, value) {
		return nil, errChecksum
	}
	return value, nil
}

// reader takes fields from the front of a value; after the first error the rest is zero.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) bytes(n uint64) []byte {
	if r.err == nil && n > uint64(len(r.rest)) {
		r.err = errShort
	}
	if r.err != nil {
		return nil
	}
	var head []byte
	head, r.rest = r.rest[:n], r.rest[n:]
	return head
}

func (r *reader) byte() byte {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uvarint() uint64 {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 && r.err == nil {
		r.err = errShort
	}
	r.bytes(uint64(max(size, 0)))
	return n
}

func (r *reader) text() string { return string(r.bytes(r.uvarint())) }

func (r *reader) uint32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.bytes(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) time() time.Time {
	if b := r.bytes(8); b != nil {
		return time.Unix(0, int64(binary.BigEndian.Uint64(b))).UTC()
	}
	return time.Time{}
}

func (r *reader) claim() floatip.Claim {
	var c floatip.Claim
	copy(c[:], r.bytes(uint64(len(c))))
	return c
}

func (r *reader) address() netip.Addr {
	if r.err != nil {
		return netip.Addr{}
	}
	a, rest, err := cutAddress(r.rest)
	r.rest, r.err = rest, err
	return a
}

func (r *reader) end() error {
	if r.err == nil && len(r.rest) > 0 {
		r.err = errRest
	}
	return r.err
}

// Flags of an Allocation in the file.
const (
	flagDisputed = 1 << iota
	flagMissing
	flagSuperseded
)

// appendAllocation appends state, flags, time, claim, pool and owner; the address is written elsewhere.
func appendAllocation(to []byte, line *Allocation) []byte {
	to = appendTime(append(to, byte(line.State), flagsOf(line)), line.Since)
	to = append(to, line.Claim[:]...)
	return appendText(to, line.Pool, line.Owner.Namespace, line.Owner.Name, line.Owner.UID)
}

func (r *reader) allocation(a netip.Addr) Allocation {
	line := Allocation{Address: a, State: State(r.byte())}
	flags := r.byte()
	line.Disputed, line.Missing, line.Superseded = flags&flagDisputed != 0, flags&flagMissing != 0, flags&flagSuperseded != 0
	line.Since, line.Claim = r.time(), r.claim()
	line.Pool, line.Owner = r.text(), r.owner()
	if r.err == nil && (line.State < Pending || line.State > Released) {
		r.err = fmt.Errorf("unknown state %d", line.State)
	}
	return line
}

func decodeAllocation(key, sealed []byte) (Allocation, error) {
	a, rest, err := cutAddress(key)
	if err == nil && len(rest) > 0 {
		err = errRest
	}
	if err != nil {
		return Allocation{}, err
	}
	value, err := unseal(key, sealed)
	if err != nil {
		return Allocation{}, about(a, err)
	}
	r := reader{rest: value}
	line := r.allocation(a)
	if err := r.end(); err != nil {
		return Allocation{}, about(a, err)
	}
	return line, nil
}

func claimantKey(c Claimant) []byte {
	return append(appendAddress(nil, c.Address), c.Owner.UID...)
}

func appendClaimant(to []byte, c Claimant) []byte {
	to = append(appendTime(to, c.Since), c.Claim[:]...)
	return appendText(to, c.Owner.Namespace, c.Owner.Name, c.Owner.UID, c.Source)
}

func encodeClaimant(key []byte, c Claimant) []byte { return seal(key, appendClaimant(nil, c)) }

func decodeClaimant(key, sealed []byte) (Claimant, error) {
	a, _, err := cutAddress(key)
	if err != nil {
		return Claimant{}, err
	}
	value, err := unseal(key, sealed)
	if err != nil {
		return Claimant{}, about(a, err)
	}
	r := reader{rest: value}
	c := r.claimant(a)
	return c, r.end()
}

// appendCursor appends the two address keys of the cursor, IPv4 first.
func appendCursor(to []byte, c cursor) []byte {
	return appendAddress(appendAddress(to, c[0].addr(IPv4)), c[1].addr(IPv6))
}

func encodeCursor(key []byte, c cursor) []byte { return seal(key, appendCursor(nil, c)) }

func decodeCursor(key, sealed []byte) (cursor, error) {
	value, err := unseal(key, sealed)
	if err != nil {
		return cursor{}, fmt.Errorf("pool %s: %w", key, err)
	}
	r := reader{rest: value}
	c := r.cursor()
	if err := r.end(); err != nil {
		return cursor{}, fmt.Errorf("pool %s: %w", key, err)
	}
	return c, nil
}
