package ipam

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"sync"
	"time"

	"floatip.io/floatip"
)

// Options of a Ledger. The zero value of each field stands for its default.
type Options struct {
	// Now is the clock. Defaults to time.Now.
	Now func() time.Time
	// Reservation is how long Reserve promises an address. Defaults to 45s: longer than the API server takes from the
	// mutating to the validating phase, at most 34 s with its largest request timeout.
	Reservation time.Duration
	// Hold is how long the virtual machine of the same namespace and name may have back what it released. Defaults
	// to 10m.
	Hold time.Duration
	// Remember is how long a released address is kept apart from those that nobody had, which are given first. Defaults
	// to 24h; never less than the pool's quarantine and Hold.
	Remember time.Duration
	// HistoryAge is how long an event stays in the history, which forgets when something new happens. Defaults to 90 days.
	HistoryAge time.Duration
	// HistorySize is how many events the history keeps, or up to a thousandth less. Defaults to 200 000, about 40 MB of
	// file.
	HistorySize int

	growth int           // by how much the file grows at a time, in bytes; tests take less
	lag    int           // see foldLag; tests take less
	delay  time.Duration // see writeDelay; tests take more
	rest   time.Duration // see writeRest
}

func (o Options) withDefaults() Options {
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Reservation = cmp.Or(o.Reservation, 45*time.Second)
	o.Hold = cmp.Or(o.Hold, 10*time.Minute)
	o.Remember = max(cmp.Or(o.Remember, 24*time.Hour), o.Hold)
	o.HistoryAge = cmp.Or(o.HistoryAge, 90*24*time.Hour)
	o.HistorySize = cmp.Or(o.HistorySize, 200_000)
	o.growth = cmp.Or(o.growth, 512<<10)
	o.delay, o.rest = cmp.Or(o.delay, writeDelay), cmp.Or(o.rest, writeRest)
	o.lag = min(cmp.Or(o.lag, foldLag), o.HistorySize/4)
	return o
}

// Ledger is the open file and its index. Its methods may be called from many goroutines.
type Ledger struct {
	opts   Options
	store  *store
	writer *writer

	mu       sync.Mutex // guards what follows; nobody but Check does I/O or calls out while holding it
	book     *book
	offers   offers
	disputes map[netip.Addr][]Claimant
	cursors  map[string]cursor // of pools in the file, for SetPools
	latest   time.Time         // the last time that was read
	closed   bool
}

// Open opens the file at path, or makes it with mode 0600, and reads all of it before it returns.
//
// Errors, each with a sentence that says what to do: ErrLocked, ErrReadOnly, ErrDiskFull, ErrDamaged, ErrFormat. The file
// is left as it is.
func Open(path string, options Options) (*Ledger, error) {
	opts := options.withDefaults()
	l := &Ledger{opts: opts, book: newBook(), offers: newOffers(), disputes: map[netip.Addr][]Claimant{}}
	found := newContents(l.book.load)
	s, err := openStore(path, opts.growth, found.take)
	if err != nil {
		return nil, err
	}
	l.store = s
	if err := l.begin(found); err != nil {
		s.close()
		return nil, fileError(path, err)
	}
	l.writer = startWriter(l)
	return l, nil
}

// begin makes what the file says the present state: the buckets, and then the entries that they do not follow yet.
func (l *Ledger) begin(found *contents) error {
	if found.err != nil {
		return damaged(found.err)
	}
	l.cursors = found.cursors
	for _, c := range found.claimants {
		l.disputes[c.Address] = append(l.disputes[c.Address], c)
	}
	for _, claimants := range l.disputes {
		slices.SortFunc(claimants, firstClaimant)
	}
	l.book.arrange()
	if err := l.store.replay(l.redo); err != nil {
		return err
	}
	l.latest = l.opts.Now()
	l.book.clamp(l.latest)
	l.keepAll(found.promises)
	return nil
}

// redo applies an entry of the history and fills in what was before.
func (l *Ledger) redo(e *entry) {
	for i := range e.steps {
		s := &e.steps[i]
		if s.after.State == 0 {
			if before, had := l.book.get(s.after.Address); had {
				s.before = &before
			}
			l.book.remove(s.after.Address)
		} else {
			s.before = l.book.put(&s.after)
		}
	}
	for _, c := range e.cursors {
		l.cursors[c.pool] = c.at
	}
	for _, c := range e.claims {
		l.setDispute(c.address, c.claimants)
	}
}

