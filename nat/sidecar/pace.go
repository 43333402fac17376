package sidecar

import "time"

// Repairs are done at once, as long as they are rare. Somebody who takes the rules away again and again, say an agent
// that flushes the ruleset, would turn two loops into one busy one.
const (
	freeRepairs    = 5 // within repairWindow, without any delay
	repairWindow   = time.Minute
	firstDelay     = 100 * time.Millisecond
	longestDelay   = 10 * time.Second
	longestBackOff = 30 * time.Second
)

// contest remembers the repairs of the last repairWindow.
type contest struct{ repairs []time.Time }

// recent drops what is too old and returns how many repairs are left.
func (c *contest) recent(now time.Time) int {
	for len(c.repairs) > 0 && now.Sub(c.repairs[0]) >= repairWindow {
		c.repairs = c.repairs[1:]
	}
	return len(c.repairs)
}

func (c *contest) repaired(now time.Time) { c.repairs = append(c.repairs, now) }

// wait returns how long the next repair has to wait.
func (c *contest) wait(now time.Time) time.Duration {
	n := c.recent(now)
	if n < freeRepairs {
		return 0
	}
	due := c.repairs[n-1].Add(doubled(firstDelay, n-freeRepairs, longestDelay))
	return max(0, due.Sub(now))
}

// contested reports whether somebody is at work against us.
func (c *contest) contested(now time.Time) bool { return c.recent(now) >= freeRepairs }

// doubled returns first × 2ⁿ, at most longest.
func doubled(first time.Duration, n int, longest time.Duration) time.Duration {
	for range n {
		if first *= 2; first >= longest {
			return longest
		}
	}
	return first
}
