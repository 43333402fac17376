// Command demo takes the mission's vm.yaml from kubectl apply to an answer on the provider LAN, on a rig of real
// components in network namespaces of this machine, and shows what it measured on the way. It needs root.
//
// It ends with "demo: ok" and exit status 0 only if every step held.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"floatip.io/floatip/test/rig"
	"floatip.io/floatip/test/story"
)

// The demo takes about a minute on an idle machine of two cores. What takes longer than this hangs.
const deadline = 10 * time.Minute

// stopWithin bounds the removal of the rig.
const stopWithin = 2 * time.Minute

func main() { os.Exit(run()) }

func run() int {
	keep := flag.Bool("keep", false, "leave the rig up at the end and print how to look around; --down removes it")
	down := flag.Bool("down", false, "remove what an earlier run left up, and exit")
	flag.Parse()

	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	ctx, cancelDeadline := context.WithTimeoutCause(ctx, deadline, fmt.Errorf("the demo did not end within %s", deadline))
	defer cancelDeadline()

	t := newTeller(os.Stdout)
	if *down {
		if err := rig.Down(ctx, t.progress); err != nil {
			fmt.Fprintln(os.Stderr, "demo: not all could be removed:", err)
			return 1
		}
		return 0
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "demo: it makes network namespaces; run it as root")
		return 1
	}
	if err := demo(ctx, t, *keep); err != nil {
		t.failed(err)
		return 1
	}
	t.say("demo: ok (%s)", t.elapsed())
	return 0
}

// demo starts the rig, tells the story and removes the rig, unless it shall be kept and all went well.
func demo(ctx context.Context, t *teller, keep bool) (err error) {
	var r *rig.Rig
	err = t.Step(ctx, "start the rig: control plane, KubeVirt, three nodes, provider LAN", func(ctx context.Context) error {
		r, err = rig.Start(ctx, rig.Options{Keep: keep, Progress: t.progress})
		return err
	})
	if err != nil {
		return err
	}
	defer func() {
		if keep && err == nil {
			t.lookAround(r)
			return
		}
		if err != nil {
			t.saveLogs(r)
		}
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
		defer cancel()
		err = errors.Join(err, r.Stop(stop))
	}()
	s, err := story.New(r, ".", t.progress)
	if err != nil {
		return err
	}
	return story.Tell(ctx, t, s)
}
