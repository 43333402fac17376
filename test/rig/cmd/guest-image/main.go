// Command guest-image makes the rig's guest and prints the paths of its kernel and its initramfs, one a line.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"floatip.io/floatip/test/rig/guest"
)

func main() {
	cache := flag.String("cache", "bin/rig/guest", "folder for the image and its parts; made if missing, kept for the next run")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	image, err := guest.Build(ctx, *cache)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		stop()
		os.Exit(1)
	}
	fmt.Println(image.Kernel)
	fmt.Println(image.Initrd)
}
