package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"go.etcd.io/bbolt"

	"floatip.io/floatip"
)

// Report is what Check found.
type Report struct {
	// Held and Released count the allocations, Events the history.
	Held, Released, Events int
	Problems               []Problem
}

// Problem is one thing that does not fit.
type Problem struct {
	// Address that it is about, if it is about one.
	Address netip.Addr
	Text    string
	// Damage: file or memory contradict themselves. Otherwise they disagree with the pools or the cluster, or a virtual
	// machine has more than it should.
	Damage bool
}

// String returns "192.0.2.1: text".
func (p Problem) String() string {
	if !p.Address.IsValid() {
		return p.Text
	}
	return p.Address.String() + ": " + p.Text
}

// Err returns nil if there are no problems, or all of them in one error that is ErrDamaged.
func (r Report) Err() error {
	if len(r.Problems) == 0 {
		return nil
	}
	errs := []error{ErrDamaged}
	for _, p := range r.Problems {
		errs = append(errs, errors.New(p.String()))
	}
	return errors.Join(errs...)
}

// Damage is Err for the problems that are damage.
func (r Report) Damage() error {
	r.Problems = slices.DeleteFunc(slices.Clone(r.Problems), func(p Problem) bool { return !p.Damage })
	return r.Err()
}

// Against is what Check compares the ledger with. The zero value of each field compares nothing.
type Against struct {
	// Pools that every held address must lie in.
	Pools []Pool
	// Seen lists the addresses of all virtual machines of the cluster; nil stands for unknown.
	Seen []Sighting
}

// Check proves that the ledger is right: the pages of the file form a tree, every value has its checksum, the two indexes
// mirror each other, no claim and no virtual machine has two addresses of one family, disputes and their flags agree, the
// history is without gaps and ends in the present state, everything held lies in against.Pools and agrees with
// against.Seen. It also proves that the index in memory says the same as the file, that its parts agree, and that nothing
// is free and held at once. The ledger goes on working meanwhile.
//
// Errors: ErrClosed. What does not fit is in the Report.
func (l *Ledger) Check(ctx context.Context, against Against) (Report, error) {
	var lines []Allocation
	var problems []Problem
	var written promised
	var tx *bbolt.Tx
	err := l.writer.between(ctx, func() (err error) {
		lines = l.book.filter(func(*record) bool { return true })
		problems = l.book.audit(l.offers.addresses())
		written = l.offers.promised()
		tx, err = l.store.db.Begin(false)
		return err
	})
	if err != nil {
		return Report{}, fmt.Errorf("check: %w", err)
	}
	defer tx.Rollback()
	c := checker{report: Report{Problems: problems}}
	if err := guarded(func() error { c.file(tx); return nil }); err != nil {
		c.complain(netip.Addr{}, "%v", err)
	}
	c.memory(lines)
	c.ahead(written)
	c.against(against)
	return c.report, nil
}

// checker goes through one view of the file.
type checker struct {
	report   Report
	lines    map[netip.Addr]Allocation
	claims   map[netip.Addr][]Claimant
	promised promised
}

// complain notes damage, differ what is none.
func (c *checker) complain(a netip.Addr, format string, args ...any) {
	c.report.Problems = append(c.report.Problems, Problem{a, fmt.Sprintf(format, args...), true})
}

func (c *checker) differ(a netip.Addr, format string, args ...any) {
	c.report.Problems = append(c.report.Problems, Problem{a, fmt.Sprintf(format, args...), false})
}

func (c *checker) file(tx *bbolt.Tx) {
	if err := checkFormat(tx); err != nil {
		c.complain(netip.Addr{}, "%v", err)
		return
	}
	for err := range tx.Check() {
		c.complain(netip.Addr{}, "page: %v", err)
	}
	c.addresses(tx)
	c.owners(tx)
	c.claimants(tx)
	c.history(tx)
	c.identities()
	c.disputes()
	c.promises(tx)
	for _, line := range c.lines {
		if line.held() {
			c.report.Held++
		} else {
			c.report.Released++
		}
	}
}

