package node

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/time/rate"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/handover"
	"floatip.io/floatip/nat/node/appear"
)

// socketPath returns where the kubelet keeps the sidecar's socket (kubelet pkg/volume/emptydir:
// "kubernetes.io~empty-dir").
func socketPath(kubelet, pod string) string {
	return filepath.Join(kubelet, "pods", pod, "volumes", "kubernetes.io~empty-dir", floatip.SocketVolume, floatip.SocketFile)
}

// pauses are those between two attempts to reach a sidecar. An attempt costs some ten microseconds.
type pauses struct {
	// first is the pause after the first attempt. It doubles with each one, up to most.
	first, most time.Duration
	// absent bounds it while there is no socket: the pod is being made, and a guest that migrates into it comes soon.
	absent time.Duration
	// told is the pause while there is no socket and the kernel tells when there is one.
	told time.Duration
	// lost is the pause after a connection that has ended.
	lost time.Duration
}

var usualPauses = pauses{
	first: 50 * time.Millisecond, most: 2 * time.Second, absent: 200 * time.Millisecond, told: 2 * time.Second,
	lost: 50 * time.Millisecond,
}

// after is the pause after an attempt that failed with err, and how long the one after it may be.
func (p pauses) after(err error, told bool, last time.Duration) (pause, next time.Duration) {
	absent := errors.Is(err, fs.ErrNotExist)
	switch {
	case absent && told:
		return p.told, last
	case absent:
		return last, min(2*last, p.absent)
	}
	return last, min(2*last, p.most)
}

// Attempts because the kernel told of something. A pod that is made tells of four directories and a socket, a sidecar that starts
// anew of a socket. A pod that has more to tell is looked at once in hintEvery, besides the attempts that are made anyway.
const (
	hintsAtOnce = 16
	hintEvery   = time.Second
)

func newHints() *rate.Limiter { return rate.NewLimiter(rate.Every(hintEvery), hintsAtOnce) }

// seek tries until the sidecar is reached, whenever something has happened on the way to its socket and now and then. It returns
// nil when ctx is done.
func (s *session) seek(ctx context.Context) *handover.Session {
	for next := s.pauses.first; ctx.Err() == nil; {
		hint := s.watcher.Watch(s.path)
		c, err := s.dial(ctx)
		if err == nil {
			hint.Close()
			return c
		}
		if ctx.Err() == nil {
			s.lost(err)
		}
		pause := time.Duration(0)
		pause, next = s.pauses.after(err, hint.Armed(), next)
		s.rest(ctx, hint, pause)
		hint.Close()
	}
	return nil
}

// rest waits for the end of the pause, or for a hint that may be followed.
func (s *session) rest(ctx context.Context, hint *appear.Watch, pause time.Duration) {
	end := time.NewTimer(pause)
	defer end.Stop()
	select {
	case <-ctx.Done():
		return
	case <-end.C:
		return
	case <-hint.C:
		if s.hints.Allow() {
			return
		}
	}
	select {
	case <-ctx.Done():
	case <-end.C:
	}
}

// dial makes one attempt.
func (s *session) dial(ctx context.Context) (*handover.Session, error) {
	c, err := handover.Dial(ctx, s.path)
	if err != nil {
		return nil, err
	}
	if err := s.accept(c); err != nil {
		c.Close()
		return nil, err
	}
	s.log.Info("reached the sidecar", "phase", c.State().Phase)
	return c, nil
}
