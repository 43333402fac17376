package main

import (
	"fmt"
	"net"
)

// echoCommand is the first argument that makes the program a server of UDP echo; the second is its port. The guest's
// busybox has none.
const echoCommand = "udp-echo"

// echo sends every datagram back to where it came from. It returns only when its socket fails.
func echo(port string) error {
	conn, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		return fmt.Errorf("UDP echo: %w", err)
	}
	for buf := make([]byte, 2048); ; {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("UDP echo: %w", err)
		}
		// A datagram that cannot be sent back is a lost one.
		_, _ = conn.WriteTo(buf[:n], from)
	}
}
