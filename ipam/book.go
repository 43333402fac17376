package ipam

import (
	"net/netip"
	"slices"
	"time"

	"floatip.io/floatip"
)

// book is the index in memory: every allocation of the file by address, claim, UID and name, and for each pool what is
// free. It knows neither time limits nor reservations; hide takes an address out of what is free while it is promised.
type book struct {
	lines   map[netip.Addr]Allocation
	byUID   map[string][]netip.Addr
	byName  map[[2]string][]netip.Addr
	byClaim map[floatip.Claim][]netip.Addr
	hidden  map[netip.Addr]bool
	homes   []*home
}

// home is a pool with what is free in it.
type home struct {
	share
	cursor map[Family]netip.Addr // the search for a fresh address goes on here
}

func newBook() *book {
	return &book{
		lines:   map[netip.Addr]Allocation{},
		byUID:   map[string][]netip.Addr{},
		byName:  map[[2]string][]netip.Addr{},
		byClaim: map[floatip.Claim][]netip.Addr{},
		hidden:  map[netip.Addr]bool{},
	}
}

// home returns the pool with that name, or nil.
func (b *book) home(name string) *home {
	for _, h := range b.homes {
		if h.pool.Name == name {
			return h
		}
	}
	return nil
}

// homeOf returns the pool that may hand out a, or nil.
func (b *book) homeOf(a netip.Addr) *home {
	for _, h := range b.homes {
		if within(h.ranges, a) {
			return h
		}
	}
	return nil
}

func (b *book) get(a netip.Addr) (Allocation, bool) {
	line, ok := b.lines[a]
	return line, ok
}

func (b *book) put(line Allocation) {
	b.remove(line.Address)
	b.lines[line.Address] = line
	if line.Owner.UID != "" {
		b.byUID[line.Owner.UID] = append(b.byUID[line.Owner.UID], line.Address)
	}
	name := [2]string{line.Owner.Namespace, line.Owner.Name}
	b.byName[name] = append(b.byName[name], line.Address)
	if !line.Claim.IsZero() {
		b.byClaim[line.Claim] = append(b.byClaim[line.Claim], line.Address)
	}
}

func (b *book) remove(a netip.Addr) {
	line, ok := b.lines[a]
	if !ok {
		return
	}
	delete(b.lines, a)
	cut(b.byUID, line.Owner.UID, a)
	cut(b.byName, [2]string{line.Owner.Namespace, line.Owner.Name}, a)
	cut(b.byClaim, line.Claim, a)
}

func cut[K comparable](m map[K][]netip.Addr, key K, a netip.Addr) {
	rest := slices.DeleteFunc(m[key], func(b netip.Addr) bool { return a == b })
	if len(rest) == 0 {
		delete(m, key)
		return
	}
	m[key] = rest
}

func (b *book) ofUID(uid string) []Allocation { return b.all(b.byUID[uid]) }

func (b *book) ofName(namespace, name string) []Allocation {
	return b.all(b.byName[[2]string{namespace, name}])
}

func (b *book) ofClaim(claim floatip.Claim) []Allocation { return b.all(b.byClaim[claim]) }

func (b *book) all(addresses []netip.Addr) []Allocation {
	lines := make([]Allocation, 0, len(addresses))
	for _, a := range addresses {
		lines = append(lines, b.lines[a])
	}
	slices.SortFunc(lines, func(x, y Allocation) int { return x.Address.Compare(y.Address) })
	return lines
}

func (b *book) hide(a netip.Addr) { b.hidden[a] = true }
func (b *book) show(a netip.Addr) { delete(b.hidden, a) }

// count returns how many addresses of the pool the namespace holds.
func (b *book) count(pool, namespace string) int {
	n := 0
	for _, line := range b.lines {
		if line.held() && line.Pool == pool && line.Owner.Namespace == namespace {
			n++
		}
	}
	return n
}

// next returns the address that h gives next: the first one after the cursor that nobody had, else the one that was
// released first, if it has rested.
func (b *book) next(h *home, family Family, now time.Time) (netip.Addr, bool) {
	cursor := h.cursor[family]
	var wrapped netip.Addr
	for _, r := range h.ranges {
		if FamilyOf(r.First) != family {
			continue
		}
		for a := r.First; r.Contains(a); a = a.Next() {
			if _, had := b.lines[a]; had || b.hidden[a] {
				continue
			}
			if !cursor.IsValid() || cursor.Compare(a) <= 0 {
				return a, true
			}
			if !wrapped.IsValid() {
				wrapped = a
			}
		}
	}
	if wrapped.IsValid() {
		return wrapped, true
	}
	oldest, ok := b.oldest(h, family)
	if !ok || oldest.Since.Add(h.pool.Quarantine).After(now) {
		return netip.Addr{}, false
	}
	return oldest.Address, true
}

// oldest returns the allocation of h that was released first.
func (b *book) oldest(h *home, family Family) (Allocation, bool) {
	var oldest Allocation
	for a, line := range b.lines {
		if line.State != Released || FamilyOf(a) != family || b.hidden[a] || !within(h.ranges, a) {
			continue
		}
		if !oldest.Address.IsValid() || line.Since.Before(oldest.Since) {
			oldest = line
		}
	}
	return oldest, oldest.Address.IsValid()
}

// resting counts the released addresses of h.
func (b *book) resting(h *home, family Family) int {
	n := 0
	for a, line := range b.lines {
		if line.State == Released && FamilyOf(a) == family && within(h.ranges, a) {
			n++
		}
	}
	return n
}

// settle replaces the pools. cursors says where the search goes on in pools that are new to b.
func (b *book) settle(shares []share, cursors map[string]map[Family]netip.Addr) {
	homes := make([]*home, 0, len(shares))
	for _, s := range shares {
		cursor := cursors[s.pool.Name]
		if old := b.home(s.pool.Name); old != nil {
			cursor = old.cursor
		}
		if cursor == nil {
			cursor = map[Family]netip.Addr{}
		}
		homes = append(homes, &home{share: s, cursor: cursor})
	}
	b.homes = homes
}

// snapshot returns all allocations in no order.
func (b *book) snapshot() []Allocation {
	lines := make([]Allocation, 0, len(b.lines))
	for _, line := range b.lines {
		lines = append(lines, line)
	}
	return lines
}
