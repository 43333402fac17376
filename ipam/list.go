package ipam

// list is records of one state in the order in which they entered it, oldest first.
type list struct {
	oldest, youngest uint32
	n                int
}

// link puts id at its place by time. Nearly always that is one of the ends.
func (r *records) link(l *list, id uint32) {
	rec := r.at(id)
	older := l.youngest
	if older != 0 && rec.since < r.at(older).since {
		older = 0
		for next := l.oldest; r.at(next).since <= rec.since; next = r.at(next).younger {
			older = next
		}
	}
	younger := l.oldest
	if older != 0 {
		younger = r.at(older).younger
		r.at(older).younger = id
	} else {
		l.oldest = id
	}
	if younger != 0 {
		r.at(younger).older = id
	} else {
		l.youngest = id
	}
	rec.older, rec.younger, rec.listed = older, younger, true
	l.n++
}

func (r *records) unlink(l *list, id uint32) {
	rec := r.at(id)
	if rec.older != 0 {
		r.at(rec.older).younger = rec.younger
	} else {
		l.oldest = rec.younger
	}
	if rec.younger != 0 {
		r.at(rec.younger).older = rec.older
	} else {
		l.youngest = rec.older
	}
	rec.older, rec.younger, rec.listed = 0, 0, false
	l.n--
}
