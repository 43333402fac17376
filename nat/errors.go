package nat

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Errors of Apply, Read and ForgetFlows. They wrap the kernel's own error.
var (
	// ErrNotPermitted: the process lacks CAP_NET_ADMIN in the user namespace of the network namespace.
	ErrNotPermitted = errors.New("not permitted to change nftables: the container needs the capability NET_ADMIN")

	// ErrNotSupported: the kernel lacks a part of nftables that the rules need.
	ErrNotSupported = errors.New("the node's kernel lacks nftables nat: load the modules nf_tables, nft_chain_nat, " +
		"nft_nat and nft_ct")
)

// explainRead is explain for a request that lists something. A kernel without nf_tables has nobody to give it to
// (nfnetlink_rcv_msg in net/netfilter/nfnetlink.c).
func explainRead(err error) error {
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return explain(err)
}

// explainWrite is explain for a transaction. The kernel answers for each message of it, and what follows the first error
// follows from it. A type of chain or an expression that it does not have is ENOENT (nf_tables_chain_type_lookup and
// nft_expr_type_get in net/netfilter/nf_tables_api.c), as is an object that somebody has just deleted; Apply has started
// over because of the latter often enough.
func explainWrite(err error) error {
	var first unix.Errno
	if !errors.As(err, &first) {
		return explain(err)
	}
	if first == unix.ENOENT {
		return fmt.Errorf("%w: %w", ErrNotSupported, first)
	}
	return explain(first)
}

// explain adds what a person can do about err.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: %w", ErrNotPermitted, err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return err
}
