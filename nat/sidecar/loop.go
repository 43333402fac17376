package sidecar

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"time"

	"floatip.io/floatip"
	"floatip.io/floatip/nat"
	"floatip.io/floatip/nat/handover"
)

// loop brings the kernel to what the file says. Beside the kernel's own state it remembers the last good description
// and how often it had to act.
type loop struct {
	config Config
	log    *slog.Logger
	kernel *nat.Kernel
	state  *board

	description *floatip.PodNAT // the last good one, nil before the first
	complaint   string          // why a newer description is not in force
	refused     string          // the last error of the kernel
	failures    int             // of the kernel, in a row
	applied     bool            // the kernel once held description
	contest     contest
	owed        func(nat.Flow) bool // flows that are still to be forgotten, nil if none
	clinging    string              // why they are not yet

	forgetFlows func(nat.Config, func(nat.Flow) bool) (int, error) // nat.ForgetFlows, but in tests
}

func newLoop(c Config, state *board) *loop {
	return &loop{config: c, log: c.Log, state: state, forgetFlows: nat.ForgetFlows}
}

// look does whatever there is to do now, and returns after how long it wants to look again at the latest.
func (l *loop) look(now time.Time) time.Duration {
	changed := l.follow()
	if l.description == nil {
		l.report(handover.PhaseWaiting, l.complaint)
		return l.config.Poll
	}
	wait, err := l.enforce(now, changed)
	if err != nil {
		return l.fail(err)
	}
	l.failures, l.refused = 0, ""
	if wait > 0 {
		return wait
	}
	if l.contest.contested(now) {
		l.report(handover.PhaseContested, "somebody keeps changing floatip's nft rules in this pod")
	} else {
		l.report(handover.PhaseInstalled, cmp.Or(l.complaint, l.clinging))
	}
	return l.config.Poll
}

// follow reads the file and reports whether a new description came into force.
func (l *loop) follow() bool {
	p, err := readDescription(l.config.NATFile)
	switch {
	case errors.Is(err, errNoDescription) && l.description == nil:
		l.complain("")
		return false
	case err != nil:
		l.complain(fmt.Sprintf("the rules in force are kept: %v", err))
		return false
	}
	l.complain("")
	if l.description != nil && reflect.DeepEqual(*l.description, p) {
		return false
	}
	l.description, l.applied, l.contest = &p, false, contest{}
	l.log.Info("new description", "vm", p.Owner.String(), "bindings", bindingTexts(p))
	return true
}

func (l *loop) complain(text string) {
	if text != l.complaint && text != "" {
		l.log.Error("description refused", "reason", text)
	}
	l.complaint = text
}

// enforce compares and writes. A repair, other than a new description, may have to wait.
func (l *loop) enforce(now time.Time, changed bool) (wait time.Duration, err error) {
	if l.kernel == nil {
		if l.kernel, err = nat.Open(l.config.Kernel); err != nil {
			return 0, err
		}
	}
	want := nat.Desired(*l.description)
	have, err := l.kernel.Read()
	if err != nil {
		return 0, err
	}
	drift := want.Diff(have)
	repair := l.applied && drift != ""
	if repair {
		if wait := l.contest.wait(now); wait > 0 {
			l.report(handover.PhaseContested, "somebody keeps changing floatip's nft rules in this pod: "+drift)
			return wait, nil
		}
	}
	if drift != "" {
		if err := l.retire(have, have.Gone(want)); err != nil {
			return 0, err
		}
		if err := l.kernel.Replace(have, want); err != nil {
			return 0, err
		}
	}
	if !l.applied {
		l.owed = nat.Stale(have.Floating(), *l.description)
	}
	l.applied = true
	switch {
	case repair:
		l.contest.repaired(now)
		l.state.repaired()
		l.log.Warn("repaired rules", "reason", drift)
	case drift != "":
		l.log.Info("installed rules", "vm", l.description.Owner.String(), "bindings", bindingTexts(*l.description))
	case changed:
		l.log.Info("rules are in place already", "vm", l.description.Owner.String())
	}
	l.settleDebt()
	return 0, nil
}

// retire ends the flows of addresses that are about to go, so that none of them leaves the pod by another way. If that is
// refused, the addresses stay and nothing passes under them.
func (l *loop) retire(have nat.Tables, going []netip.Addr) error {
	if len(going) == 0 {
		return nil
	}
	if err := l.kernel.Shut(have, going); err != nil {
		return err
	}
	return l.forget(nat.Stale(going, *l.description))
}

// settleDebt deletes the flows that the description in force makes stale. If that is refused, the rules are right all the
// same, and it is tried again at the next look.
func (l *loop) settleDebt() {
	if l.owed == nil {
		return
	}
	err := l.forget(l.owed)
	if err == nil {
		l.owed, l.clinging = nil, ""
		return
	}
	text := fmt.Sprintf("connections of an earlier description may live on: %v", err)
	if text != l.clinging {
		l.log.Error(text)
	}
	l.clinging = text
}

func (l *loop) forget(stale func(nat.Flow) bool) error {
	n, err := l.forgetFlows(l.config.Kernel, stale)
	if n > 0 {
		l.log.Info("forgot flows", "count", n)
	}
	return err
}

// fail reports a refusal once, however often it is repeated, and starts over with fresh sockets.
func (l *loop) fail(err error) time.Duration {
	if text := err.Error(); text != l.refused {
		l.log.Error("the kernel refused the rules", "reason", err)
		l.refused = text
	}
	l.report(handover.PhaseFailed, err.Error())
	if l.kernel != nil {
		l.kernel.Close()
		l.kernel = nil
	}
	l.failures++
	return doubled(firstDelay, l.failures-1, longestBackOff)
}

// report puts the state up for the agent. A binding is listed only while its rules stand.
func (l *loop) report(phase handover.Phase, problem string) {
	s := handover.State{Phase: phase, Problem: problem}
	if l.description != nil {
		s.Owner = l.description.Owner
		if phase == handover.PhaseInstalled || phase == handover.PhaseContested {
			s.Bindings = bindings(*l.description)
		}
	}
	l.state.put(s)
}

func bindings(p floatip.PodNAT) (out []handover.Binding) {
	for _, b := range p.Bindings {
		out = append(out, handover.Binding{Floating: b.Floating, Fixed: b.Fixed})
	}
	return out
}

func bindingTexts(p floatip.PodNAT) (out []string) {
	for _, b := range p.Bindings {
		out = append(out, fmt.Sprintf("%s=%s", b.Floating, b.Fixed))
	}
	return out
}
