package node

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/handover"
)

// Condition is one thing that must be true of an address, as this node sees it.
type Condition struct {
	True bool
	// Reason is one CamelCase word for programs, Message a sentence for people.
	Reason, Message string
}

// Status is what this node knows about an address that is granted to one of its pods.
type Status struct {
	// Pod is the name of the pod.
	Pod string
	// Here: the guest runs on this node, so that the FloatingIP object shall name it.
	Here bool
	// To is the node that the guest is about to move to, as KubeVirt says. "" where it stays.
	To string
	// Resuming: an earlier agent has made the address work, and this one has not heard the pod's sidecar yet. What was
	// written of the address holds until then.
	Resuming bool
	// Move is how the guest came here, nil where it was started here or nobody remembers.
	Move                                   *Move
	NATReady, LegReady, Announced, GuestUp Condition
	// ConflictFree: no other host has the address. One that is in use and contested is still Ready: it is defended.
	ConflictFree Condition
}

// Ready says whether packets flow, and if not, what comes first in their way.
func (s Status) Ready() Condition {
	if s.ConflictFree.Reason == floatip.ReasonAddressTaken {
		return s.ConflictFree // whatever else is missing, this is what somebody has to look at
	}
	for _, c := range []Condition{s.NATReady, s.LegReady, s.ConflictFree, s.Announced, s.GuestUp} {
		if !c.True && c.Reason != floatip.ReasonAddressContested {
			return c
		}
	}
	return Condition{True: true, Reason: "Ready", Message: "packets flow between the provider network and the guest"}
}

// Report is what a round found out.
type Report struct {
	// Statuses are the granted addresses, and those that are refused to a pod that is theirs otherwise.
	Statuses map[netip.Addr]Status
	// Left are addresses whose FloatingIP object names this node, and which no pod of this node has any more.
	Left []netip.Addr
	// Pools says which pools this node carries.
	Pools map[string]bool
	// Own are the node's own addresses.
	Own []netip.Addr
	// Agent is what the agents of other nodes are to know of this one.
	Agent floatip.NodeAgent
}

// left finds the addresses of which the API server must be told that they are here no more.
func left(v View, self string, statuses map[netip.Addr]Status) []netip.Addr {
	var gone []netip.Addr
	for a, h := range v.Addresses {
		if _, here := statuses[a]; h.Node == self && !here {
			gone = append(gone, a)
		}
	}
	slices.SortFunc(gone, netip.Addr.Compare)
	return gone
}

func natCondition(a netip.Addr, state handover.State, err error) Condition {
	switch {
	case err != nil && translates(state, a):
		// The rules are the kernel's; they outlive a sidecar that restarts.
		return Condition{
			True: true, Reason: "SidecarUnreachable", Message: "the rules stood when the sidecar was last heard: " + err.Error(),
		}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errNotReached):
		return Condition{Reason: "WaitingForSidecar", Message: "the pod's sidecar has not opened its socket yet"}
	case err != nil:
		return Condition{Reason: "SidecarUnreachable", Message: err.Error()}
	case translates(state, a) && state.Phase == handover.PhaseInstalled:
		message := "the rules stand in the pod"
		if state.Problem != "" { // of a newer description, say
			message += "; " + state.Problem
		}
		return Condition{True: true, Reason: "Installed", Message: message}
	case translates(state, a):
		return Condition{True: true, Reason: string(state.Phase), Message: state.Problem}
	case state.Problem != "":
		return Condition{Reason: string(state.Phase), Message: state.Problem}
	}
	return Condition{Reason: "NotInstalled", Message: fmt.Sprintf("the sidecar has no rules for %s yet", a)}
}

func legCondition(err error) Condition {
	if err != nil {
		return Condition{Reason: "LegFailed", Message: err.Error()}
	}
	return Condition{True: true, Reason: "Plugged", Message: "links, routes and rules stand on the node and in the pod"}
}

func announcedCondition(answering, announced bool, nic string) Condition {
	switch {
	case announced:
		return Condition{True: true, Reason: "Announced", Message: "this node answers on " + nic}
	case answering:
		return Condition{Reason: "NoCarrier", Message: nic + " is down, has no carrier, or was opened a moment ago"}
	}
	return Condition{Reason: "NotAnnounced", Message: "the address is not announced before its rules and its leg stand"}
}

func guestCondition(answers bool, nat floatip.PodNAT, a netip.Addr) Condition {
	fixed, _ := fixedOf(nat, a)
	if !answers {
		return Condition{Reason: "GuestSilent", Message: fmt.Sprintf(
			"nobody on %s in the pod has taken the fixed address %s: the guest boots, or does not use DHCP", nat.Interface, fixed)}
	}
	return Condition{True: true, Reason: "GuestSeen", Message: "the guest has taken its fixed address " + fixed.String()}
}

// fixedOf returns the fixed address behind a floating one.
func fixedOf(nat floatip.PodNAT, floating netip.Addr) (netip.Addr, bool) {
	i := slices.IndexFunc(nat.Bindings, func(b floatip.Binding) bool { return b.Floating == floating })
	if i < 0 {
		return netip.Addr{}, false
	}
	return nat.Bindings[i].Fixed, true
}

func sortedAddresses[V any](m map[netip.Addr]V) []netip.Addr {
	return slices.SortedFunc(maps.Keys(m), netip.Addr.Compare)
}