func (c *checker) addresses(tx *bbolt.Tx) {
	c.lines = map[netip.Addr]Allocation{}
	complain := func(k []byte, err error) { c.complain(netip.Addr{}, "address %x: %v", k, err) }
	eachItem(tx.Bucket(bucketAddresses), func(k, v []byte) {
		line, err := decodeAllocation(k, v)
		if err != nil {
			complain(k, err)
			return
		}
		c.lines[line.Address] = line
	}, complain)
}

// owners proves that the owner index has one entry for each address, with its claim and owner, and no other.
func (c *checker) owners(tx *bbolt.Tx) {
	keys := map[string]bool{}
	eachItem(tx.Bucket(bucketOwners), func(k, v []byte) {
		keys[string(k)] = true
		claim, a, owner, err := decodeOwner(k, v)
		if err != nil {
			c.complain(a, "owner %x: %v", k, err)
			return
		}
		if line, ok := c.lines[a]; !ok || line.Owner != owner || line.Claim != claim {
			c.complain(a, "the owner index lists it under %s, who does not have it", owner)
		}
	}, func(k []byte, err error) { c.complain(netip.Addr{}, "owner %x: %v", k, err) })
	if len(keys) == len(c.lines) {
		return
	}
	for a, line := range c.lines {
		if !keys[string(ownerKey(nil, line.Claim, a))] {
			c.complain(a, "the owner index does not list it under %s", line.Owner)
		}
	}
}

func (c *checker) claimants(tx *bbolt.Tx) {
	c.claims = map[netip.Addr][]Claimant{}
	tx.Bucket(bucketDisputes).ForEach(func(k, v []byte) error {
		claimant, err := decodeClaimant(k, v)
		if err != nil {
			c.complain(netip.Addr{}, "dispute %x: %v", k, err)
			return nil
		}
		c.claims[claimant.Address] = append(c.claims[claimant.Address], claimant)
		return nil
	})
}

// identities proves that a claim and a virtual machine have at most one address of each family, besides what is superseded.
func (c *checker) identities() {
	type byClaim struct {
		floatip.Claim
		Family
	}
	type byUID struct {
		uid string
		Family
	}
	claims, uids := map[byClaim]netip.Addr{}, map[byUID]netip.Addr{}
	for _, a := range slices.SortedFunc(maps.Keys(c.lines), netip.Addr.Compare) {
		line := c.lines[a]
		if !line.held() || line.Superseded {
			continue
		}
		claim, uid := byClaim{line.Claim, FamilyOf(a)}, byUID{line.Owner.UID, FamilyOf(a)}
		if other, twice := claims[claim]; twice && !line.Claim.IsZero() {
			c.differ(a, "its claim %s has %s as well", line.Claim, other)
		}
		if other, twice := uids[uid]; twice && !line.Disputed && !c.lines[other].Disputed {
			c.differ(a, "VM %s has %s as well", line.Owner, other)
		}
		claims[claim], uids[uid] = a, a
	}
}

func (c *checker) disputes() {
	for a, claimants := range c.claims {
		if line := c.lines[a]; !line.held() || !line.Disputed {
			c.complain(a, "VM %s claims it, but it is not marked as disputed", claimants[0].Owner)
		}
	}
	for a, line := range c.lines {
		if line.Disputed && len(c.claims[a]) == 0 {
			c.complain(a, "it is marked as disputed, but nobody else claims it")
		}
	}
}

