// Package handover is the wire between the sidecar in a virt-launcher pod (the server) and the agent on the node (the
// client): a unix socket in an emptyDir that only the sidecar mounts.
//
//	sidecar                                         agent
//	   | <------------- connect ---------------------- |   found by the pod's UID under the kubelet's directory
//	   | --- {"version":1,"pod":{…},"state":{…}}\n --> |   with SCM_RIGHTS: the pod's network namespace
//	   | --- {"state":{…}}\n ------------------------> |   at each change of state, and every Heartbeat
//	   | <-- {"ask":"state"}\n ----------------------- |   at any time: answer now, with fresh counters
//	   | --- {"state":{…}}\n ------------------------> |
//
// Both directions are JSON lines of at most MaxLine bytes. The agent needs neither a container runtime nor the host's
// PID namespace to enter the pod's network.
//
// The agent is privileged and the sidecar is not, so Dial and Session believe nothing: the file must be a socket and no
// symbolic link, the descriptor must be a network namespace and not the agent's own, lines and lists are bounded, each
// wait has a deadline, texts are stripped of control characters, and a flood is slowed down to the reader's pace.
//
// The package does not say what the agent does with the namespace, and it moves no packet.
package handover

import "time"

const (
	// Version of the wire format. A client refuses another one.
	Version = 1

	// MaxLine bounds one message in either direction, in bytes. A state with two bindings and its counters has about
	// 800.
	MaxLine = 16 << 10

	// Heartbeat is the longest time that a server lets pass between two states.
	Heartbeat = 20 * time.Second

	// stallAfter is how long a client waits for the next state: three heartbeats.
	stallAfter = 3 * Heartbeat

	// ioTimeout bounds the exchange of one message: connect, hello, an answer, one write.
	ioTimeout = 5 * time.Second

	// minInterval is the least time between two states that a client passes on: a sidecar that floods its socket costs
	// the agent at most a hundred short JSON documents per second.
	minInterval = 10 * time.Millisecond

	// maxClients bounds the connections that a server holds: the agent, its successor during an upgrade, and people who
	// look at the status.
	maxClients = 8

	// maxBindings bounds the lists of a State: one binding per address family.
	maxBindings = 2

	// maxText bounds a text of a State, in bytes.
	maxText = 1024
)
