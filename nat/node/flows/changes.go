package flows

import "time"

// drift is how far the life of a copy may fall behind that of its original before it is sent anew. The shortest life that
// matters, of a UDP packet without an answer, is 30 s.
const drift = 5 * time.Second

// Changes is what makes a copy of an older state a copy of a newer one.
type Changes struct {
	Put    []Entry `json:"put,omitempty"`
	Remove []Key   `json:"remove,omitempty"`
}

// Ledger remembers what was sent to a copy, so that only what has changed is sent again.
type Ledger struct{ sent map[Key]sent }

type sent struct {
	entry Entry
	at    time.Time
}

// Update returns the changes to entries, which are those of now, and takes them for sent.
func (l *Ledger) Update(entries []Entry, now time.Time) Changes {
	next := make(map[Key]sent, len(entries))
	var c Changes
	for _, e := range entries {
		old, known := l.sent[e.Key()]
		ends := old.at.Add(time.Duration(old.entry.Timeout) * time.Second)
		if known && old.entry.same(e) && now.Add(time.Duration(e.Timeout)*time.Second).Sub(ends) < drift {
			next[e.Key()] = old
			continue
		}
		next[e.Key()] = sent{e, now}
		c.Put = append(c.Put, e)
	}
	for key := range l.sent {
		if _, stays := next[key]; !stays {
			c.Remove = append(c.Remove, key)
		}
	}
	l.sent = next
	return c
}
