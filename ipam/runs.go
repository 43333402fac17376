package ipam

// run is the free addresses from first to last.
type run struct{ first, last num }

// chunkSize balances the two costs of a change: moving the runs of one chunk, and the number of chunks. A chunk of 127 runs
// just fits in 4 KiB; one of 128 would be given 4 864 bytes (runtime/sizeclasses.go).
const chunkSize = 127

type chunk struct {
	n    int
	runs [chunkSize]run
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
// looked for where the last one was found, and then by two binary searches without branches: where the next step goes is
// not foreseeable, and a processor that guessed wrong loses more than the comparison takes.
func (s *runs) seek(x num) place {
	if s.fits(s.found, x) {
		return s.found
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
		from += half & -c.runs[from+half-1].last.below(x)
		n -= half
	}
	s.found = place{low, from}
	return s.found
}

// fits reports whether p is what seek looks for.
func (s *runs) fits(p place, x num) bool {
	if p.c >= len(s.chunks) || p.r >= s.chunks[p.c].n || s.chunks[p.c].runs[p.r].last.less(x) {
		return false
	}
	switch {
	case p.r > 0:
		return s.chunks[p.c].runs[p.r-1].last.less(x)
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
	return &s.chunks[p.c].runs[p.r]
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
func (s *runs) fresh(c int) { s.chunks[c].last = s.chunks[c].runs[s.chunks[c].n-1].last }

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
	c := s.chunks[p.c].chunk
	copy(c.runs[p.r+1:c.n+1], c.runs[p.r:c.n])
	c.runs[p.r] = r
	c.n++
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
	upper.n = copy(upper.runs[:], lower.runs[chunkSize/2:])
	lower.n = chunkSize / 2
	s.fresh(at)
	s.fresh(at + 1)
}

// remove takes out the run at p, and joins the chunk with a neighbour if little is left in both.
func (s *runs) remove(p place) {
	c := s.chunks[p.c].chunk
	copy(c.runs[p.r:], c.runs[p.r+1:c.n])
	c.n--
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
	to, from := s.chunks[c].chunk, s.chunks[c+1].chunk
	to.n += copy(to.runs[to.n:], from.runs[:from.n])
	s.dropChunk(c + 1)
}

func (s *runs) dropChunk(at int) {
	c := s.chunks[at].chunk
	c.n = 0
	s.spare = c
	s.chunks = append(s.chunks[:at], s.chunks[at+1:]...)
}
