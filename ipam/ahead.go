package ipam

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"floatip.io/floatip"
)

// A promise with Request.WriteAhead is on its way to the disk when Reserve returns, and nobody waits for it. Commit needs to
// wait for that only, which has mostly happened by then: the API server has had work of its own in between. What Commit
// itself adds, the name and the UID, follows with the next transaction, or on its own after writeDelay.
//
// The file has one value with all promises that it may have to keep, ledger/promises. A transaction writes it anew when it
// has changed; a promise that was taken up goes from it in the transaction that writes what became of it, so either the one
// or the other is in the file. Who opens the file again, after a crash or not, cannot tell which promises were acknowledged
// by a Commit whose transaction did not happen any more. All of them are kept: they hold their addresses as Pending without
// a UID, until Commit or Bind shows the claim, Adopt shows the virtual machine, or the caller has looked for it in vain and
// says Expire. The same becomes of an acknowledged promise whose transaction fails while the process lives.

// maxAhead bounds how many promises the file has: each transaction that changes one of them writes them all. Who comes when
// there are as many waits for the disk in Commit.
const maxAhead = 256

// writeDelay is how long name and UID of a promise may wait for company. The stored object shows up sooner than that as a
// rule, and Bind brings a transaction along.
const writeDelay = 20 * time.Millisecond

// writeRest is the least time between two transactions that nobody waits for: one after the other, a flush each, would take
// from a burst what they could share. A promise that comes alone does not wait, and one that a Commit needs waits for nothing.
// With 64 clients that create at once the mutating phase took 2.0 times a hook that does nothing without a rest, 1.5 with 1 ms
// and 1.35 with 2 ms; with 8 clients 2.2, 1.6 and 1.2 (BenchmarkAdmission on two processors, client and server in one process;
// in two processes there was no clear difference).
const writeRest = 2 * time.Millisecond

// onDisk is what the promises that were read from the file were written by.
var onDisk = func() *batch {
	b := &batch{answered: make(chan struct{})}
	close(b.answered)
	return b
}()

// durable reports whether b is on the disk.
func (b *batch) durable() bool {
	select {
	case <-b.answered:
		return b.err == nil
	default:
		return false
	}
}

// writeAhead lets the open batch write f, which is promised. l.mu is held.
func (l *Ledger) writeAhead(f *offer) {
	if l.writer.stopped || len(l.offers.written) >= maxAhead {
		return
	}
	b := l.writer.openBatch()
	f.ahead = b
	l.offers.write(f)
	b.ahead = append(b.ahead, f)
	l.writer.enter(b, l.writer.rest())
}

// write notes that f is in the file, or will be with its batch.
func (o *offers) write(f *offer) { o.written[f.claim], o.changed = f, true }

// unwritten takes back that b writes its promises: it has failed.
func (b *batch) unwritten() {
	o := &b.ledger.offers
	for _, f := range b.ahead {
		if f.ahead != b {
			continue
		}
		f.ahead = nil
		if o.written[f.claim] == f {
			delete(o.written, f.claim)
		}
	}
	if b.promises != nil {
		o.changed = true
	}
}

// keep makes promises last that were acknowledged by b, which fails now: their claims are in the file.
func (b *batch) keep() {
	for _, f := range b.acknowledged {
		if f.ahead.durable() {
			f.kept, f.since = true, b.now
		}
	}
}

// keepAll keeps the promises that the file has, unless it says what became of them.
func (l *Ledger) keepAll(promises []*offer) {
	for _, f := range promises {
		void := len(onlyHeld(l.book.ofClaim(f.claim))) > 0 || l.offers.byClaim[f.claim] != nil
		for _, a := range f.addresses {
			line, had := l.book.get(a)
			void = void || had && line.held() || l.offers.byAddress[a] != nil
		}
		if void {
			l.offers.changed = true
			continue
		}
		f.ahead, f.kept, f.since = onDisk, true, l.latest
		l.promise(f)
	}
}

// keptFor returns the kept promise that owner shows the claim of, or nil. The API server names a virtual machine only after
// the promise, so f may have no name.
func (l *Ledger) keptFor(claim floatip.Claim, owner floatip.Owner) *offer {
	if f := l.offers.byClaim[claim]; f != nil && f.allocation(0, l.opts.Reservation).Awaits(owner) {
		return f
	}
	return nil
}

// Keeps reports whether a promise was kept (see Request.WriteAhead) that the virtual machine may take up if it shows the claim.
func (l *Ledger) Keeps(owner floatip.Owner) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.offers.written {
		if f.allocation(0, l.opts.Reservation).Awaits(owner) {
			return true
		}
	}
	return false
}

