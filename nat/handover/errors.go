package handover

import "errors"

// Errors of Dial and Session. They are wrapped together with the path of the socket.
var (
	// ErrNotSocket: the path holds something else than a socket, for instance a symbolic link to another one.
	ErrNotSocket = errors.New("not a unix socket")

	// ErrNoNamespace: the sidecar sent no descriptor, several, or one that is not a network namespace.
	ErrNoNamespace = errors.New("the sidecar did not hand over a network namespace")

	// ErrOwnNamespace: the descriptor is the network namespace of this very process. A pod on the host's network has no
	// NAT of its own, and nothing may be plugged into the node's namespace.
	ErrOwnNamespace = errors.New("the sidecar handed over this process's own network namespace")

	// ErrVersion: the other end speaks another version of the wire format.
	ErrVersion = errors.New("unknown version of the handover format")

	// ErrMalformed: a message is not JSON, too long, or holds values that cannot be.
	ErrMalformed = errors.New("malformed message")

	// ErrStalled: the sidecar sent nothing for longer than it may.
	ErrStalled = errors.New("the sidecar went silent")

	// ErrClosed: the session was closed, here or by the sidecar.
	ErrClosed = errors.New("session closed")
)
