// Package wire is what the rig and the agent in the guest say to each other over a virtio-serial port: one JSON
// object a line. Commands may overlap; a reply names the request it answers, replies come in any order.
package wire

// Port names the virtio-serial port, as the guest finds it in /sys/class/virtio-ports/*/name.
const Port = "io.floatip.guest.0"

// MaxOutput bounds what one command may answer, in bytes: a guest of 64 MiB keeps it in memory.
const MaxOutput = 1 << 20

// Request asks the guest to run a command.
type Request struct {
	// ID is chosen by the asker and returned in the reply.
	ID string `json:"id"`
	// Command is given to /bin/sh -c.
	Command string `json:"command"`
}

// Reply is the outcome of a command.
type Reply struct {
	ID string `json:"id"`
	// Status is the exit status of the shell, or -1 if it could not be started or was killed.
	Status int `json:"status"`
	// Output holds stdout and stderr in the order of writing, cut at MaxOutput.
	Output string `json:"output"`
}
