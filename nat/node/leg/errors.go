package leg

import (
	"errors"

	"floatip.io/floatip/nat"
)

var (
	// ErrTooManyNetworks: the routing tables kept for provider networks are used up.
	ErrTooManyNetworks = errors.New("this node carries more than 90 provider networks of one family")

	// ErrTooManyMarks: the packet marks kept for provider networks are used up.
	ErrTooManyMarks = errors.New("this node carries more than 3 provider networks of one family whose addresses go by the " +
		"CNI's links (delivery Routed or NodeNAT)")

	// ErrNoNIC: no interface of the node is on the provider network.
	ErrNoNIC = errors.New("no interface of this node is on the provider network")

	// ErrNotPlugged: the link to the pod does not exist.
	ErrNotPlugged = errors.New("no leg is plugged into the pod")

	// ErrForeignLink: an interface of the pod has the leg's name but is none of ours.
	ErrForeignLink = errors.New("the pod has an interface named " + nat.LegInterface + " that is not a leg of this node")

	// ErrNoForwarding6: the node's kernel forwards no IPv6 at all.
	ErrNoForwarding6 = errors.New("net.ipv6.conf.all.forwarding is 0 on this node: set it to 1 " +
		"(and accept_ra to 2 on interfaces that learn routes from router advertisements)")

	// ErrNoIPv6: the node's kernel was started with ipv6.disable=1, or built without IPv6.
	ErrNoIPv6 = errors.New("the kernel of this node has no IPv6 (is ipv6.disable=1 on its command line?), IPv6 addresses cannot " +
		"work on it: start it with IPv6, or keep pools with IPv6 ranges off this node by their nodeSelector")
)
