package announce

import (
	"net"
	"slices"
	"time"
)

// action is what a hold wants to be sent.
type action int

const (
	nothing action = iota
	sendProbe
	sendAnnouncement
	sendDefence
)

// hold is one address that is looked after on one NIC. It decides and sends nothing, and reads no clock.
type hold struct {
	timing Timing
	state  State

	series probes // of Probing, and of Taken: whether it is over
	tested bool   // was found free by probes

	known     bool      // an earlier agent has announced it, and the first socket need not do so again
	schedule  schedule  // of announcements
	announced time.Time // the latest one
	trial     time.Time // the trial ends here

	rival    net.HardwareAddr
	named    time.Time // when rival was last set
	heard    time.Time // when a rival was last heard
	defended time.Time // when the last defence was sent
	owed     bool      // a claim was heard too soon after the last defence
}

// probes is one series of probes.
type probes struct {
	sent int
	// next is when the next probe is due, or the verdict after the last.
	next time.Time
	// failed counts the series that found somebody.
	failed int
}

func newHold(answer bool, t Timing, now time.Time) *hold {
	h := &hold{timing: t, state: Probing, series: probes{next: now}}
	if answer {
		h.state, h.schedule = Held, schedule{since: now}
	}
	return h
}

// resumed is a hold that an earlier agent has announced; its next announcement is the refresh.
func resumed(t Timing, now time.Time) *hold {
	h := newHold(true, t, now)
	h.schedule = schedule{since: now.Add(-burst[len(burst)-1]), sent: len(burst)}
	h.announced, h.known = now, true
	return h
}

// answers reports whether the address is answered for.
func (h *hold) answers() bool { return h.state == Held || h.state == Contested }

// wish says whether the address shall be answered for. An address that somebody else has stays Taken.
func (h *hold) wish(answer bool, now time.Time) {
	switch {
	case answer && (h.state == Free || h.state == Probing):
		h.state, h.schedule, h.announced, h.trial = Held, schedule{since: now}, time.Time{}, time.Time{}
	case !answer && h.answers():
		h.state = Free
	}
}

// reopen begins anew what is under way: the NIC is another one, or was away.
func (h *hold) reopen(now time.Time) {
	if h.known {
		h.known = false
		return
	}
	h.schedule, h.announced = schedule{since: now}, time.Time{}
	if h.state == Probing {
		h.series = probes{next: now}
	}
}

// due returns when step has something to do, the zero Time for never. A NIC without a carrier proves nothing, so no
// address is found free on it.
func (h *hold) due(carrier bool) time.Time {
	switch h.state {
	case Probing, Taken:
		if !carrier {
			return time.Time{}
		}
		return h.series.next
	case Held:
		return h.schedule.due()
	case Contested:
		first := earlier(h.schedule.due(), h.heard.Add(h.timing.Quiet))
		if h.owed {
			first = earlier(first, h.defended.Add(h.timing.Defend))
		}
		return first
	}
	return time.Time{}
}

// step does what is due at now. changed says that the state is another one.
func (h *hold) step(now time.Time) (do action, changed bool) {
	switch {
	case h.state == Probing || h.state == Taken:
		if h.series.sent < h.timing.Probes {
			// Counted from now, so that each probe has its time to be answered however late it was sent.
			h.series.sent, h.series.next = h.series.sent+1, now.Add(h.timing.Every)
			if h.series.sent == h.timing.Probes {
				h.series.next = now.Add(h.timing.Wait)
			}
			return sendProbe, false
		}
		h.state, h.tested, h.rival = Free, true, nil
		return nothing, true
	case h.owed && !h.defended.Add(h.timing.Defend).After(now):
		h.defended, h.owed = now, false
		return sendDefence, false
	case h.state == Contested && !h.heard.Add(h.timing.Quiet).After(now):
		h.state, h.rival, h.owed = Held, nil, false
		return nothing, true
	}
	if h.tested && h.trial.IsZero() {
		h.trial = now.Add(h.timing.Trial)
	}
	h.schedule = h.schedule.next(now)
	return sendAnnouncement, false
}

// sent notes an announcement that went out, and reports whether it was the first.
func (h *hold) sent(now time.Time) (first bool) {
	first = h.announced.IsZero()
	h.announced = now
	return first
}

// hear takes in that another host, which is no node of ours, claims the address or probes for it. A probe for an address
// that is answered for is answered, and that settles it.
func (h *hold) hear(rival net.HardwareAddr, probe bool, now time.Time) (do action, changed bool) {
	if h.answers() && probe {
		return nothing, false
	}
	// Of several rivals one is named for a while: who sends under ever new addresses shall not keep everybody busy.
	news := string(h.rival) != string(rival) && now.Sub(h.named) >= h.timing.Defend
	if h.rival == nil || news {
		h.rival, h.named = slices.Clone(rival), now
	}
	h.heard = now
	if h.answers() && !now.Before(h.trial) {
		news = news || h.state != Contested
		h.state = Contested
		if now.Sub(h.defended) < h.timing.Defend {
			h.owed = true
			return nothing, news
		}
		h.defended = now
		return sendDefence, news
	}
	news = news || h.state != Taken
	if h.state != Taken || h.series.sent > 0 {
		h.series = probes{next: now.Add(h.retry()), failed: h.series.failed + 1}
	}
	h.state = Taken
	return nothing, news
}

// retry is how long to wait after one more series that found somebody.
func (h *hold) retry() time.Duration {
	wait := h.timing.Retry
	for range h.series.failed {
		if wait *= 2; wait >= h.timing.RetryMost {
			return h.timing.RetryMost
		}
	}
	return wait
}

func (h *hold) standing(carrier bool) Standing {
	s := Standing{State: h.state}
	if h.state == Taken || h.state == Contested {
		s.Rival = h.rival
	}
	if carrier && h.answers() {
		s.Announced = h.announced
	}
	return s
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
