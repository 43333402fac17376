package firewall

import (
	"cmp"
	"slices"

	"floatip.io/floatip"
)

// span is the numbers from start up to, but without, end.
type span struct{ start, end int }

// compareSpans orders spans by their start.
func compareSpans(a, b span) int {
	return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.end, b.end))
}

// rect is the points with x and y in its spans.
type rect struct{ x, y span }

// transposed exchanges x and y.
func transposed(rects []rect) []rect {
	out := make([]rect, len(rects))
	for i, r := range rects {
		out[i] = rect{x: r.y, y: r.x}
	}
	return out
}

// strips returns disjoint rectangles that cover what rects cover and holes do not. It walks along x; a span of y that
// is the same at the next x makes its rectangle longer. The result depends on the covered points only. With more than
// floatip.MaxFirewallEntries it gives up and reports false.
func strips(rects, holes []rect) (out []rect, fits bool) {
	rects, holes = sortedByY(rects), sortedByY(holes)
	var growing []rect // those that reach up to x, ascending by y; their x.end is not yet known
	for _, x := range steps(rects, holes) {
		row := subtract(column(rects, x), column(holes, x))
		next := make([]rect, 0, len(row))
		for _, y := range row {
			for len(growing) > 0 && compareSpans(growing[0].y, y) < 0 {
				out, growing = append(out, ended(growing[0], x)), growing[1:]
			}
			if len(growing) > 0 && growing[0].y == y {
				next, growing = append(next, growing[0]), growing[1:]
				continue
			}
			next = append(next, rect{x: span{start: x}, y: y})
		}
		for _, r := range growing {
			out = append(out, ended(r, x))
		}
		growing = next
		if len(out)+len(growing) > floatip.MaxFirewallEntries {
			return nil, false
		}
	}
	return out, true
}

func ended(r rect, x int) rect {
	r.x.end = x
	return r
}

func sortedByY(rects []rect) []rect {
	out := slices.Clone(rects)
	slices.SortFunc(out, func(a, b rect) int { return compareSpans(a.y, b.y) })
	return out
}

// steps returns every x at which something starts or ends, in order. Nothing is covered at the last one.
func steps(lists ...[]rect) (xs []int) {
	for _, list := range lists {
		for _, r := range list {
			xs = append(xs, r.x.start, r.x.end)
		}
	}
	slices.Sort(xs)
	return slices.Compact(xs)
}

// column returns what rects, which are sorted by y, cover at x: the fewest spans in ascending order.
func column(rects []rect, x int) (out []span) {
	for _, r := range rects {
		if x < r.x.start || x >= r.x.end {
			continue
		}
		if n := len(out); n > 0 && r.y.start <= out[n-1].end {
			out[n-1].end = max(out[n-1].end, r.y.end)
			continue
		}
		out = append(out, r.y)
	}
	return out
}

// subtract returns what from covers and holes do not. Both are disjoint and in ascending order.
func subtract(from, holes []span) (out []span) {
	for _, s := range from {
		for _, h := range holes {
			if h.end <= s.start || h.start >= s.end {
				continue
			}
			if s.start < h.start {
				out = append(out, span{s.start, h.start})
			}
			s.start = h.end
			if s.start >= s.end {
				break
			}
		}
		if s.start < s.end {
			out = append(out, s)
		}
	}
	return out
}
