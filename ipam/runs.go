package ipam

// run is the free addresses from first to last.
type run struct{ first, last num }

// chunkSize balances the two costs of a change: moving runs within one chunk, and the number of chunks. A chunk of 127 runs
// just fits in 4 KiB; one of 128 would be given 4 864 bytes (runtime/sizeclasses.go).
const chunkSize = 127

// chunk holds some runs in order, in front of a gap and behind it (a gap buffer, as editors keep text in). What is taken or
// given next lies next to what was last, so that hardly ever more than a few runs move; moving half a chunk each time took
// a tenth of an allocation in a /16 with holes (docs/decisions/ledger.md).
type chunk struct {
	n    int // how many runs
	gap  int // how many of them are in front of the gap
	runs [chunkSize]run
}

func (c *chunk) at(i int) *run {
	at := i + chunkSize - c.n
	if i < c.gap {
		at = i
	}
	return &c.runs[at]
}

// move puts the gap in front of the run at i.
func (c *chunk) move(i int) {
	width := chunkSize - c.n
	if i < c.gap {
		copy(c.runs[i+width:c.gap+width], c.runs[i:c.gap])
	} else {
		copy(c.runs[c.gap:i], c.runs[c.gap+width:i+width])
	}
	c.gap = i
}

// insert puts r in front of the run at i. There must be room.
func (c *chunk) insert(i int, r run) {
	c.move(i)
	c.runs[i] = r
	c.n, c.gap = c.n+1, c.gap+1
}

func (c *chunk) remove(i int) {
	if i == c.gap-1 {
		c.gap--
	} else {
		c.move(i)
	}
	c.n-- // the gap is wider by one run
}

// take moves the runs of from behind its first keep ones to the end of c.
func (c *chunk) take(from *chunk, keep int) {
	c.move(c.n)
	from.move(from.n)
	c.n += copy(c.runs[c.n:], from.runs[keep:from.n])
	c.gap = c.n
	from.n, from.gap = keep, keep
}

// runs is a set of addresses of one family, kept as disjoint runs that do not touch, in order, in chunks. Its size
// follows the number of runs, which is at most the number of ranges plus that of the addresses taken out of them; a /64
// of which nothing is taken is one run. Searching is two binary searches.
type runs struct {
	chunks []ordered
	spare  *chunk
	found  place // by the last search: what is found free is taken next
}

// ordered is a chunk and the last address in it. Taking the lowest address of a run, the usual change, leaves it alone.
type ordered struct {
	last num
	*chunk
}

// place is where a run is: its chunk and its index there.
type place struct{ c, r int }

// seek returns the place of the first run that does not end before x. Its chunk does not exist if there is none. It is
// looked for where the last one was found and behind that, and then by two binary searches without branches: where the
// next step goes is not foreseeable, and a processor that guessed wrong loses more than the comparison takes.
func (s *runs) seek(x num) place {
	if s.fits(s.found, x) {
		return s.found
	}
	if p := s.after(s.found); s.fits(p, x) {
		s.found = p
		return p
	}
	low := 0
	for n := len(s.chunks); n > 0; {
		half := (n + 1) / 2
		low += half & -s.chunks[low+half-1].last.below(x)
		n -= half
	}
	if low == len(s.chunks) {
		return place{c: low}
	}
	c, from := s.chunks[low].chunk, 0
	for n := c.n; n > 0; {
		half := (n + 1) / 2
		from += half & -c.at(from+half-1).last.below(x)
		n -= half
	}
	s.found = place{low, from}
	return s.found
}

// fits reports whether p is what seek looks for.
func (s *runs) fits(p place, x num) bool {
	if p.c >= len(s.chunks) || p.r >= s.chunks[p.c].n || s.chunks[p.c].at(p.r).last.less(x) {
		return false
	}
	switch {
	case p.r > 0:
		return s.chunks[p.c].at(p.r - 1).last.less(x)
	case p.c > 0:
		return s.chunks[p.c-1].last.less(x)
	}
	return true
}

// at returns the run at p, or nil.
func (s *runs) at(p place) *run {
	if p.c < 0 || p.c >= len(s.chunks) {
		return nil
	}
	return s.chunks[p.c].at(p.r)
}

// after returns the place behind p, which may not exist.
func (s *runs) after(p place) place {
	if p.c < len(s.chunks) && p.r+1 < s.chunks[p.c].n {
		return place{p.c, p.r + 1}
	}
	return place{c: p.c + 1}
}

