package peer

import "time"

// skew is by how much the target's clock is ahead of the source's. Each message of the source says when it was sent; how long
// it took nobody knows, but the fastest of them, among several in the seconds before an arrival, took a millisecond. So a
// message that one of the two agents reads late, since its node has too much to do, does not count as the guest's silence.
type skew struct {
	ahead time.Duration
	known bool
}

// note takes a message that was sent by the source's clock, and received by this one's.
func (s *skew) note(sent, received time.Time) {
	if sent.IsZero() {
		return // of an agent that does not say it
	}
	if ahead := received.Sub(sent); !s.known || ahead < s.ahead {
		s.ahead, s.known = ahead, true
	}
}

// here is what this clock says when the source's says at.
func (s *skew) here(at time.Time) time.Time { return at.Add(s.ahead) }
