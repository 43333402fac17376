package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"floatip.io/floatip"
)

// Errors of a request for an address. They are the causes that errors.Is finds; the text around them names the
// address, the pool and the holder.
var (
	// ErrTaken: somebody else holds the address, or it rests after its release. See TakenError.
	ErrTaken = errors.New("address is taken")
	// ErrFull: no pool that may be used has a free address. See FullError.
	ErrFull = errors.New("no free address")
	// ErrUnknownPool: the request names a pool that does not exist.
	ErrUnknownPool = errors.New("no such pool")
	// ErrNotInPool: the requested address lies in no pool, or in none of the named ones.
	ErrNotInPool = errors.New("address is not in the pool")
	// ErrNeverGiven: the address lies in a pool but is excluded, a gateway, or the first or last of its network.
	ErrNeverGiven = errors.New("address is never handed out")
	// ErrNotAllowed: the pool's namespace selector does not match the namespace.
	ErrNotAllowed = errors.New("namespace may not use the pool")
	// ErrLimit: the namespace holds as many addresses of the pool as it may. See LimitError.
	ErrLimit = errors.New("namespace limit reached")
	// ErrDraining: the pool hands out nothing any more.
	ErrDraining = errors.New("pool is being drained")
	// ErrNoPool: the request names no pool and no pool hands out addresses to its namespace by itself.
	ErrNoPool = errors.New("no pool serves this namespace")
	// ErrInvalid: the request contradicts itself, for instance two IPv4 addresses.
	ErrInvalid = errors.New("invalid request")
)

// Errors of the later verbs.
var (
	// ErrUnknownClaim: no reservation and no allocation has the claim, and no addresses were given to take instead.
	ErrUnknownClaim = errors.New("unknown or expired claim")
	// ErrClaimInUse: the claim belongs to another virtual machine that exists, as after copying its annotations. See
	// ClaimError.
	ErrClaimInUse = errors.New("claim belongs to another virtual machine")
	// ErrOwnerHolds: the virtual machine already holds another address of that family.
	ErrOwnerHolds = errors.New("virtual machine already holds an address of this family")
	// ErrNotHeld: nobody holds the address, or the virtual machine holds none.
	ErrNotHeld = errors.New("not held")
	// ErrDisputed: two virtual machines claim the address; Resolve decides.
	ErrDisputed = errors.New("address is disputed")
	// ErrInUse: a change of the pools would leave held addresses outside. See InUseError.
	ErrInUse = errors.New("pool is in use")
)

// Errors of the ledger's file. Each comes wrapped in a sentence that says what to do.
var (
	// ErrLocked: another process has the file open.
	ErrLocked = errors.New("ledger is open in another process")
	// ErrReadOnly: the file or its file system cannot be written.
	ErrReadOnly = errors.New("ledger is read-only")
	// ErrDiskFull: the file system has no room left. Nothing was changed.
	ErrDiskFull = errors.New("no space left for the ledger")
	// ErrUncertain: the disk failed at the end of a transaction, which may be in the file or not. Nothing is written any
	// more before the file was read anew, by another Open; see Ledger.Broken.
	ErrUncertain = errors.New("the disk failed, and the last change may be in the ledger or not")
	// ErrDamaged: the file is truncated or its contents contradict each other. It is left as it is.
	ErrDamaged = errors.New("ledger is damaged")
	// ErrFormat: another version of floatip wrote the file.
	ErrFormat = errors.New("ledger has an unknown format")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("ledger is closed")
)

// TakenError says who has an address that was asked for. It matches ErrTaken.
type TakenError struct {
	// Holder has the address. Its State tells whether it is promised (Reserved), held (Pending, Bound) or rests
	// (Released).
	Holder Allocation
	// Until is when a Reserved or Released address may be asked for again; the zero time for one that is held.
	Until time.Time
}

// Error names the holder and says when the address may be free.
func (e *TakenError) Error() string {
	switch who := e.Holder.Owner; {
	case e.Holder.State == Released:
		return fmt.Sprintf("%s rests until %s after VM %s gave it back",
			e.Holder.Address, e.Until.UTC().Format(time.RFC3339), who)
	case who.UID == "": // Reserved, or kept
		if who.Name == "" {
			return fmt.Sprintf("%s is promised to a VM that is being created in namespace %s", e.Holder.Address, who.Namespace)
		}
		return fmt.Sprintf("%s is promised to VM %s, which is being created", e.Holder.Address, who)
	default:
		return fmt.Sprintf("%s is held by VM %s", e.Holder.Address, who)
	}
}

