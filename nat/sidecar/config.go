// Package sidecar is the loop that runs in the virt-launcher pod: it keeps the rules of package nat in the kernel for
// as long as the pod lives, follows the description of its addresses, and answers the node agent on a socket.
//
// It needs nothing from KubeVirt, neither at its start nor later: the rules stand before the guest starts, and on a
// migration target before the guest resumes. When it ends the rules stay.
package sidecar

import (
	"log/slog"
	"os"
	"time"

	"floatip.io/floatip/nat"
	"floatip.io/floatip/nat/handover"
)

// Defaults of Config, and what the webhook mounts.
const (
	DefaultNATFile = "/etc/floatip/nat.json"
	DefaultSocket  = "/run/floatip/agent.sock"
)

// Config says what to keep and where. NATFile, Socket and Log must be set.
type Config struct {
	// NATFile holds a floatip.PodNAT. While it is absent or empty there is nothing to install.
	NATFile string
	// Socket is where the node agent asks.
	Socket string
	// Pod is passed on to the agent, for people.
	Pod handover.Pod
	Log *slog.Logger
	// NetNS is the network namespace to work in. Defaults to that of the process.
	NetNS *os.File
	// Poll is how often the rules and the file are looked at when no event came. Defaults to 10 s.
	Poll time.Duration
	// Started is called once, after the first look at the rules. May be nil.
	Started func()
	// Kernel is for tests that stand in for the kernel. Its NetNS is ignored.
	Kernel nat.Config
}

// defaultPoll bounds how long an event that was lost can hide a change. One look costs about a millisecond.
const defaultPoll = 10 * time.Second

func (c Config) withDefaults() Config {
	if c.Poll == 0 {
		c.Poll = defaultPoll
	}
	if c.NetNS != nil {
		c.Kernel.NetNS = int(c.NetNS.Fd())
	}
	return c
}

// namespace opens what is handed to the agent.
func (c Config) namespace() (*os.File, error) {
	if c.NetNS != nil {
		return c.NetNS, nil
	}
	return handover.OwnNamespace()
}
