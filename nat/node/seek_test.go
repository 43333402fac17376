package node

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/appear"
	"floatip.io/floatip/nat/node/nodetest"
)

// never is a poll that no test lives to see.
var never = pauses{first: time.Hour, most: time.Hour, absent: time.Hour, told: time.Hour}

// seeking starts a session with a pod that has nothing yet, and ends it with the test.
func (b *bench) seeking(w *appear.Watcher, p pauses, uid string) *session {
	b.t.Helper()
	s := newSession(b.t.Context(), socketPath(b.kubelet, uid), slog.New(slog.DiscardHandler), func() {})
	s.start(w, p)
	b.t.Cleanup(s.close)
	return s
}

func (b *bench) newWatcher() *appear.Watcher {
	w := appear.NewWatcher(b.kubelet, slog.New(slog.DiscardHandler))
	b.t.Cleanup(w.Close)
	return w
}

// awaitWatched waits until the kernel watches these of the kubelet's directories and no others.
func (b *bench) awaitWatched(want ...string) {
	b.t.Helper()
	b.await(fmt.Sprintf("the kernel to watch %q", want), func() bool {
		return fmt.Sprint(nodetest.Watched(b.t, b.kubelet)) == fmt.Sprint(want)
	})
}

func (b *bench) awaitReached(s *session, want bool) {
	b.t.Helper()
	b.await(fmt.Sprintf("a connection to the sidecar: %t", want), func() bool {
		_, err := s.snapshot()
		return (err == nil) == want
	})
}

// TestSidecarIsHeardOf: the agent connects to a sidecar because the kernel tells of its socket, from before the kubelet has made
// any directory of the pod. While it is connected nothing is watched.
func TestSidecarIsHeardOf(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	pod, uid := &nodetest.Pod{Namespace: nodetest.NewNamespace(t)}, uidOf(1)
	s := b.seeking(b.newWatcher(), never, uid)
	b.awaitWatched(".")
	dir := filepath.Dir(socketPath(".", uid))
	for at := "."; at != dir; {
		next, err := filepath.Rel(at, dir)
		if err != nil {
			t.Fatal(err)
		}
		for filepath.Dir(next) != "." {
			next = filepath.Dir(next)
		}
		at = filepath.Join(at, next)
		if err := os.Mkdir(filepath.Join(b.kubelet, at), 0o777); err != nil {
			t.Fatal(err)
		}
		b.awaitWatched(at)
	}
	first := b.serveSidecar(pod, uid, fifty)
	b.awaitReached(s, true)
	b.awaitWatched()

	// It starts anew. The socket that the one before it has left behind is not worth many looks.
	first.stop()
	b.awaitReached(s, false)
	b.awaitWatched(dir)
	b.serveSidecar(pod, uid, fifty)
	b.awaitReached(s, true)
	b.awaitWatched()
}

// TestSidecarIsLookedFor: where the kernel tells nothing, the agent finds the sidecar all the same.
func TestSidecarIsLookedFor(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	pod, uid := &nodetest.Pod{Namespace: nodetest.NewNamespace(t)}, uidOf(1)
	elsewhere := appear.NewWatcher(t.TempDir(), slog.New(slog.DiscardHandler))
	t.Cleanup(elsewhere.Close)
	untold := b.seeking(elsewhere, pauses{first: time.Millisecond, most: time.Hour, absent: time.Millisecond, told: time.Hour}, uid)
	// An event that never comes: the kubelet mounts another file system over the directory that is watched, for instance.
	missed := b.seeking(b.newWatcher(), pauses{first: time.Hour, most: time.Hour, absent: time.Hour, told: time.Millisecond}, uid)
	missed.hints.SetBurst(0)
	for _, s := range []*session{untold, missed} {
		b.await("a first look", func() bool {
			_, err := s.snapshot()
			return errors.Is(err, fs.ErrNotExist)
		})
	}
	b.serveSidecar(pod, uid, fifty)
	b.awaitReached(untold, true)
	b.awaitReached(missed, true)
}

// TestPauses: the poll is slow while the kernel tells, and quick at first where it does not.
func TestPauses(t *testing.T) {
	p := usualPauses
	for _, tt := range []struct {
		name              string
		err               error
		told              bool
		last, pause, next time.Duration
	}{
		{"told", fs.ErrNotExist, true, p.first, p.told, p.first},
		{"absent", fs.ErrNotExist, false, p.first, p.first, 2 * p.first},
		{"absent for long", fs.ErrNotExist, false, p.absent, p.absent, p.absent},
		{"nobody listens yet", unix.ECONNREFUSED, true, p.first, p.first, 2 * p.first},
		{"nobody listens for long", unix.ECONNREFUSED, true, p.most, p.most, p.most},
	} {
		if pause, next := p.after(tt.err, tt.told, tt.last); pause != tt.pause || next != tt.next {
			t.Errorf("%s: have %s and %s, want %s and %s", tt.name, pause, next, tt.pause, tt.next)
		}
	}
}

// TestRestlessDirectory: a pod that makes and removes files in the sidecar's directory all the time, and lets nobody connect, has
// the agent look a few times, and then once in a second.
func TestRestlessDirectory(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	uid := uidOf(1)
	dir, err := os.Open(b.socketDir(uid))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	inside := fmt.Sprintf("/proc/self/fd/%d/", dir.Fd())
	l, err := net.Listen("unix", inside+"agent.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var looks atomic.Int64
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			looks.Add(1)
			c.Close()
		}
	}()
	began := time.Now()
	s := b.seeking(b.newWatcher(), never, uid)
	const files = 5000
	for range files {
		if err := os.WriteFile(inside+"file", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(inside+"file", 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(inside + "file"); err != nil {
			t.Fatal(err)
		}
	}
	b.await("the looks that a pod may cause", func() bool {
		return looks.Load() >= hintsAtOnce || os.Chmod(inside+"agent.sock", 0o600) != nil
	})
	s.close()
	if have, most := looks.Load(), 1+hintsAtOnce+int64(time.Since(began)/hintEvery); have > most {
		t.Errorf("%d events had the agent look %d times, want at most %d", 2*files, have, most)
	}
}

// TestPodThatNeverComes: what is watched for a pod is watched no more when the pod is gone, and nothing when the agent ends. There is
// nothing to clear in such a pod, and nothing to complain of.
func TestPodThatNeverComes(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.addObjects(1, fifty)
	uid := b.addObjects(2, fifty.Next())
	other := b.addObjects(3, fifty.Next().Next())
	if err := os.MkdirAll(filepath.Join(b.kubelet, "pods", uid), 0o777); err != nil {
		t.Fatal(err)
	}
	b.socketDir(other)
	b.start()
	b.publish()
	b.awaitWatched("pods", filepath.Join("pods", uid), filepath.Dir(socketPath(".", other)))
	pods := b.view.Pods
	b.view.Pods = pods[2:]
	b.publish()
	b.awaitWatched(filepath.Dir(socketPath(".", other)))
	b.view.Pods = nil
	b.publish()
	b.awaitWatched()
	if n := b.log.count("clear pod"); n > 0 {
		t.Errorf("the log speaks %d times of pods that nobody reached", n)
	}
	b.view.Pods = pods[:1]
	b.publish()
	b.awaitWatched("pods")
	b.stop()
	b.awaitWatched()
}
