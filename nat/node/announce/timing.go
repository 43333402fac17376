package announce

import (
	"net"
	"net/netip"
	"time"
)

// Timing says how an address is tested before its first use, and defended afterwards. The zero Timing is none; use
// DefaultTiming.
type Timing struct {
	// Probes are sent one Every after the other. Wait after the last the address counts as free.
	Probes      int
	Every, Wait time.Duration
	// Trial begins with the first announcement of an address that was tested. A claim that is heard in it counts as one
	// that the probes should have found: nobody uses the address yet.
	Trial time.Duration
	// Defend is the least time between two defences.
	Defend time.Duration
	// Quiet without another claim ends a conflict about an address that is answered for.
	Quiet time.Duration
	// An address that somebody else has is tested anew after Retry, then after twice that, at most after RetryMost.
	Retry, RetryMost time.Duration
}

// DefaultTiming tests an address within a second. RFC 5227 section 1.1 has three probes one to two seconds apart, after
// up to a second and before two more: 4 to 7 s. Its reasons are hosts that power up together and choose the same
// address, which the ledger rules out here, and slow or lossy links. The three probes stay, their distance is 0.3 s: a
// host on an Ethernet answers in well under a millisecond, and one that sleeps between the beacons of a wireless LAN in
// 0.1 to 0.3 s. What is lost by that the trial finds: it lasts as long as RFC 5227 lets a host listen at most, and the
// announcement in its beginning makes a holder defend itself (section 2.4). See docs/decisions/conflicts.md.
//
// Defend is DEFEND_INTERVAL, RetryMost is RATE_LIMIT_INTERVAL (RFC 5227 section 1.1).
var DefaultTiming = Timing{
	Probes: 3, Every: 300 * time.Millisecond, Wait: 400 * time.Millisecond, Trial: 7 * time.Second,
	Defend: 10 * time.Second, Quiet: time.Minute, Retry: 10 * time.Second, RetryMost: time.Minute,
}

// State is where an address stands on the LAN.
type State string

const (
	// Probing: the LAN is asked whether anybody has it.
	Probing State = "Probing"
	// Free: nobody answered. It is watched and not answered for yet.
	Free State = "Free"
	// Taken: somebody else has it. It is not answered for, and tested again from time to time.
	Taken State = "Taken"
	// Held: it is answered for.
	Held State = "Held"
	// Contested: it is answered for, somebody else claims it too, and it is defended.
	Contested State = "Contested"
)

// Standing is what is known of an address on one NIC.
type Standing struct {
	State State
	// Rival is who else has or claims it, if State is Taken or Contested.
	Rival net.HardwareAddr
	// Announced is when it was last announced, the zero Time if never since the NIC was opened, or if the NIC has no
	// carrier.
	Announced time.Time
}

// Move is another node's announcement of an address that is ours.
type Move struct {
	Address netip.Addr
	// MAC is the other node's, as its agent published it, and NIC the one here that heard it.
	MAC net.HardwareAddr
	NIC string
	// Node is the other node's name.
	Node string
}
