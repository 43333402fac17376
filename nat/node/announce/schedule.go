package announce

import "time"

// burst are the moments of the first announcements, after an address came. Switches and hosts take the first; the
// others are for those that lost it. Linux before 4.13 ignored a second change of a neighbour within a second
// (locktime), which 1.1 s and 2.2 s respect.
var burst = []time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond, 1100 * time.Millisecond, 2200 * time.Millisecond}

// refresh keeps switches, whose entries live 300 s by default (IEEE 802.1Q, ageing time), from flooding.
const refresh = 120 * time.Second

// schedule says when an address is announced next.
type schedule struct {
	since time.Time // when the burst began
	sent  int
}

// due returns when the next announcement is to be sent.
func (s schedule) due() time.Time {
	if s.sent < len(burst) {
		return s.since.Add(burst[s.sent])
	}
	last := burst[len(burst)-1]
	return s.since.Add(last + time.Duration(s.sent-len(burst)+1)*refresh)
}

// next is the schedule after an announcement at now. Moments that passed meanwhile are left out: one announcement is
// worth as much as several at once.
func (s schedule) next(now time.Time) schedule {
	for !s.due().After(now) {
		s.sent++
	}
	return s
}