// commitKept writes what f promises for owner, whom the promise waits for, on behalf of whom it was made for.
func (b *batch) commitKept(f *offer, owner floatip.Owner) error {
	for _, a := range f.addresses {
		if err := b.ledger.mayHave(a, f.claim, owner); err != nil {
			return err
		}
	}
	b.takeUp(f)
	for i, a := range f.addresses {
		line := Allocation{Address: a, Pool: f.pools[i], Owner: owner, Claim: f.claim, State: Pending, Since: b.now}
		b.put(line, Committed, f.cause)
		if h := b.ledger.book.homeOf(a); h != nil {
			b.advance(h, a)
		}
	}
	return nil
}

// Expire ends the promise of claim that was kept (see Request.WriteAhead) and that StalePending has shown: the caller has
// found by a live read that no virtual machine shows the claim. It returns what was promised, nothing if it was taken up
// meanwhile or is not a kept one.
func (l *Ledger) Expire(claim floatip.Claim) []Allocation {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.offers.byClaim[claim]
	if f == nil || !f.kept {
		return nil
	}
	l.withdraw(f)
	return f.lines(l.opts.Reservation)
}

// keptSince returns what is promised since latest or before and kept, oldest first.
func (o *offers) keptSince(latest time.Time) []Allocation {
	var lines []Allocation
	for _, f := range o.written {
		if f.kept && !f.since.After(latest) {
			lines = append(lines, f.lines(0)...)
		}
	}
	slices.SortFunc(lines, func(x, y Allocation) int { return x.Address.Compare(y.Address) })
	slices.SortStableFunc(lines, func(x, y Allocation) int { return x.Since.Compare(y.Since) })
	return lines
}

// appendPromises appends the value of ledger/promises, without the checksum: how many there are, then for each the claim,
// namespace and name, on whose behalf, and its addresses with their pools.
func appendPromises(to []byte, promises map[floatip.Claim]*offer) []byte {
	to = binary.AppendUvarint(to, uint64(len(promises)))
	for _, f := range promises {
		to = append(to, f.claim[:]...)
		to = appendText(to, f.namespace, f.name, f.cause.User, f.cause.RequestUID, f.cause.Reason)
		to = binary.AppendUvarint(to, uint64(len(f.addresses)))
		for i, a := range f.addresses {
			to = appendText(appendAddress(to, a), f.pools[i])
		}
	}
	return to
}

func decodePromises(sealed []byte) ([]*offer, error) {
	value, err := unseal(keyPromises, sealed)
	if err != nil {
		return nil, fmt.Errorf("promises: %w", err)
	}
	r := reader{rest: value}
	var promises []*offer
	for range r.length() {
		f := &offer{claim: r.claim(), namespace: r.text(), name: r.text()}
		f.cause = Cause{User: r.text(), RequestUID: r.text(), Reason: r.text()}
		n := r.length()
		if r.err == nil && (n == 0 || n > uint64(len(f.room.addresses))) {
			r.err = fmt.Errorf("%d addresses under one claim", n)
		}
		f.addresses, f.pools = f.room.addresses[:0], f.room.pools[:0]
		for range n {
			f.addresses = append(f.addresses, r.address())
			f.pools = append(f.pools, r.text())
		}
		if r.err != nil {
			break
		}
		promises = append(promises, f)
	}
	if err := r.end(); err != nil {
		return nil, fmt.Errorf("promises: %w", err)
	}
	return promises, nil
}

// promised is what the file or memory promises.
type promised map[netip.Addr]floatip.Claim

func (o *offers) promised() promised {
	all := promised{}
	for _, f := range o.written {
		for _, a := range f.addresses {
			all[a] = f.claim
		}
	}
	return all
}

// promises proves that no address is promised twice in the file.
func (c *checker) promises(tx *bbolt.Tx) {
	c.promised = promised{}
	sealed := tx.Bucket(bucketLedger).Get(keyPromises)
	if sealed == nil {
		return // nothing was ever promised
	}
	promises, err := decodePromises(sealed)
	if err != nil {
		c.complain(netip.Addr{}, "%v", err)
		return
	}
	for _, f := range promises {
		for _, a := range f.addresses {
			if other, twice := c.promised[a]; twice {
				c.complain(a, "it is promised to claim %s and to claim %s", other, f.claim)
			}
			c.promised[a] = f.claim
		}
	}
}

// ahead proves that the file has the promises that memory has written ahead. Others may be in it that have ended, until the
// next transaction.
func (c *checker) ahead(written promised) {
	for a, claim := range written {
		if c.promised[a] != claim {
			c.complain(a, "memory has promised it to claim %s, the file to %s", claim, c.promised[a])
		}
	}
}
