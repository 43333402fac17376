// Command guest-run runs one shell command in a guest of the rig and prints what it wrote.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"floatip.io/floatip/test/rig/guest"
)

func main() { os.Exit(run()) }

func run() int {
	socket := flag.String("socket", "", "guest.sock of the machine, in the folder of its virt-handler stand-in")
	wait := flag.Duration("wait", time.Minute, "how long to wait for the guest to boot and for the command to end")
	flag.Parse()
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(interrupted, *wait)
	defer cancel()
	output, err := runInGuest(ctx, *socket, strings.Join(flag.Args(), " "))
	fmt.Print(output)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func runInGuest(ctx context.Context, socket, command string) (string, error) {
	channel, err := guest.Connect(ctx, socket)
	if err != nil {
		return "", err
	}
	defer func() { _ = channel.Close() }()
	return channel.Run(ctx, command)
}
