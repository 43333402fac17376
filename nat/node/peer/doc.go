// Package peer lets the agents of two nodes speak while a guest migrates from one to the other: the target's asks the
// source's for the connections that are tracked for the guest, and says when the guest has arrived.
//
//	target's agent                                      source's agent
//	   | ------------- TLS 1.3, both show a key -------------> |   keys are published on the two Node objects
//	   | -- {"version":1,"machine":"<UID>","pod":"…", -------> |   does this machine migrate into that pod, and to the node
//	   |     "frames":true}                                    |   of that key?
//	   | <- {} ----------------------------------------------- |   nobody has said so yet: wait (twice a second)
//	   | <- {"put":[…],"remove":[…]} ------------------------- |   all at first, then what has changed, twice a second
//	   | -- {"arrived":true,"ago":…} ------------------------> |   the guest was heard
//	   | <- {"frames":[…]} ----------------------------------- |   packets that it had no time to read
//	   | <- {"put":[…],"last":true,"heard":"…"} -------------- |   what has changed since; and when it was last heard
//
// Each message of the source says when it was sent, so that the target knows what the time in the last one is by its own clock.
//
// A key lives as long as its agent and is in no file. What it proves is that the other end is the agent of the node on
// whose Node object it stands, and that nobody between the two reads or changes a word. docs/decisions/moves.md says why it
// is done this way.
//
// The receiver believes nothing of what it is sent: package flows has the test.
package peer

import "time"

const (
	// Version of the exchange. The source refuses another one.
	Version = 1

	// Interval is the time between two looks of the source at its connections. A look takes about 10 ms on a node with
	// 262144 buckets, whatever is in them.
	Interval = 500 * time.Millisecond

	// StandBack is for how long both nodes leave their processors to the first packets of a guest that has arrived, before they do
	// what a move calls for besides. With 5, 10 and 20 ms a connection is silent for the same time (docs/decisions/moves.md).
	StandBack = 5 * time.Millisecond

	// DefaultWait bounds each read and write: the other end has something to say several times in it.
	DefaultWait = 5 * time.Second

	// maxLine bounds one message, in bytes. perLine entries of the longest kind take half of it.
	maxLine = 2 << 20
	perLine = 2000

	// perFrames bounds the packets in one message, in bytes: Base64 makes them a third longer. A packet has 64 KiB at most.
	perFrames = 1 << 20

	// maxFrames bounds what one source may give to the guest.
	maxFrames = 4000

	// maxEntries bounds what one source may make the target's kernel track.
	maxEntries = 100_000

	// maxConnections bounds how many targets are served at once: a node takes part in few migrations (KubeVirt's
	// parallelOutboundMigrationsPerNode is 2).
	maxConnections = 32
)
