package ipam

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// extent is which entries and events the history has: from the first on, up to the one before next.
type extent struct {
	first, next           uint64 // entries, numbered from 1
	firstEvent, nextEvent uint64
	folded                uint64 // the first entry that the other buckets do not follow yet
}

func (x extent) events() uint64 { return x.nextEvent - x.firstEvent }

func readExtent(tx *bbolt.Tx) (extent, error) {
	folded, err := getFolded(tx)
	if err != nil {
		return extent{}, err
	}
	x := extent{first: folded, next: folded, folded: folded}
	cursor := tx.Bucket(bucketHistory).Cursor()
	if k, v := cursor.First(); k != nil {
		oldest, err := decodeEntry(k, v)
		if err != nil {
			return extent{}, damaged(err)
		}
		youngest, err := decodeEntry(cursor.Last())
		if err != nil {
			return extent{}, damaged(err)
		}
		x.first, x.next = oldest.number, youngest.number+1
		x.firstEvent, x.nextEvent = oldest.first, youngest.first+youngest.events()
	}
	if folded < x.first || folded > x.next {
		return extent{}, damaged(fmt.Errorf("the indexes follow the history up to entry %d, it has %d to %d", folded, x.first, x.next-1))
	}
	return x, nil
}

func damaged(err error) error { return fmt.Errorf("%w: %w", ErrDamaged, err) }

func getFolded(tx *bbolt.Tx) (uint64, error) {
	value, err := unseal(keyFolded, tx.Bucket(bucketLedger).Get(keyFolded))
	if err == nil && len(value) != 8 {
		err = errShort
	}
	if err != nil {
		return 0, damaged(fmt.Errorf("%s: %w", keyFolded, err))
	}
	return number(value), nil
}

func putFolded(tx *bbolt.Tx, to uint64) error {
	return tx.Bucket(bucketLedger).Put(keyFolded, seal(keyFolded, numberKey(to)))
}

// replay calls redo with each entry that the other buckets do not follow yet, and keeps it to be folded. redo fills in
// what was before.
func (s *store) replay(redo func(e *entry)) error {
	return guarded(func() error {
		return s.db.View(func(tx *bbolt.Tx) error {
			expected := s.history.folded
			cursor := tx.Bucket(bucketHistory).Cursor()
			for k, v := cursor.Seek(numberKey(expected)); k != nil; k, v = cursor.Next() {
				e, err := decodeEntry(k, v)
				if err == nil && e.number != expected {
					err = fmt.Errorf("history: entry %d follows entry %d", e.number, expected-1)
				}
				if err != nil {
					return damaged(err)
				}
				redo(&e)
				s.unfolded = append(s.unfolded, e)
				expected++
			}
			return nil
		})
	})
}

// foldLag is how many steps the other buckets are behind the history at most, twice over. A commit alone writes only the
// end of the history; every so often one writes what became of the last foldLag addresses, in order.
const foldLag = 64

// write makes the batch durable: its entries are appended to the history, and old entries are folded into the other
// buckets, in one transaction.
func (s *store) write(b *batch, opts Options) error {
	before := s.history // in a statement of its own: entries changes it, and Go may call before it reads
	var fresh []entry
	if !b.empty() {
		fresh = s.entries(b)
	}
	all := append(s.unfolded, fresh...)
	due := dueEntries(all, opts.lag)
	err := s.update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bucketHistory)
		bucket.FillPercent = appendFill
		if err := s.append(bucket, fresh); err != nil {
			return err
		}
		if err := s.fold(tx, all[:due]); err != nil {
			return err
		}
		if b.promises != nil {
			if err := tx.Bucket(bucketLedger).Put(keyPromises, b.promises); err != nil {
				return err
			}
		}
		if len(fresh) == 0 {
			return nil
		}
		return s.trim(bucket, b.now, countEvents(b.steps), opts)
	})
	if err != nil {
		s.history = before
		return fileError(s.path, err)
	}
	if len(fresh) == 0 {
		s.room.put(b.steps)
	}
	for i := range all[:due] {
		if all[i].room != nil {
			s.room.put(all[i].room)
		}
	}
	clear(all[:due])
	s.unfolded = all[due:]
	s.scratch.shrink()
	return nil
}

