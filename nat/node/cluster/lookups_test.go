package cluster

import (
	"context"
	"errors"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"floatip.io/floatip/nat/node"
)

// asked is a set of lookups on a clock of its own, with an API server that says what the test wants.
type asked struct {
	*lookups[wantedMachine, node.Machine]
	says   func(wantedMachine) (node.Machine, error)
	wanted map[wantedMachine]bool

	mu    sync.Mutex            // guards what follows
	times map[wantedMachine]int // how often each was asked for
	wakes int
}

// pass lets time go by. The clock is the bubble's (package testing/synctest): it stands still while anybody works, and jumps
// when all wait, so nobody waits for it and nothing is late.
func pass(d time.Duration) { time.Sleep(d) }

// count returns how often the machine was asked for.
func (a *asked) count(w wantedMachine) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.times[w]
}

// woken returns how often the agent was woken.
func (a *asked) woken() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.wakes
}

func newAsked(t *testing.T) *asked {
	a := &asked{times: map[wantedMachine]int{}, wanted: map[wantedMachine]bool{}}
	a.lookups = newLookups(func(_ context.Context, w wantedMachine) (node.Machine, error) {
		a.mu.Lock()
		a.times[w]++
		a.mu.Unlock()
		return a.says(w)
	}, beforePod, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.wakes++
	})
	go a.run(t.Context())
	return a
}

// look is what a View does, once all is done that it calls for at once.
func (a *asked) look(w wantedMachine) *node.Machine {
	a.wanted = maps.Clone(a.wanted) // the lookups read the one that they were given
	a.wanted[w] = true
	a.answers(a.wanted)
	synctest.Wait()
	return a.answers(a.wanted)[w]
}

// TestPodBeforeItsMachineSaysSo: the node hears of a pod before KubeVirt has listed it in the machine's status. The machine is
// asked for again within moments, and not at the next turn five seconds later, when the guest may be in the pod already.
func TestPodBeforeItsMachineSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, listed := time.Now(), 250*time.Millisecond
		a, target := newAsked(t), wantedMachine{"vmi-1", "prod", "web", "new"}
		a.says = func(w wantedMachine) (node.Machine, error) {
			m := node.Machine{UID: w.uid, Pods: []string{"old"}}
			if time.Since(began) >= listed {
				m.Pods = append(m.Pods, "new")
			}
			return m, nil
		}
		if m := a.look(target); m == nil || len(m.Pods) != 1 {
			t.Fatalf("the first answer is %+v, want one without the new pod", m)
		}
		pass(listed + 2*soon)
		if m := a.look(target); m == nil || len(m.Pods) != 2 || a.woken() != 2 {
			t.Errorf("%s after KubeVirt listed the pod the answer is %+v, and the agent was woken %d times", 2*soon, m, a.woken())
		}
		// From now on it is as any other.
		before := a.count(target)
		pass(fresh + soon)
		if synctest.Wait(); a.count(target) != before+1 {
			t.Errorf("asked %d times in %s, want once", a.count(target)-before, fresh+soon)
		}
	})
}

// TestForgedPodCostsLittle: a pod that no machine will ever list is asked about ever more rarely.
func TestForgedPodCostsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, forged := newAsked(t), wantedMachine{"vmi-1", "prod", "web", "forged"}
		a.says = func(w wantedMachine) (node.Machine, error) {
			return node.Machine{UID: w.uid, Pods: []string{"old"}}, nil
		}
		a.look(forged)
		const minute = time.Minute
		pass(minute)
		synctest.Wait()
		if have, most := a.count(forged), int(minute/fresh)+8; have > most {
			t.Errorf("asked %d times in a minute, want at most %d", have, most)
		}
		if a.woken() != 1 {
			t.Errorf("the agent was woken %d times by one answer", a.woken())
		}
	})
}

// TestQuestionsDoNotWaitForOthers: a new question is asked at once, whatever else was asked a moment ago; and what the API
// server said last counts while it is away.
func TestQuestionsDoNotWaitForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsked(t)
		var away atomic.Bool
		a.says = func(w wantedMachine) (node.Machine, error) {
			if away.Load() {
				return node.Machine{}, errors.New("connection refused")
			}
			return node.Machine{UID: w.uid, Pods: []string{w.pod}}, nil
		}
		first, second, third := wantedMachine{uid: "1", pod: "a"}, wantedMachine{uid: "2", pod: "b"}, wantedMachine{uid: "3", pod: "c"}
		for _, w := range []wantedMachine{first, second} {
			if m := a.look(w); m == nil || m.UID != w.uid {
				t.Errorf("the answer to %+v is %+v", w, m)
			}
			pass(time.Millisecond)
		}
		away.Store(true)
		pass(2 * fresh)
		if m := a.look(first); m == nil || m.UID != first.uid {
			t.Errorf("while the API server is away the answer is %+v, want the last one", m)
		}
		if m := a.look(third); m != nil {
			t.Errorf("nobody has answered, and the answer is %+v", m)
		}
		away.Store(false)
		pass(retryAfter)
		if m := a.look(third); m == nil || m.UID != third.uid {
			t.Errorf("%s after the API server is back the answer is %+v", retryAfter, m)
		}
	})
}
