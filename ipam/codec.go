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

// ownerKey is the key of the owner index. Names of Kubernetes objects have no zero byte.
func ownerKey(to []byte, o floatip.Owner, a netip.Addr) []byte {
	for _, part := range [...]string{o.Namespace, o.Name, o.UID} {
		to = append(append(to, part...), 0)
	}
	return appendAddress(to, a)
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
func seal(key, value []byte) []byte {
	return binary.BigEndian.AppendUint32(value, checksum(key, value))
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

func (r *reader) text() string {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 && r.err == nil {
		r.err = errShort
	}
	r.bytes(uint64(max(size, 0)))
	return string(r.bytes(n))
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

func (r *reader) owner() floatip.Owner {
	return floatip.Owner{Namespace: r.text(), Name: r.text(), UID: r.text()}
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
)

// encodeAllocation returns state, flags, time, claim, pool and owner; the address is the key.
func encodeAllocation(key []byte, line Allocation) []byte {
	var flags byte
	if line.Disputed {
		flags |= flagDisputed
	}
	if line.Missing {
		flags |= flagMissing
	}
	value := make([]byte, 0, 128)
	value = appendTime(append(value, byte(line.State), flags), line.Since)
	value = append(value, line.Claim[:]...)
	value = appendText(value, line.Pool, line.Owner.Namespace, line.Owner.Name, line.Owner.UID)
	return seal(key, value)
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
	line := Allocation{Address: a, State: State(r.byte())}
	flags := r.byte()
	line.Disputed, line.Missing = flags&flagDisputed != 0, flags&flagMissing != 0
	line.Since, line.Claim = r.time(), r.claim()
	line.Pool, line.Owner = r.text(), r.owner()
	if err := r.end(); err != nil {
		return Allocation{}, about(a, err)
	}
	if line.State < Pending || line.State > Released {
		return Allocation{}, fmt.Errorf("%s: unknown state %d", a, line.State)
	}
	return line, nil
}

func encodeEvent(key []byte, e Event) []byte {
	value := appendTime(append(make([]byte, 0, 192), byte(e.Action)), e.Time)
	value = append(appendAddress(value, e.Address), e.Claim[:]...)
	value = appendText(value, e.Pool, e.Owner.Namespace, e.Owner.Name, e.Owner.UID,
		e.Cause.User, e.Cause.RequestUID, e.Cause.Reason)
	return seal(key, value)
}

func decodeEvent(key, sealed []byte) (Event, error) {
	value, err := unseal(key, sealed)
	if err != nil {
		return Event{}, fmt.Errorf("event %x: %w", key, err)
	}
	r := reader{rest: value}
	e := Event{Action: Action(r.byte()), Time: r.time(), Address: r.address(), Claim: r.claim()}
	e.Pool, e.Owner = r.text(), r.owner()
	e.Cause = Cause{User: r.text(), RequestUID: r.text(), Reason: r.text()}
	if err := r.end(); err != nil {
		return Event{}, fmt.Errorf("event %x: %w", key, err)
	}
	return e, nil
}

func claimantKey(c Claimant) []byte {
	return append(appendAddress(nil, c.Address), c.Owner.UID...)
}

func encodeClaimant(key []byte, c Claimant) []byte {
	value := append(appendTime(nil, c.Since), c.Claim[:]...)
	return seal(key, appendText(value, c.Owner.Namespace, c.Owner.Name, c.Owner.UID, c.Source))
}

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
	c := Claimant{Address: a, Since: r.time(), Claim: r.claim(), Owner: r.owner(), Source: r.text()}
	return c, r.end()
}

// encodeCursor returns the two address keys of the cursor, IPv4 first.
func encodeCursor(key []byte, c cursor) []byte {
	value := appendAddress(nil, c[0].addr(IPv4))
	return seal(key, appendAddress(value, c[1].addr(IPv6)))
}

func decodeCursor(key, sealed []byte) (cursor, error) {
	value, err := unseal(key, sealed)
	if err != nil {
		return cursor{}, fmt.Errorf("pool %s: %w", key, err)
	}
	r := reader{rest: value}
	four, six := r.address(), r.address()
	if err := r.end(); err != nil {
		return cursor{}, fmt.Errorf("pool %s: %w", key, err)
	}
	return cursor{numOf(four), numOf(six)}, nil
}
