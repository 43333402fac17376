package sidecar

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"floatip.io/floatip/nat/handover"
)

// settleTime after the last look the memory that it used goes back to the kernel: one sidecar runs beside every VM, and
// nearly always there is nothing to do.
const settleTime = time.Second

// Run keeps the rules until ctx is done and then returns nil at once; the rules stay. It fails only if it cannot serve
// at all; a kernel that refuses and a file that is wrong are reported and tried again.
func Run(ctx context.Context, config Config) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	config = config.withDefaults()
	netns, err := config.namespace()
	if err != nil {
		return fmt.Errorf("open the network namespace: %w", err)
	}
	if netns != config.NetNS {
		defer netns.Close()
	}

	state := &board{config: config.Kernel}
	server := &handover.Server{NetNS: netns, Pod: config.Pod, State: state.read}
	state.changed = server.Changed
	l := newLoop(config, state)
	fileChanged, rulesChanged := newSignal(), newSignal()

	// The rules first. What changes before somebody watches is found by a second look.
	wait := l.look(time.Now())
	w := &watches{config: config, file: fileChanged, rules: rulesChanged}
	w.ensure(ctx)
	rulesChanged.raise()
	if config.Started != nil {
		config.Started()
	}
	served := make(chan error, 1)
	go func() { served <- serve(ctx, config, server) }()

	timer, idle := time.NewTimer(wait), time.NewTimer(settleTime)
	defer timer.Stop()
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			<-served // an answer that is under way hands over the namespace
			return nil
		case err := <-served:
			return err
		case <-fileChanged:
		case <-rulesChanged:
		case <-timer.C:
			w.ensure(ctx)
		case <-idle.C:
			settle()
			continue
		}
		timer.Reset(l.look(time.Now()))
		idle.Reset(settleTime)
	}
}

// serve answers the agent. A socket that cannot be made is tried again: NAT goes on without it.
func serve(ctx context.Context, config Config, server *handover.Server) error {
	last := ""
	for attempt := 0; ctx.Err() == nil; attempt++ {
		l, err := handover.Listen(config.Socket)
		if err == nil {
			attempt = 0
			err = server.Serve(ctx, l)
		}
		if err == nil {
			break
		}
		if text := err.Error(); text != last {
			config.Log.Error("the node agent cannot reach this sidecar", "reason", err)
			last = text
		}
		select {
		case <-ctx.Done():
		case <-time.After(doubled(time.Second, attempt, longestBackOff)):
		}
	}
	return nil
}

// watches are the sources of events. One that cannot be made, say because the directory is not there yet, or that broke
// off, is made at the next poll.
type watches struct {
	config          Config
	file, rules     signal
	onFile, onRules atomic.Bool
}

func (w *watches) ensure(ctx context.Context) {
	if !w.onFile.Load() {
		w.onFile.Store(watchFile(ctx, w.config.NATFile, w.file, func() { w.onFile.Store(false) }) == nil)
	}
	if !w.onRules.Load() && w.config.Kernel.Dial == nil {
		w.onRules.Store(watchRules(ctx, w.config.Kernel, w.rules, func() { w.onRules.Store(false) }) == nil)
	}
}
