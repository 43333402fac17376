package nat

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"floatip.io/floatip"
)

// Flow is one conntrack entry as far as NAT is concerned.
type Flow struct {
	Protocol uint8
	// Source, Destination and Port are of the packet that opened the flow; Port is its destination's.
	Source, Destination netip.Addr
	Port                uint16
	// ReplySource and ReplyDestination are of its answers.
	ReplySource, ReplyDestination netip.Addr
	// Answered is false until the first answer was seen.
	Answered bool
}

// Stale returns a test for flows that the kernel would go on translating in a way that the description now no longer
// says, when before are the floating addresses that were in force:
//
//   - flows of an address that went away, in either direction;
//   - flows of an address that stays, to or from another fixed address, to a port that is no longer listed, or which the
//     firewall no longer admits;
//   - flows that the guest opened before its address came and that nobody answered: they may stay bound to the pod's
//     address for as long as the guest repeats them.
func Stale(before []netip.Addr, now floatip.PodNAT) func(Flow) bool {
	return func(f Flow) bool {
		for _, floating := range before {
			if f.of(floating) && !slices.ContainsFunc(now.Bindings, func(b floatip.Binding) bool { return b.Floating == floating }) {
				return true
			}
		}
		for _, b := range now.Bindings {
			fresh := !slices.Contains(before, b.Floating)
			if f.contradicts(b, firewallOf(now)) || fresh && f.Source == b.Fixed && !f.Answered && f.ReplyDestination != b.Floating {
				return true
			}
		}
		return false
	}
}

// of reports whether f was translated to or from floating.
func (f Flow) of(floating netip.Addr) bool {
	return f.Destination == floating || f.ReplyDestination == floating
}

// contradicts reports whether f is a flow of b's floating address that would not be made now. What the guest calls at
// its own floating address does not pass the leg, so the firewall has no say in it.
func (f Flow) contradicts(b floatip.Binding, firewall floatip.Firewall) bool {
	switch {
	case f.Destination == b.Floating:
		return f.ReplySource != b.Fixed || !f.listed(b.Ports) ||
			f.Source != b.Fixed && !firewall.Ingress.Admits(f.Source, f.protocol(), f.Port)
	case f.ReplyDestination == b.Floating:
		return f.Source != b.Fixed || !firewall.Egress.Admits(f.Destination, f.protocol(), f.Port)
	}
	return false
}

// protocol is the firewall's name for the flow's.
func (f Flow) protocol() floatip.Protocol {
	if f.Protocol == unix.IPPROTO_ICMPV6 {
		return floatip.ProtocolICMP
	}
	return floatip.Protocol(f.Protocol)
}

func (f Flow) listed(ports []floatip.Port) bool {
	if len(ports) == 0 || f.Protocol == unix.IPPROTO_ICMP || f.Protocol == unix.IPPROTO_ICMPV6 {
		return true
	}
	return slices.ContainsFunc(ports, func(p floatip.Port) bool {
		return protocolNumber(p.Protocol) == f.Protocol && p.Number == f.Port
	})
}

// ForgetFlows deletes the conntrack entries for which stale holds, in the namespace of c, and returns how many. Their
// next packet is judged by the rules of now. It fails with ErrNotPermitted, ErrNotSupported or an error of the system;
// entries that could be deleted are then gone all the same.
func ForgetFlows(c Config, stale func(Flow) bool) (n int, err error) {
	conn, err := conntrack.Dial(&netlink.Config{NetNS: c.NetNS})
	if err != nil {
		return 0, fmt.Errorf("open conntrack: %w", explain(err))
	}
	defer conn.Close()
	entries, err := conn.Dump(nil)
	if err != nil {
		return 0, fmt.Errorf("list conntrack entries: %w", explain(err))
	}
	var errs error
	for _, e := range entries {
		if !stale(newFlow(e)) {
			continue
		}
		switch err := conn.Delete(e); {
		case err == nil:
			n++
		case !errors.Is(err, unix.ENOENT): // it may have timed out in between
			errs = errors.Join(errs, fmt.Errorf("delete conntrack entry %s: %w", e.TupleOrig, explain(err)))
		}
	}
	return n, errs
}

func newFlow(e conntrack.Flow) Flow {
	return Flow{
		Protocol:         e.TupleOrig.Proto.Protocol,
		Source:           e.TupleOrig.IP.SourceAddress,
		Destination:      e.TupleOrig.IP.DestinationAddress,
		Port:             e.TupleOrig.Proto.DestinationPort,
		ReplySource:      e.TupleReply.IP.SourceAddress,
		ReplyDestination: e.TupleReply.IP.DestinationAddress,
		Answered:         e.Status.SeenReply(),
	}
}
