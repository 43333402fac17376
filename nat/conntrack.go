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
	// Source and Destination are of the packet that opened the flow.
	Source, Destination netip.Addr
	// ReplySource and ReplyDestination are of its answers.
	ReplySource, ReplyDestination netip.Addr
	// Answered is false until the first answer was seen.
	Answered bool
}

// Stale returns a test for flows that the kernel would go on translating in a way that the description now no longer
// says, when before are the floating addresses that were in force:
//
//   - flows of an address that went away, in either direction;
//   - flows of an address that stays, to or from another fixed address;
//   - flows that the guest opened before its address came and that nobody answered: they may stay bound to the pod's
//     address for as long as the guest repeats them.
//
// Flows to a port that is no longer listed, or that the firewall no longer admits, are none of its business: the
// firewall judges each of their packets.
func Stale(before []netip.Addr, now floatip.PodNAT) func(Flow) bool {
	return func(f Flow) bool {
		for _, floating := range before {
			stays := func(b floatip.Binding) bool { return b.Floating == floating }
			if f.of(floating) && !slices.ContainsFunc(now.Bindings, stays) {
				return true
			}
		}
		for _, b := range now.Bindings {
			fresh := !slices.Contains(before, b.Floating)
			if f.contradicts(b) || fresh && f.Source == b.Fixed && !f.Answered && f.ReplyDestination != b.Floating {
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

// contradicts reports whether f is a flow of b's floating address with another fixed address.
func (f Flow) contradicts(b floatip.Binding) bool {
	switch {
	case f.Destination == b.Floating:
		return f.ReplySource != b.Fixed
	case f.ReplyDestination == b.Floating:
		return f.Source != b.Fixed
	}
	return false
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
	// A dump walks the node's whole hash table, whoever its entries belong to: 17 ms on a node with 262144 buckets. The
	// count is of this namespace.
	if stats, err := conn.StatsGlobal(); err == nil && stats.Entries == 0 {
		return 0, nil
	}
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
		Source:           e.TupleOrig.IP.SourceAddress,
		Destination:      e.TupleOrig.IP.DestinationAddress,
		ReplySource:      e.TupleReply.IP.SourceAddress,
		ReplyDestination: e.TupleReply.IP.DestinationAddress,
		Answered:         e.Status.SeenReply(),
	}
}
