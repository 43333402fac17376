package node

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/netns"
)

// ErrSecondAgent: another agent works on this node.
var ErrSecondAgent = errors.New("another floatip-agent works on this node")

// lockName is an abstract socket: it belongs to the network namespace, needs no file and goes with the process
// (unix(7)).
const lockName = "@floatip-agent"

// takeLock makes sure that no second agent works in the namespace: both would undo what the other does.
func takeLock(ns *os.File) (net.Listener, error) {
	var l net.Listener
	err := netns.Do(ns, func() (err error) {
		l, err = net.Listen("unix", lockName)
		return err
	})
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("%w: the socket %s is taken; remove that DaemonSet or process first", ErrSecondAgent, lockName)
	}
	if err != nil {
		return nil, fmt.Errorf("lock of the agent: %w", err)
	}
	return l, nil
}
