package handover

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"floatip.io/floatip"
)

// Phase says how far the sidecar is.
type Phase string

const (
	// PhaseWaiting: the description of the addresses is absent or empty; there is nothing to install.
	PhaseWaiting Phase = "Waiting"
	// PhaseInstalled: the kernel holds exactly the rules of State.Bindings.
	PhaseInstalled Phase = "Installed"
	// PhaseFailed: the kernel refused the rules; State.Problem says why. The sidecar tries again with growing pauses.
	PhaseFailed Phase = "Failed"
	// PhaseContested: somebody keeps changing the rules; the sidecar repairs them, ever more slowly.
	PhaseContested Phase = "Contested"
)

// Pod names the pod of the sidecar, as far as the sidecar was told. It is for people: the client knows the pod by the
// path of the socket.
type Pod struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"`
}

// Binding is one installed pair of addresses.
type Binding struct {
	Floating netip.Addr `json:"floating"`
	Fixed    netip.Addr `json:"fixed"`
}

// Figure counts packets and bytes.
type Figure struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Counter is the traffic of one floating address since the pod started. Both directions are seen from the guest.
type Counter struct {
	Floating netip.Addr `json:"floating"`
	// In is what came through the leg to the guest, Out what left the pod by the leg.
	In  Figure `json:"in"`
	Out Figure `json:"out"`
	// Refused is what the firewall dropped on its way in.
	Refused Figure `json:"refused"`
	// Guarded is what would have left with a source that is not the floating address, and was dropped.
	Guarded Figure `json:"guarded"`
}

// State is what the sidecar has done.
type State struct {
	Phase Phase `json:"phase"`
	// Owner is the VirtualMachine of the description in force.
	Owner floatip.Owner `json:"owner"`
	// Bindings are the addresses whose rules are in the kernel, IPv4 first.
	Bindings []Binding `json:"bindings,omitempty"`
	// Problem is a sentence for a person: why Phase is Failed or Contested, or what is wrong with a newer description
	// that was not put into force. Empty when all is well.
	Problem string `json:"problem,omitempty"`
	// Since is when Phase, Bindings or Problem last changed.
	Since time.Time `json:"since"`
	// Repairs counts how often rules that somebody had changed were written again.
	Repairs uint64 `json:"repairs"`
	// Counters has one entry per binding.
	Counters []Counter `json:"counters,omitempty"`
}

// hello is the server's first message. Later ones are updates.
type hello struct {
	Version int   `json:"version"`
	Pod     Pod   `json:"pod"`
	State   State `json:"state"`
}

type update struct {
	State State `json:"state"`
}

// ask is the only message of a client.
type ask struct {
	Ask string `json:"ask"`
}

// askState wants the state now, with counters of now.
const askState = "state"

// check refuses a state that no honest sidecar sends, and cleans its texts.
func (s *State) check() error {
	switch s.Phase {
	case PhaseWaiting, PhaseInstalled, PhaseFailed, PhaseContested:
	default:
		return fmt.Errorf("%w: unknown phase %.20q", ErrMalformed, string(s.Phase))
	}
	if len(s.Bindings) > maxBindings || len(s.Counters) > maxBindings {
		return fmt.Errorf("%w: %d bindings and %d counters, want at most %d", ErrMalformed, len(s.Bindings),
			len(s.Counters), maxBindings)
	}
	for _, b := range s.Bindings {
		if !b.Floating.IsValid() || !b.Fixed.IsValid() || b.Floating.Zone() != "" || b.Fixed.Zone() != "" {
			return fmt.Errorf("%w: a binding without address", ErrMalformed)
		}
	}
	for _, c := range s.Counters {
		if !c.Floating.IsValid() || c.Floating.Zone() != "" {
			return fmt.Errorf("%w: a counter without address", ErrMalformed)
		}
	}
	s.Problem = clean(s.Problem)
	s.Owner.Namespace, s.Owner.Name, s.Owner.UID = clean(s.Owner.Namespace), clean(s.Owner.Name), clean(s.Owner.UID)
	return nil
}

func (p *Pod) clean() {
	p.Namespace, p.Name, p.UID = clean(p.Namespace), clean(p.Name), clean(p.UID)
}

// clean makes a foreign text fit for a log line: bounded, valid UTF-8, no control characters.
func clean(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, strings.ToValidUTF8(s, "\uFFFD"))
}
