// Command virt-launcher-standin plays the programs of KubeVirt's image virt-launcher on a node with a real kubelet, and
// the program of container disks. Which one is told by the name that it is called by, and each does what the pod sees of
// the real one; the guest itself runs beside the pod (test/kubevirt/virthandler).
package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	programs := map[string]func(args []string) error{
		"cp": copyFile, "container-disk": containerDisk, "virt-launcher-monitor": launcher,
		"virt-tail": func([]string) error { <-ended(); return nil },
	}
	name := filepath.Base(os.Args[0])
	run, known := programs[name]
	if !known {
		fmt.Fprintf(os.Stderr, "virt-launcher-standin plays no program %q\n", name)
		os.Exit(2)
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// ended is sent the signals that end a container.
func ended() <-chan os.Signal {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	return signals
}

// poll is how often to look at a file: fast enough that the end of a guest shows at once, and cheap.
const poll = 100 * time.Millisecond
