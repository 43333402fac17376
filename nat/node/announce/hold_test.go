package announce

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var start = time.Unix(1000, 0)

// drive lets the hold act until the time given has passed, and returns what it did and when: "300ms probe".
func drive(h *hold, from, until time.Duration) (did []string) {
	names := map[action]string{sendProbe: "probe", sendAnnouncement: "announce", sendDefence: "defend"}
	for {
		due := h.due(true)
		if due.IsZero() || due.Sub(start) > until {
			return did
		}
		now := due
		if now.Sub(start) < from {
			now = start.Add(from)
		}
		do, changed := h.step(now)
		if do != nothing {
			did = append(did, fmt.Sprintf("%s %s", now.Sub(start), names[do]))
		}
		if do == sendAnnouncement {
			h.sent(now)
		}
		if changed {
			did = append(did, fmt.Sprintf("%s %s", now.Sub(start), h.state))
		}
	}
}

func want(t *testing.T, what string, have []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestProbesBeforeFirstUse(t *testing.T) {
	h := newHold(false, DefaultTiming, start)
	want(t, "probes", drive(h, 0, time.Hour), "0s probe", "300ms probe", "600ms probe", "1s Free")
	h.wish(true, start.Add(2*time.Second))
	want(t, "announcements", drive(h, 0, 5*time.Second), "2s announce", "2.05s announce", "2.2s announce", "3.1s announce",
		"4.2s announce")
	if h.state != Held {
		t.Errorf("state is %s, want Held", h.state)
	}
}

// TestLateProbes: a machine that stands still for a while sends one probe after the other all the same, and waits for
// answers.
func TestLateProbes(t *testing.T) {
	h := newHold(false, DefaultTiming, start)
	want(t, "probes", drive(h, 5*time.Second, 5*time.Second), "5s probe")
	want(t, "probes", drive(h, 0, time.Hour), "5.3s probe", "5.6s probe", "6s Free")
}

func TestNoProbeWhereItIsInUse(t *testing.T) {
	h := newHold(true, DefaultTiming, start)
	if did := drive(h, 0, 0); len(did) != 1 || did[0] != "0s announce" {
		t.Errorf("did %v, want an announcement at once", did)
	}
}

// TestNoVerdictWithoutCarrier: silence on a NIC that is connected to nothing says nothing.
func TestNoVerdictWithoutCarrier(t *testing.T) {
	h := newHold(false, DefaultTiming, start)
	if due := h.due(false); !due.IsZero() {
		t.Errorf("something is due at %s on a NIC without a carrier", due)
	}
}

// TestTaken: somebody answers. The address is tested again at ever longer intervals, and found free when he is gone.
func TestTaken(t *testing.T) {
	h := newHold(false, DefaultTiming, start)
	drive(h, 0, 100*time.Millisecond)
	if do, changed := h.hear(otherMAC, false, start.Add(100*time.Millisecond)); do != nothing || !changed || h.state != Taken {
		t.Fatalf("action %d, changed %t, state %s; want Taken without a word", do, changed, h.state)
	}
	h.wish(true, start.Add(200*time.Millisecond))
	if h.answers() {
		t.Fatal("answered for although somebody else has it")
	}
	want(t, "second series", drive(h, 0, 10200*time.Millisecond), "10.1s probe")
	h.hear(otherMAC, false, start.Add(10200*time.Millisecond))
	want(t, "third series, nobody answers", drive(h, 0, time.Hour), "30.2s probe", "30.5s probe", "30.8s probe", "31.2s Free")
}

// TestTrial: he who did not answer the probes defends himself against the first announcement.
func TestTrial(t *testing.T) {
	h := newHold(false, DefaultTiming, start)
	drive(h, 0, time.Second)
	h.wish(true, start.Add(time.Second))
	drive(h, 0, 1500*time.Millisecond)
	if _, changed := h.hear(otherMAC, false, start.Add(7900*time.Millisecond)); !changed || h.state != Taken {
		t.Errorf("changed %t, state %s; want Taken within 7 s of the first announcement", changed, h.state)
	}
}

// TestDefence: at most one announcement in ten seconds, and none is forgotten; after a quiet minute it is over.
func TestDefence(t *testing.T) {
	h := newHold(true, DefaultTiming, start)
	drive(h, 0, 3*time.Second)
	claim := func(at time.Duration) action {
		do, _ := h.hear(otherMAC, false, start.Add(at))
		return do
	}
	if do := claim(4 * time.Second); do != sendDefence || h.state != Contested {
		t.Errorf("action %d in state %s, want a defence at once", do, h.state)
	}
	for at := 4100 * time.Millisecond; at < 14*time.Second; at += 100 * time.Millisecond {
		if do := claim(at); do != nothing {
			t.Fatalf("a second defence at %s", at)
		}
	}
	want(t, "afterwards", drive(h, 0, 80*time.Second), "14s defend", "1m13.9s Held")
}

// TestProbeOfAnotherHostIsNoConflict once the address is answered for: the answer tells the host.
func TestProbeOfAnotherHostIsNoConflict(t *testing.T) {
	h := newHold(true, DefaultTiming, start)
	if do, changed := h.hear(otherMAC, true, start); do != nothing || changed || h.state != Held {
		t.Errorf("action %d, changed %t, state %s; want nothing", do, changed, h.state)
	}
	h = newHold(false, DefaultTiming, start)
	if _, changed := h.hear(otherMAC, true, start); !changed || h.state != Taken {
		t.Errorf("two probe for one address: changed %t, state %s; want Taken", changed, h.state)
	}
}

// TestManyRivals: a host that claims under ever new Ethernet addresses makes no news each time.
func TestManyRivals(t *testing.T) {
	h, news := newHold(true, DefaultTiming, start), 0
	for i := range 1000 {
		if _, changed := h.hear([]byte{2, 0, 0, 1, byte(i >> 8), byte(i)}, false, start.Add(time.Duration(i)*time.Millisecond)); changed {
			news++
		}
	}
	if news != 1 {
		t.Errorf("%d claims within a second made %d news, want one", 1000, news)
	}
}