// foldAll lets the other buckets follow the whole history, for the file that is left behind.
func (s *store) foldAll() error {
	if len(s.unfolded) == 0 {
		return nil
	}
	before := s.history
	s.scratch.bytes = s.scratch.bytes[:0]
	err := s.update(func(tx *bbolt.Tx) error { return s.fold(tx, s.unfolded) })
	if err != nil {
		s.history = before
		return fileError(s.path, err)
	}
	s.unfolded = nil
	return nil
}

// appendFill is how full bbolt leaves pages that it splits in a bucket whose keys only grow.
const appendFill = 0.9

// entries makes entries of the batch.
func (s *store) entries(b *batch) []entry {
	x := &s.history
	rest := b.steps
	var fresh []entry
	for len(rest) > 0 || len(fresh) == 0 {
		part := rest[:min(len(rest), entrySteps)]
		rest = rest[len(part):]
		fresh = append(fresh, entry{number: x.next, first: x.nextEvent, time: b.now, steps: part})
		x.next, x.nextEvent = x.next+1, x.nextEvent+countEvents(part)
	}
	fresh[0].cursors, fresh[0].claims = b.cursors, b.claims()
	fresh[len(fresh)-1].room = b.steps
	return fresh
}

func (s *store) append(history *bbolt.Bucket, fresh []entry) error {
	r := &s.scratch
	r.bytes = r.bytes[:0]
	for i := range fresh {
		key, start := numberKey(fresh[i].number), len(r.bytes)
		r.bytes = appendEntry(r.bytes, key, &fresh[i])
		if err := history.Put(key, r.bytes[start:]); err != nil {
			return err
		}
	}
	return nil
}

// dueEntries returns how many of the entries, the oldest first, are to be folded.
func dueEntries(entries []entry, lag int) int {
	steps := 0
	for i := range entries {
		steps += max(len(entries[i].steps), 1)
	}
	if steps <= 2*lag {
		return 0
	}
	due := 0
	for ; steps > lag; due++ {
		steps -= max(len(entries[due].steps), 1)
	}
	return due
}

// trimStep is how many old events one transaction removes for each new one at most, so that a lowered bound does not
// make one admission wait for all of them.
const trimStep = 4

// trim removes what is too old or too much, a stride of events at a time: the oldest entries are on pages of their own,
// and each transaction that changes them writes two pages more. The bound of the size is never passed.
func (s *store) trim(history *bbolt.Bucket, now time.Time, added uint64, opts Options) error {
	x := &s.history
	stride, size := uint64(min(max(opts.HistorySize/1000, 1), 64)), uint64(opts.HistorySize)
	if x.events() <= size && x.nextEvent/stride == (x.nextEvent-added)/stride {
		return nil
	}
	cursor := history.Cursor()
	budget := int64(trimStep * max(stride, added))
	for k, v := cursor.First(); k != nil && budget > 0 && number(k) < x.folded; k, v = cursor.First() {
		r := reader{rest: v}
		head := r.header()
		young := r.err != nil || head.time.After(now.Add(-opts.HistoryAge))
		if young && x.events() <= size-(stride-1) {
			break
		}
		x.first, x.firstEvent = number(k)+1, head.first+head.events
		budget -= max(int64(head.events), 1)
		if err := history.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// events returns the events that q selects, oldest first.
func (s *store) events(q Query) ([]Event, error) {
	var found []Event
	full := func() bool { return q.Limit > 0 && len(found) >= q.Limit }
	err := guarded(func() error {
		return s.db.View(func(tx *bbolt.Tx) error {
			cursor := tx.Bucket(bucketHistory).Cursor()
			for k, v := cursor.Last(); k != nil && !full(); k, v = cursor.Prev() {
				e, err := decodeEntry(k, v)
				if err != nil {
					return damaged(err)
				}
				for i := len(e.steps) - 1; i >= 0 && !full(); i-- {
					if e.steps[i].action == 0 {
						continue
					}
					if event := e.steps[i].event(e.time); q.selects(event) {
						found = append(found, event)
					}
				}
			}
			return nil
		})
	})
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return nil, ErrClosed
	}
	if err != nil {
		return nil, fileError(s.path, err)
	}
	slices.Reverse(found)
	return found, nil
}
