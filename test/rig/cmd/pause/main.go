// Pause plays the program of a container whose image the rig does not have. It is process 1 of its container and ends
// on SIGTERM or SIGINT.
//
//	--once       end at once, with success, as an init container does
//	--hold=FILE  as long as FILE exists a signal does not end it; once FILE has existed and is gone, it ends
//	--tell=FILE  a signal makes FILE, for somebody else to see
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// poll is how often to look at the file: fast enough that the end of a guest shows at once, and cheap.
const poll = 100 * time.Millisecond

func main() {
	once := flag.Bool("once", false, "end at once with success")
	hold := flag.String("hold", "", "a file that keeps this program running as long as it exists")
	tell := flag.String("tell", "", "a file to make at a signal")
	flag.Parse()
	if *once {
		return
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	if *hold == "" {
		<-signals
		return
	}
	wait(signals, func() bool { _, err := os.Stat(*hold); return err == nil }, func() {
		if *tell != "" {
			if err := os.WriteFile(*tell, nil, 0o644); err != nil {
				fmt.Fprintln(os.Stderr, "pause: ", err)
			}
		}
	})
}

// wait returns when a signal has come while nothing is held, or when what was held is let go. It calls tell at a signal.
func wait(signals <-chan os.Signal, holds func() bool, tell func()) {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	held, told := false, false
	for {
		select {
		case <-signals:
			told = true
			tell()
		case <-ticker.C:
		}
		now := holds()
		if !now && (held || told) {
			return
		}
		held = now
	}
}