// history proves that the numbers have no gap, and that the last event of each address fits what the buckets say up to
// the entry that they follow. What the entries behind that one say is the present state, which must fit as well.
func (c *checker) history(tx *bbolt.Tx) {
	folded, err := getFolded(tx)
	if err != nil {
		c.complain(netip.Addr{}, "%v", err)
		return
	}
	last := map[netip.Addr]Event{}
	var next, nextEvent uint64
	tx.Bucket(bucketHistory).ForEach(func(k, v []byte) error {
		e, err := decodeEntry(k, v)
		if err != nil {
			c.complain(netip.Addr{}, "history: %v", err)
			return nil
		}
		if next != 0 && (e.number != next || e.first != nextEvent) {
			c.complain(netip.Addr{}, "history: entry %d from event %d on follows entry %d up to event %d", e.number, e.first, next-1, nextEvent)
		}
		if next == 0 && e.number > folded {
			c.complain(netip.Addr{}, "history: it begins with entry %d, the indexes follow it up to entry %d", e.number, folded)
		}
		next, nextEvent = e.number+1, e.first+e.events()
		c.report.Events += int(e.events())
		if e.number == folded {
			c.agree(last)
			clear(last)
		}
		for i := range e.steps {
			if s := &e.steps[i]; s.action != 0 {
				last[s.after.Address] = s.event(e.time)
			}
		}
		if e.number >= folded {
			c.redo(&e)
		}
		return nil
	})
	if next != 0 && folded > next {
		c.complain(netip.Addr{}, "history: it ends before entry %d, the indexes follow it up to entry %d", next, folded)
	}
	c.agree(last)
}

// redo applies an entry that the indexes do not follow yet.
func (c *checker) redo(e *entry) {
	for i := range e.steps {
		a, after := e.steps[i].after.Address, e.steps[i].after
		switch before := c.lines[a]; {
		case after.State != 0:
			c.lines[a] = after
		case before.State == Released:
			delete(c.lines, a)
		default:
			c.complain(a, "history: entry %d forgets it, but it is not released", e.number)
		}
	}
	for _, one := range e.claims {
		if delete(c.claims, one.address); len(one.claimants) > 0 {
			c.claims[one.address] = one.claimants
		}
	}
}

// agree proves that the last event of each address fits its state.
func (c *checker) agree(last map[netip.Addr]Event) {
	for a, e := range last {
		if line, ok := c.lines[a]; ok && (line.Owner != e.Owner || (line.State == Released) != (e.Action == Freed)) {
			c.complain(a, "it is %s for VM %s, but the last event says %s for VM %s", line.State, line.Owner, e.Action, e.Owner)
		} else if !ok && e.Action != Freed {
			c.complain(a, "nobody has it, but the last event says %s for VM %s", e.Action, e.Owner)
		}
	}
}

// memory compares the file with the index. The time since when may differ after the clock was set back, and the pool
// after pools were changed.
func (c *checker) memory(lines []Allocation) {
	if len(lines) != len(c.lines) {
		c.complain(netip.Addr{}, "memory has %d allocations, the file %d", len(lines), len(c.lines))
	}
	for _, line := range lines {
		stored, ok := c.lines[line.Address]
		stored.Since, stored.Pool = line.Since, line.Pool
		if !ok || stored != line {
			c.complain(line.Address, "memory says %+v, the file %+v", line, stored)
		}
	}
}

func (c *checker) against(against Against) {
	if against.Pools != nil {
		var ranges []Range
		for _, s := range divide(against.Pools) {
			ranges = append(ranges, s.ranges...)
		}
		ranges = union(ranges)
		for a, line := range c.lines {
			if line.held() && !within(ranges, a) {
				c.differ(a, "it is held by VM %s and lies in no pool", line.Owner)
			}
		}
	}
	if against.Seen != nil {
		c.seen(against.Seen)
	}
	slices.SortStableFunc(c.report.Problems, func(a, b Problem) int { return a.Address.Compare(b.Address) })
}

func (c *checker) seen(seen []Sighting) {
	shown := map[netip.Addr]bool{}
	for _, s := range seen {
		line, ok := c.lines[s.Address]
		switch {
		case !ok || !line.held():
			c.differ(s.Address, "%s of VM %s has it, the ledger says that nobody holds it", s.Source, s.Owner)
		case line.Owner.UID != s.Owner.UID:
			c.differ(s.Address, "%s of VM %s (%s) has it, the ledger says that VM %s (%s) holds it",
				s.Source, s.Owner, s.Owner.UID, line.Owner, line.Owner.UID)
		default:
			shown[s.Address] = true
		}
	}
	for a, line := range c.lines {
		if line.State == Bound && !shown[a] && !line.Disputed {
			c.differ(a, "the ledger says that VM %s (%s) holds it, the cluster does not show it", line.Owner, line.Owner.UID)
		}
	}
}
