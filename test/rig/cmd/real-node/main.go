// Command real-node is the first process of a node of the rig with a real kubelet and containerd (package realnode). It
// wants one argument, the node's configuration.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"floatip.io/floatip/test/rig/realnode"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: real-node CONFIGURATION")
		os.Exit(2)
	}
	if err := realnode.Init(ctx, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "real-node:", err)
		os.Exit(1)
	}
}
