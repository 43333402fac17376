package flows

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"floatip.io/floatip"
)

// ErrForeign: the entry is not one of a connection through one of the addresses.
var ErrForeign = errors.New("the tracked connection is none of the address that moves")

// Entry is one tracked connection.
type Entry struct {
	// Protocol is the number of IANA's registry: 6 for TCP.
	Protocol uint8 `json:"protocol"`
	// Original is the tuple of the packets that opened the connection, Reply that of their answers. They differ from each
	// other's inverse by what NAT changed.
	Original Tuple `json:"original"`
	Reply    Tuple `json:"reply"`
	// Timeout is what is left of the entry's life, in seconds.
	Timeout uint32 `json:"timeout"`
	// Status is of the bits IPS_* of include/uapi/linux/netfilter/nf_conntrack_common.h.
	Status uint32 `json:"status"`
	Mark   uint32 `json:"mark,omitempty"`
	Labels []byte `json:"labels,omitempty"`
	TCP    *TCP   `json:"tcp,omitempty"`
	SCTP   *SCTP  `json:"sctp,omitempty"`
}

// Tuple is one direction of a connection.
type Tuple struct {
	Source          netip.Addr `json:"source"`
	Destination     netip.Addr `json:"destination"`
	SourcePort      uint16     `json:"sourcePort,omitempty"`
	DestinationPort uint16     `json:"destinationPort,omitempty"`
	// ID, Type and Code are those of ICMP and ICMPv6.
	ID   uint16 `json:"id,omitempty"`
	Type uint8  `json:"type,omitempty"`
	Code uint8  `json:"code,omitempty"`
}

// TCP is the state of a TCP connection, in the numbers of the kernel (enum tcp_conntrack, IP_CT_TCP_FLAG_*). How far the
// windows are the kernel tells nobody.
type TCP struct {
	State         uint8 `json:"state"`
	ScaleOriginal uint8 `json:"scaleOriginal,omitempty"`
	ScaleReply    uint8 `json:"scaleReply,omitempty"`
	FlagsOriginal uint8 `json:"flagsOriginal,omitempty"`
	FlagsReply    uint8 `json:"flagsReply,omitempty"`
}

// SCTP is the state of an SCTP association.
type SCTP struct {
	State        uint8  `json:"state"`
	TagsOriginal uint32 `json:"tagsOriginal,omitempty"`
	TagsReply    uint32 `json:"tagsReply,omitempty"`
}

// Key names a connection.
type Key struct {
	Protocol uint8 `json:"protocol"`
	Tuple    Tuple `json:"original"`
}

// Key returns the name of e.
func (e Entry) Key() Key { return Key{e.Protocol, e.Original} }

// Inward names what reaches the guest of the connection: the tuple of its packets behind all translation. Only protocols with
// ports have one, and no connection of the guest to itself.
func (e Entry) Inward(fixed netip.Addr) (Key, bool) {
	inward, outward := e.Reply.Source == fixed, e.Original.Source == fixed
	answered := e.Original
	if inward {
		answered = e.Reply
	}
	return Key{e.Protocol, Tuple{
		Source: answered.Destination, SourcePort: answered.DestinationPort,
		Destination: answered.Source, DestinationPort: answered.SourcePort,
	}}, inward != outward && hasPorts(e.Protocol)
}

// Ends are those of the connection as the provider network sees them: whoever is outside, and the floating address of b. Only
// protocols with ports have them, and no connection of the guest to itself.
func (e Entry) Ends(b floatip.Binding) (outside, floating netip.AddrPort, ok bool) {
	inward, outward := e.Original.Destination == b.Floating, e.Original.Source == b.Fixed && e.Reply.Destination == b.Floating
	to := e.Reply // what comes to the floating address
	if inward {
		to = e.Original
	}
	return netip.AddrPortFrom(to.Source, to.SourcePort), netip.AddrPortFrom(to.Destination, to.DestinationPort),
		inward != outward && hasPorts(e.Protocol)
}

// of reports whether the connection goes through the floating address of b.
func (e Entry) of(b floatip.Binding) bool {
	return e.Original.Destination == b.Floating || e.Reply.Destination == b.Floating
}

