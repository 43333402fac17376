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
	ErrNotSupported = errors.New("the node's kernel lacks nftables nat: load the modules nf_tables and nft_chain_nat")
)

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
