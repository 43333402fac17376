package ipam

import (
	"encoding/binary"
	"encoding/hex"
	"hash/maphash"
	"math/bits"
	"slices"
	"sync"
	"time"

	"floatip.io/floatip"
)

// record is an Allocation in memory: small, and with one pointer for the garbage collector to follow.
type record struct {
	at    num
	claim floatip.Claim
	uid   uid
	name  string
	since int64 // nanoseconds of Unix time

	party          uint32 // number in records.parties
	older, younger uint32 // neighbours in a list of records in one state; 0 is the list's end

	family Family
	state  State
	flags  uint8
	listed bool
}

// uid is a UID as the API server makes them, a UUID in lower case (RFC 9562), as its 16 bytes. Any other text is kept in
// odd, and its number in the last 4 bytes behind 12 bytes of 0xff, which no valid UUID has.
type uid [16]byte

// records keeps allocations and finds them by address, claim, UID, and namespace and name. Their numbers begin at 1.
type records struct {
	slabs [][]record // never moved, so that growing copies nothing
	last  uint32     // the highest number ever given
	free  []uint32
	odd   names
	parties
	salt uint64

	byAddress, byClaim, byUID, byName table
}

// slabSize is how many records are allocated together, about 450 KiB.
const slabSize = 4096

func newRecords() *records {
	r := &records{odd: newNames(), parties: newParties()}
	r.salt = maphash.Bytes(r.seed, nil) | 1
	r.byAddress.hash = func(id uint32) uint64 { return r.hashAddress(r.at(id).at, r.at(id).family) }
	r.byClaim.hash = func(id uint32) uint64 { return r.hash16(r.at(id).claim) }
	r.byUID.hash = func(id uint32) uint64 { return r.hash16(r.at(id).uid) }
	r.byName.hash = func(id uint32) uint64 {
		rec := r.at(id)
		return r.mix(maphash.String(r.seed, rec.name), r.parties.all[rec.party].hash)
	}
	return r
}

func (r *records) at(id uint32) *record { return &r.slabs[id/slabSize][id%slabSize] }

// mix multiplies to 128 bits and folds, as wyhash does; the salt keeps users from choosing names that collide.
func (r *records) mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^r.salt, b^0x9e3779b97f4a7c15)
	return hi ^ lo
}

func (r *records) hashAddress(n num, family Family) uint64 {
	return r.mix(r.mix(n.hi^uint64(family), n.lo), r.salt)
}

func (r *records) hash16(b [16]byte) uint64 {
	return r.mix(r.mix(binary.NativeEndian.Uint64(b[:8]), binary.NativeEndian.Uint64(b[8:])), r.salt)
}

func (r *records) hashName(namespace, name string) uint64 {
	return r.mix(maphash.String(r.seed, name), maphash.String(r.seed, namespace))
}

func (r *records) namespace(id uint32) string { return r.parties.all[r.at(id).party].namespace }

// find returns the number of the record of an address, 0 if there is none.
func (r *records) find(n num, family Family) uint32 {
	t, hash := &r.byAddress, r.hashAddress(n, family)
	if t.used == 0 {
		return 0
	}
	tag, mask := tagOf(hash), t.mask()
	for i := hash & mask; t.tags[i] != tagEmpty; i = (i + 1) & mask {
		if t.tags[i] != tag {
			continue
		}
		if rec := r.at(t.ids[i]); rec.at == n && rec.family == family {
			return t.ids[i]
		}
	}
	return 0
}

// ofClaim, ofUID and ofName return the records that have the key. to is room for them, of length 0.
func (r *records) ofClaim(to []uint32, claim floatip.Claim) []uint32 {
	if claim.IsZero() {
		return to
	}
	found := r.byClaim.find(to, r.hash16(claim))
	return slices.DeleteFunc(found, func(id uint32) bool { return r.at(id).claim != claim })
}

func (r *records) ofUID(to []uint32, text string) []uint32 {
	key, known := r.packUID(text, false)
	if !known || text == "" {
		return to
	}
	found := r.byUID.find(to, r.hash16(key))
	return slices.DeleteFunc(found, func(id uint32) bool { return r.at(id).uid != key })
}

func (r *records) ofName(to []uint32, namespace, name string) []uint32 {
	found := r.byName.find(to, r.hashName(namespace, name))
	return slices.DeleteFunc(found, func(id uint32) bool { return r.at(id).name != name || r.namespace(id) != namespace })
}

// add makes a record of line and returns its number.
func (r *records) add(line *Allocation) uint32 {
	id := r.load(line)
	r.byAddress.insert(id)
	r.index(id)
	return id
}

// load is add for many records: nothing is found before reindex.
func (r *records) load(line *Allocation) uint32 {
	id := r.number()
	rec := r.at(id)
	*rec = record{at: numOf(line.Address), family: FamilyOf(line.Address)}
	r.fill(rec, line)
	return id
}

// reindex builds the four tables at the size that they need, side by side.
func (r *records) reindex() {
	n := int(r.last) - len(r.free)
	var wg sync.WaitGroup
	wg.Go(func() { r.byAddress.build(n, r.live) })
	wg.Go(func() { r.byClaim.build(n, r.those(func(rec *record) bool { return !rec.claim.IsZero() })) })
	wg.Go(func() { r.byUID.build(n, r.those(func(rec *record) bool { return rec.uid != (uid{}) })) })
	wg.Go(func() { r.byName.build(n, r.live) })
	wg.Wait()
}

// those returns a loop over the records that are wanted.
func (r *records) those(wanted func(*record) bool) func(yield func(id uint32)) {
	return func(yield func(id uint32)) {
		r.live(func(id uint32) {
			if wanted(r.at(id)) {
				yield(id)
			}
		})
	}
}

