package node

import (
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	vishnetns "github.com/vishvananda/netns"

	"floatip.io/floatip/nat/node/leg"
)

// kernelWatch calls wake when links or addresses of the node change, or a route of ours. What it misses, for instance
// because the kernel's buffer was full, is found by the next regular round.
type kernelWatch struct {
	at   *vishnetns.NsHandle // nil: the namespace of the process
	wake func()
	log  *slog.Logger
}

func newKernelWatch(ns *os.File, wake func(), log *slog.Logger) kernelWatch {
	w := kernelWatch{wake: wake, log: log}
	if ns != nil {
		h := vishnetns.NsHandle(int(ns.Fd()))
		w.at = &h
	}
	return w
}

// start watches until ctx is done.
func (w kernelWatch) start(ctx context.Context) {
	go follow(ctx, w, "links", func(c chan<- netlink.LinkUpdate, done <-chan struct{}) error {
		return netlink.LinkSubscribeWithOptions(c, done, netlink.LinkSubscribeOptions{Namespace: w.at})
	}, func(netlink.LinkUpdate) bool { return true })
	go follow(ctx, w, "addresses", func(c chan<- netlink.AddrUpdate, done <-chan struct{}) error {
		return netlink.AddrSubscribeWithOptions(c, done, netlink.AddrSubscribeOptions{Namespace: w.at})
	}, func(netlink.AddrUpdate) bool { return true })
	go follow(ctx, w, "routes", func(c chan<- netlink.RouteUpdate, done <-chan struct{}) error {
		return netlink.RouteSubscribeWithOptions(c, done, netlink.RouteSubscribeOptions{Namespace: w.at})
	}, func(r netlink.RouteUpdate) bool { return leg.OurTable(r.Table) })
}

// follow subscribes, and again when the subscription breaks.
func follow[T any](ctx context.Context, w kernelWatch, what string, subscribe func(chan<- T, <-chan struct{}) error,
	matters func(T) bool) {
	for ctx.Err() == nil {
		updates, done := make(chan T, 64), make(chan struct{})
		stop := context.AfterFunc(ctx, func() { close(done) })
		if err := subscribe(updates, done); err != nil {
			w.log.Info("cannot watch the kernel, trying again", "what", what, "reason", err)
			updates = nil
		}
		for updates != nil {
			update, open := <-updates
			if !open {
				break
			}
			if matters(update) {
				w.wake()
			}
		}
		if stop() {
			close(done)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retry):
			w.wake()
		}
	}
}
