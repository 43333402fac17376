package nat

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"golang.org/x/sys/unix"
)

// Kernel is a pair of sockets to the nftables of one network namespace. It is for one goroutine at a time.
type Kernel struct {
	nft   *nftables.Conn
	rules *netlink.Conn // for what the library cannot decode, see rawRules
}

// Config says how to reach the kernel. The zero Config means the network namespace of the calling process.
type Config struct {
	// NetNS is a descriptor of the network namespace. 0 stands for the process's own; any other needs CAP_SYS_ADMIN,
	// and only while Open runs.
	NetNS int
	// Dial replaces the kernel in tests. Defaults to the kernel.
	Dial nltest.Func
}

// Open connects to the kernel. It fails with ErrNotPermitted, ErrNotSupported or an error of the system.
func Open(c Config) (*Kernel, error) {
	options := []nftables.ConnOption{nftables.WithNetNSFd(c.NetNS), nftables.AsLasting()}
	if c.Dial != nil {
		options = append(options, nftables.WithTestDial(c.Dial))
	}
	nft, err := nftables.New(options...)
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", explain(err))
	}
	rules, err := c.dial()
	if err != nil {
		nft.CloseLasting()
		return nil, fmt.Errorf("open nftables: %w", explain(err))
	}
	return &Kernel{nft: nft, rules: rules}, nil
}

func (c Config) dial() (*netlink.Conn, error) {
	if c.Dial != nil {
		return nltest.Dial(c.Dial), nil
	}
	return netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: c.NetNS})
}

// Close gives the sockets back. What was applied stays in the kernel.
func (k *Kernel) Close() error {
	return errors.Join(k.nft.CloseLasting(), k.rules.Close())
}

// gone reports that the table, or an object in it, does not exist or went away while it was read. The library keeps
// only the text of some errors.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || err != nil && strings.HasSuffix(err.Error(), unix.ENOENT.Error())
}