// before returns the place of the run in front of p; its chunk does not exist if there is none.
func (s *runs) before(p place) place {
	switch {
	case p.r > 0:
		return place{p.c, p.r - 1}
	case p.c > 0:
		return place{p.c - 1, s.chunks[p.c-1].n - 1}
	}
	return place{c: -1}
}

// ceil returns the lowest address of s that is x or above it.
func (s *runs) ceil(x num) (num, bool) {
	found := s.at(s.seek(x))
	switch {
	case found == nil:
		return num{}, false
	case found.first.less(x):
		return x, true
	}
	return found.first, true
}

// has reports whether x is in s.
func (s *runs) has(x num) bool {
	found := s.at(s.seek(x))
	return found != nil && !x.less(found.first)
}

// take removes x. It reports whether x was in s.
func (s *runs) take(x num) bool {
	p := s.seek(x)
	found := s.at(p)
	if found == nil || x.less(found.first) {
		return false
	}
	switch {
	case found.first == found.last:
		s.remove(p)
	case x == found.first:
		found.first = x.next()
	case x == found.last:
		found.last = x.prev()
		s.fresh(p.c)
	default:
		head := run{found.first, x.prev()}
		found.first = x.next()
		s.insert(p, head)
	}
	return true
}

// give adds x, which may be in s already.
func (s *runs) give(x num) {
	p := s.seek(x)
	above := s.at(p)
	if above != nil && !x.less(above.first) {
		return
	}
	q := s.before(p)
	below := s.at(q)
	joinsBelow := below != nil && below.last.next() == x
	joinsAbove := above != nil && above.first.prev() == x
	switch {
	case joinsBelow && joinsAbove:
		above.first = below.first
		s.remove(q)
	case joinsBelow:
		below.last = x
		s.fresh(q.c)
	case joinsAbove:
		above.first = x
	default:
		s.insert(p, run{x, x})
	}
}

// push adds r, which lies above everything in s and does not touch it.
func (s *runs) push(r run) { s.insert(place{c: len(s.chunks)}, r) }

// fresh notes the last address of a chunk anew.
func (s *runs) fresh(c int) { s.chunks[c].last = s.chunks[c].at(s.chunks[c].n - 1).last }

// insert puts r in front of the run at p.
func (s *runs) insert(p place, r run) {
	if p.c == len(s.chunks) {
		if p.c == 0 || s.chunks[p.c-1].n == chunkSize {
			s.addChunk(p.c)
		} else {
			p = place{p.c - 1, s.chunks[p.c-1].n}
		}
	}
	if s.chunks[p.c].n == chunkSize {
		s.split(p.c)
		if half := s.chunks[p.c].n; p.r > half {
			p = place{p.c + 1, p.r - half}
		}
	}
	s.chunks[p.c].insert(p.r, r)
	s.fresh(p.c)
}

func (s *runs) addChunk(at int) *chunk {
	c := s.spare
	s.spare = nil
	if c == nil {
		c = new(chunk)
	}
	s.chunks = append(s.chunks, ordered{})
	copy(s.chunks[at+1:], s.chunks[at:])
	s.chunks[at] = ordered{chunk: c}
	return c
}

// split moves the upper half of a full chunk into a new one.
func (s *runs) split(at int) {
	upper, lower := s.addChunk(at+1), s.chunks[at].chunk
	upper.take(lower, chunkSize/2)
	s.fresh(at)
	s.fresh(at + 1)
}

// remove takes out the run at p, and joins the chunk with a neighbour if little is left in both.
func (s *runs) remove(p place) {
	c := s.chunks[p.c].chunk
	c.remove(p.r)
	switch {
	case c.n == 0:
		s.dropChunk(p.c)
		return
	case c.n < chunkSize/4 && p.c+1 < len(s.chunks) && s.chunks[p.c+1].n <= chunkSize/2:
		s.join(p.c)
	case c.n < chunkSize/4 && p.c > 0 && s.chunks[p.c-1].n <= chunkSize/2:
		p.c--
		s.join(p.c)
	}
	s.fresh(p.c)
}

// join moves the runs of the next chunk into the chunk at c.
func (s *runs) join(c int) {
	s.chunks[c].take(s.chunks[c+1].chunk, 0)
	s.dropChunk(c + 1)
}

func (s *runs) dropChunk(at int) {
	c := s.chunks[at].chunk
	c.n, c.gap = 0, 0
	s.spare = c
	s.chunks = append(s.chunks[:at], s.chunks[at+1:]...)
}