// Is matches ErrTaken.
func (e *TakenError) Is(target error) bool { return target == ErrTaken }

// ClaimError says whose claim it is. It matches ErrClaimInUse.
type ClaimError struct {
	// Holder has an empty Name as long as its object has none.
	Holder floatip.Owner
}

// Error names the holder.
func (e *ClaimError) Error() string {
	if e.Holder.Name == "" {
		return fmt.Sprintf("%v in namespace %s", ErrClaimInUse, e.Holder.Namespace)
	}
	return fmt.Sprintf("%v, %s", ErrClaimInUse, e.Holder)
}

// Is matches ErrClaimInUse.
func (e *ClaimError) Is(target error) bool { return target == ErrClaimInUse }

// FullError says that pools have no free address. It matches ErrFull.
type FullError struct {
	Pools  []string
	Family Family
	// Quarantined of their addresses were released and rest.
	Quarantined int
	// Next is when the first of them may be handed out; the zero time if none rests.
	Next time.Time
}

// Error names the pools and says when the next address becomes free.
func (e *FullError) Error() string {
	noun := "pool"
	if len(e.Pools) != 1 {
		noun = "pools"
	}
	text := fmt.Sprintf("%s %s: no free %s address", noun, strings.Join(e.Pools, ", "), e.Family)
	if e.Quarantined > 0 {
		text += fmt.Sprintf("; %d rest after their release, the first until %s",
			e.Quarantined, e.Next.UTC().Format(time.RFC3339))
	}
	return text
}

// Is matches ErrFull.
func (e *FullError) Is(target error) bool { return target == ErrFull }

// LimitError says that a namespace holds as many addresses of a pool as it may. It matches ErrLimit.
type LimitError struct {
	Pool, Namespace string
	Limit, Held     int
}

// Error names the namespace and the limit.
func (e *LimitError) Error() string {
	return fmt.Sprintf("namespace %s holds %d of the %d addresses that it may hold of pool %s",
		e.Namespace, e.Held, e.Limit, e.Pool)
}

// Is matches ErrLimit.
func (e *LimitError) Is(target error) bool { return target == ErrLimit }

// InUseError lists the holders that stand in the way of a change of a pool. It matches ErrInUse.
type InUseError struct {
	Pool string
	// Holders are the first ten, by address.
	Holders []Allocation
	// Count is how many there are.
	Count int
}

// Error names the holders.
func (e *InUseError) Error() string {
	names := make([]string, 0, len(e.Holders))
	for _, h := range e.Holders {
		names = append(names, fmt.Sprintf("%s (VM %s)", h.Address, h.Owner))
	}
	if more := e.Count - len(e.Holders); more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return fmt.Sprintf("pool %s: %d addresses are held: %s; set drain: true and wait until they are released",
		e.Pool, e.Count, strings.Join(names, ", "))
}

// Is matches ErrInUse.
func (e *InUseError) Is(target error) bool { return target == ErrInUse }

// FieldError is one thing that is wrong with a field of a pool.
type FieldError struct {
	// Field is the name in the pool's spec: "addresses".
	Field string
	// Index of the entry in the field; -1 where the field is no list.
	Index int
	// Value as it was written.
	Value string
	// Err says what is wrong with it.
	Err error
}

// Error returns "addresses[1]: ...".
func (e FieldError) Error() string {
	if e.Index < 0 {
		return fmt.Sprintf("%s: %v", e.Field, e.Err)
	}
	return fmt.Sprintf("%s[%d]: %v", e.Field, e.Index, e.Err)
}

// Unwrap returns Err.
func (e FieldError) Unwrap() error { return e.Err }

// FieldErrors is everything that is wrong with a pool.
type FieldErrors []FieldError

// Error joins the texts.
func (e FieldErrors) Error() string {
	texts := make([]string, len(e))
	for i, one := range e {
		texts[i] = one.Error()
	}
	return strings.Join(texts, "; ")
}

// Unwrap returns every FieldError.
func (e FieldErrors) Unwrap() []error {
	errs := make([]error, len(e))
	for i, one := range e {
		errs[i] = one
	}
	return errs
}

func about(a netip.Addr, err error) error { return fmt.Errorf("%s: %w", a, err) }
