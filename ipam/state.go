package ipam

import (
	"net/netip"
	"strconv"
	"time"

	"floatip.io/floatip"
)

// State says how far an allocation has come.
type State uint8

const (
	// Reserved: promised to an object that the API server has not accepted yet. Lost by a restart, without harm, if it was
	// not written ahead (Request.WriteAhead).
	Reserved State = iota + 1
	// Pending: in the file, for a virtual machine that was not yet seen stored.
	Pending
	// Bound: held by a virtual machine that was seen.
	Bound
	// Released: given back. It rests for the pool's quarantine and is free afterwards; it is remembered so that the
	// same virtual machine may have it again and all others get it last.
	Released
)

// String returns the state's name.
func (s State) String() string {
	switch s {
	case Reserved:
		return "Reserved"
	case Pending:
		return "Pending"
	case Bound:
		return "Bound"
	case Released:
		return "Released"
	}
	return "State(" + strconv.Itoa(int(s)) + ")"
}

// Allocation is one line of the ledger: an address and who has it.
type Allocation struct {
	Address netip.Addr
	// Pool that the address came from.
	Pool string
	// Owner holds the address, or held it last if State is Released. A Reserved one has no UID yet, and no name if the
	// API server is to generate it; nor has a Pending one that is a promise which was kept (see Ledger.StalePending).
	Owner floatip.Owner
	// Claim is zero for an allocation that was adopted from an object without one.
	Claim floatip.Claim
	State State
	// Since is when State was entered.
	Since time.Time
	// Disputed: other virtual machines claim the address too. It is not freed before Resolve, or before all but one
	// of them are gone. See Ledger.Disputes.
	Disputed bool
	// Missing: the last complete view of the cluster did not show the owner. The address stays held.
	Missing bool
	// Superseded: the cluster shows the owner with another address of that family. This one stays held; see GiveUp.
	Superseded bool
}

// Kept reports whether a is a promise that outlived the process, or a transaction that failed (see Request.WriteAhead).
func (a Allocation) Kept() bool { return a.State == Pending && a.Owner.UID == "" }

// Awaits reports whether a is such a promise and was made for owner, as far as owner's name was known. Only the claim, which
// nobody but that virtual machine was given, says that it was.
func (a Allocation) Awaits(owner floatip.Owner) bool {
	return a.Kept() && a.Owner.Namespace == owner.Namespace && (a.Owner.Name == "" || a.Owner.Name == owner.Name)
}

// held reports whether a virtual machine holds the address durably.
func (a Allocation) held() bool { return a.State == Pending || a.State == Bound }

// Cause says on whose behalf the ledger changes. All of it goes into the history.
type Cause struct {
	// User is the name that the API server authenticated.
	User string
	// RequestUID is the UID of the admission request; empty outside admission.
	RequestUID string
	// Reason is one short sentence of why, where the verb does not say it: "VM is gone".
	Reason string
}

// Request asks for addresses. The zero value of each field means no wish.
type Request struct {
	// Claim ties the object to its reservation. Asking again with it gets the same answer.
	Claim floatip.Claim
	// Namespace of the virtual machine.
	Namespace string
	// Name of the virtual machine; empty if the API server generates it.
	Name string
	// NamespaceLabels are matched by the pools' selectors.
	NamespaceLabels map[string]string
	// Addresses are wanted exactly, at most one of each family.
	Addresses []netip.Addr
	// Pools to take from, at most two. Empty stands for all pools with AutoAssign that admit the namespace.
	Pools []string
	// Families that are wanted; all of them or none. Empty stands for those of Addresses, or else for every family
	// that the pools in question have.
	Families []Family
	// DryRun decides in the same way and changes nothing.
	DryRun bool
	// WriteAhead has the promise written while the caller goes on, so that Commit need not wait for the disk, or not for
	// long. Such a promise may outlive a restart: see StalePending and Expire. At most 256 are written ahead at a time.
	WriteAhead bool
	// Cause says on whose behalf, for a promise that is written ahead.
	Cause Cause
}

// Offer is the answer to a Request.
type Offer struct {
	Claim floatip.Claim
	// Addresses has one entry per family, IPv4 first.
	Addresses []netip.Addr
	// Pools has the pool of each of Addresses.
	Pools []string
	// Expires is when the reservation ends. It is zero if the claim is committed already, or for a dry run.
	Expires time.Time
	// Committed: the claim is in the file already, as after a retry by the API server.
	Committed bool
}