// setDispute makes claimants those of a.
func (l *Ledger) setDispute(a netip.Addr, claimants []Claimant) {
	if len(claimants) == 0 {
		delete(l.disputes, a)
	} else {
		l.disputes[a] = claimants
	}
}

// Close writes what is queued and closes the file. Later calls of other methods return ErrClosed. Closing again is fine.
func (l *Ledger) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	if l.tick(); l.offers.changed { // else the next start keeps promises that have ended
		l.writer.enter(l.writer.openBatch(), 0)
	}
	l.mu.Unlock()
	l.writer.stop()
	l.store.foldAll() // What cannot be folded, as on a full disk, is read from the history by the next start.
	return l.store.close()
}

// Broken is closed when the disk failed in such a way that only the file itself can say what is in it (ErrUncertain).
// Reading goes on, from memory. The process should end: the next Open reads the file.
func (l *Ledger) Broken() <-chan struct{} { return l.store.broken }

// tick reads the clock, with l.mu held, and ends the reservations that are over. When the clock was set back, what waits
// for a time waits from now on.
func (l *Ledger) tick() time.Time {
	now := l.opts.Now()
	if now.Before(l.latest) {
		l.book.clamp(now)
		l.offers.clamp(now.Add(l.opts.Reservation))
	}
	l.latest = now
	for f := l.offers.expired(now); f != nil; f = l.offers.expired(now) {
		l.withdraw(f)
	}
	return now
}

// Lookup returns who has the address, be it Reserved, Pending, Bound or Released; false if nobody has and nobody is
// remembered.
func (l *Ledger) Lookup(address netip.Addr) (Allocation, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tick()
	if f := l.offers.byAddress[address]; f != nil {
		return f.allocation(slices.Index(f.addresses, address), l.opts.Reservation), true
	}
	return l.book.get(address)
}

// ByOwner returns what the virtual machine with that UID holds (Pending or Bound), IPv4 first, one of each family: what is
// superseded (see Adopt) is not in it.
func (l *Ledger) ByOwner(uid string) []Allocation {
	l.mu.Lock()
	defer l.mu.Unlock()
	return current(onlyHeld(l.book.ofUID(uid)))
}

// ByName returns what virtual machines of that name hold (Pending or Bound), IPv4 first. Two machines that followed
// each other under one name may both be in it: the UID decides.
func (l *Ledger) ByName(namespace, name string) []Allocation {
	l.mu.Lock()
	defer l.mu.Unlock()
	return onlyHeld(l.book.ofName(namespace, name))
}

// ByClaim returns what the claim stands for: Reserved, Pending or Bound, IPv4 first.
func (l *Ledger) ByClaim(claim floatip.Claim) []Allocation {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tick()
	if f := l.offers.byClaim[claim]; f != nil {
		return f.lines(l.opts.Reservation)
	}
	return current(onlyHeld(l.book.ofClaim(claim)))
}

func onlyHeld(lines []Allocation) []Allocation {
	return slices.DeleteFunc(lines, func(line Allocation) bool { return !line.held() })
}

// All yields every Pending, Bound and Released allocation of one moment, ordered by address, IPv4 first.
func (l *Ledger) All() iter.Seq[Allocation] {
	l.mu.Lock()
	lines := l.book.filter(func(*record) bool { return true })
	l.mu.Unlock()
	slices.SortFunc(lines, func(a, b Allocation) int { return a.Address.Compare(b.Address) })
	return slices.Values(lines)
}

// StalePending returns the allocations that are Pending for longer than age, oldest first. The caller finds out by a live
// read whether their virtual machine exists, then calls Bind or ReleasePending. Nothing is freed by age alone. Before them come those
// that were promised to a claim and kept (see Request.WriteAhead): they have no UID, and no name if the API server was to
// generate it. If no virtual machine shows the claim, the caller says Expire.
func (l *Ledger) StalePending(age time.Duration) []Allocation {
	l.mu.Lock()
	defer l.mu.Unlock()
	latest := l.tick().Add(-age)
	return append(l.offers.keptSince(latest), l.book.stale(latest)...)
}