const (
	// seenReply, assured and confirmed are bits of Status (IPS_*) that a copy may have. Those of NAT follow from the
	// tuples.
	seenReply, assured, confirmed = 1 << 1, 1 << 2, 1 << 3

	// maxTimeout is the kernel's own for an established TCP connection, in seconds (tcp_timeouts, 5 days).
	maxTimeout = 432000

	// maxLabels is the length of a connection's labels (NF_CT_LABELS_MAX_SIZE), in bytes.
	maxLabels = 16

	// tcpStates is the number of states that an entry may be in (TCP_CONNTRACK_MAX): enum tcp_conntrack.
	tcpStates = 14
)

// Check reports why e must not be written into the pod that the addresses of bindings move to: ErrForeign, with what it
// is instead, for anything that is not a connection between a fixed address and the world by its floating address. Nothing
// that passes can make the kernel translate or admit a packet of anybody else.
func (e Entry) Check(bindings []floatip.Binding) error {
	for _, b := range bindings {
		if !e.of(b) {
			continue
		}
		if !e.oneFamily(b.Floating) || e.translation(b) != (translated{e.Original, e.Reply}) {
			return fmt.Errorf("%w: %s is answered by %s", ErrForeign, e.Original, e.Reply)
		}
		switch {
		case e.Timeout == 0 || e.Timeout > maxTimeout:
			return fmt.Errorf("%w: it would live for %d s", ErrForeign, e.Timeout)
		case len(e.Labels) > maxLabels:
			return fmt.Errorf("%w: it has %d bytes of labels", ErrForeign, len(e.Labels))
		case (e.TCP != nil) != (e.Protocol == unix.IPPROTO_TCP), e.TCP != nil && e.TCP.State >= tcpStates:
			return fmt.Errorf("%w: the state of another protocol than %d", ErrForeign, e.Protocol)
		case e.SCTP != nil && e.Protocol != unix.IPPROTO_SCTP:
			return fmt.Errorf("%w: the state of another protocol than %d", ErrForeign, e.Protocol)
		}
		return nil
	}
	return fmt.Errorf("%w: %s, answered by %s", ErrForeign, e.Original, e.Reply)
}

// oneFamily reports whether all addresses are of a's family.
func (e Entry) oneFamily(a netip.Addr) bool {
	for _, other := range []netip.Addr{e.Original.Source, e.Original.Destination, e.Reply.Source, e.Reply.Destination} {
		if !other.IsValid() || other.Zone() != "" || other.Is4() != a.Is4() {
			return false
		}
	}
	return true
}

// translated is a connection as NAT leaves it.
type translated struct{ original, reply Tuple }

// translation is what the rules of a pod make of a connection with these ends: the destination of what comes to the
// floating address becomes the fixed one, the source of what the guest sends out becomes the floating one, and of a
// connection of the guest to its own floating address, both. Only a source port may have become another one, where two
// connections would be the same otherwise.
func (e Entry) translation(b floatip.Binding) translated {
	original, reply := e.Original, e.Reply
	reply.Source, reply.Destination = original.Destination, original.Source
	inward, outward := original.Destination == b.Floating, original.Source == b.Fixed
	if inward {
		reply.Source = b.Fixed
	}
	if outward {
		reply.Destination = b.Floating
	}
	if !inward && !outward {
		return translated{}
	}
	if hasPorts(e.Protocol) {
		reply.SourcePort = original.DestinationPort
		if !outward {
			reply.DestinationPort = original.SourcePort
		}
	}
	return translated{original, reply}
}

func hasPorts(protocol uint8) bool {
	switch protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_UDPLITE, unix.IPPROTO_DCCP:
		return true
	}
	return false
}

func isICMP(protocol uint8) bool {
	return protocol == unix.IPPROTO_ICMP || protocol == unix.IPPROTO_ICMPV6
}

// String is for people.
func (t Tuple) String() string {
	return fmt.Sprintf("%s > %s", netip.AddrPortFrom(t.Source, t.SourcePort), netip.AddrPortFrom(t.Destination, t.DestinationPort))
}

// same reports whether the kernel would do the same with both. Timeouts run down all the time: older stands for the copy
// that has less left by now than it would have by itself.
func (e Entry) same(o Entry) bool {
	return e.Protocol == o.Protocol && e.Original == o.Original && e.Reply == o.Reply &&
		e.Status == o.Status && e.Mark == o.Mark && string(e.Labels) == string(o.Labels) &&
		samePointer(e.TCP, o.TCP) && samePointer(e.SCTP, o.SCTP)
}

func samePointer[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