func (r *records) number() uint32 {
	if last := len(r.free) - 1; last >= 0 {
		id := r.free[last]
		r.free = r.free[:last]
		return id
	}
	r.last++
	if int(r.last/slabSize) == len(r.slabs) {
		r.slabs = append(r.slabs, make([]record, slabSize))
	}
	return r.last
}

// change makes the record id say what line says. The address is the same.
func (r *records) change(id uint32, line *Allocation) {
	rec := r.at(id)
	key, known := r.packUID(line.Owner.UID, false)
	if known && rec.uid == key && rec.claim == line.Claim && rec.name == line.Owner.Name &&
		r.parties.find(line.Owner.Namespace, line.Pool) == rec.party {
		rec.state, rec.flags, rec.since = line.State, flagsOf(line), line.Since.UnixNano()
		return
	}
	r.unindex(id)
	r.fill(rec, line)
	r.index(id)
}

// live calls yield with the number of each record.
func (r *records) live(yield func(id uint32)) {
	for id := uint32(1); id <= r.last; id++ {
		if r.at(id).state != 0 {
			yield(id)
		}
	}
}

// sparse reports whether so few records are left of what there was that it pays to build them anew, smaller.
func (r *records) sparse() bool { return r.last > 2*slabSize && len(r.free) > int(r.last)/4*3 }

func (r *records) remove(id uint32) {
	r.byAddress.remove(id)
	r.unindex(id)
	*r.at(id) = record{}
	r.free = append(r.free, id)
}

func (r *records) fill(rec *record, line *Allocation) {
	rec.claim, rec.name = line.Claim, line.Owner.Name
	rec.uid, _ = r.packUID(line.Owner.UID, true)
	rec.party = r.parties.use(line.Owner.Namespace, line.Pool)
	rec.state, rec.flags, rec.since = line.State, flagsOf(line), line.Since.UnixNano()
}

func (r *records) index(id uint32) {
	rec := r.at(id)
	if !rec.claim.IsZero() {
		r.byClaim.insert(id)
	}
	if rec.uid != (uid{}) {
		r.byUID.insert(id)
	}
	r.byName.insert(id)
}

// unindex is the reverse of fill and index.
func (r *records) unindex(id uint32) {
	rec := r.at(id)
	if !rec.claim.IsZero() {
		r.byClaim.remove(id)
	}
	if rec.uid != (uid{}) {
		r.byUID.remove(id)
	}
	r.byName.remove(id)
	if number, odd := rec.uid.odd(); odd {
		r.odd.drop(number)
	}
	r.parties.drop(rec.party)
}

func (r *records) allocation(id uint32) Allocation {
	rec := r.at(id)
	party := &r.parties.all[rec.party]
	return Allocation{
		Address: rec.at.addr(rec.family),
		Pool:    party.pool,
		Owner:   floatip.Owner{Namespace: party.namespace, Name: rec.name, UID: r.textUID(rec.uid)},
		Claim:   rec.claim, State: rec.state, Since: time.Unix(0, rec.since).UTC(),
		Disputed: rec.flags&flagDisputed != 0, Missing: rec.flags&flagMissing != 0,
		Superseded: rec.flags&flagSuperseded != 0,
	}
}

func flagsOf(line *Allocation) uint8 {
	var flags uint8
	if line.Disputed {
		flags |= flagDisputed
	}
	if line.Missing {
		flags |= flagMissing
	}
	if line.Superseded {
		flags |= flagSuperseded
	}
	return flags
}

// packUID returns the 16 bytes for text. An odd text is counted as used if use, else it must be known.
func (r *records) packUID(text string, use bool) (key uid, known bool) {
	if text == "" {
		return key, true
	}
	if key, ok := parseUUID(text); ok {
		return key, true
	}
	var number uint32
	if known = true; use {
		number = r.odd.use(text)
	} else {
		number, known = r.odd.find(text)
	}
	for i := range 12 {
		key[i] = 0xff
	}
	binary.BigEndian.PutUint32(key[12:], number)
	return key, known
}

// parseUUID reads 8-4-4-4-12 digits in lower case. What textUID would not write in the same way is refused.
func parseUUID(text string) (key uid, ok bool) {
	if len(text) != 36 || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return key, false
	}
	var wrong byte
	for i, at := range &digitsOf {
		high, low := nibbles[text[at]], nibbles[text[at+1]]
		wrong |= high | low
		key[i] = high<<4 | low
	}
	if wrong > 15 {
		return key, false
	}
	_, odd := key.odd()
	return key, !odd && key != uid{}
}

// digitsOf says where in a UUID the two digits of each byte are.
var digitsOf = [16]uint8{0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34}

// nibbles has the value of each digit, 0xff for what is none.
var nibbles = func() (values [256]byte) {
	for i := range values {
		values[i] = 0xff
	}
	for i, digit := range "0123456789abcdef" {
		values[digit] = byte(i)
	}
	return values
}()

// odd returns the number of the text if the UID is no UUID.
func (u uid) odd() (number uint32, odd bool) {
	for _, b := range u[:12] {
		if b != 0xff {
			return 0, false
		}
	}
	return binary.BigEndian.Uint32(u[12:]), true
}

func (r *records) textUID(key uid) string {
	if key == (uid{}) {
		return ""
	}
	if number, odd := key.odd(); odd {
		return r.odd.text(number)
	}
	var text [36]byte
	hex.Encode(text[0:8], key[0:4])
	hex.Encode(text[9:13], key[4:6])
	hex.Encode(text[14:18], key[6:8])
	hex.Encode(text[19:23], key[8:10])
	hex.Encode(text[24:36], key[10:16])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return string(text[:])
}
