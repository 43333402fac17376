package appear

import (
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A Watcher has one inotify instance for all that is waited for, none before something is. Its methods may be called by any
// goroutine.
type Watcher struct {
	root string
	log  *slog.Logger

	mu       sync.Mutex // guards what follows
	instance *instance  // nil for none
	waiting  map[int]map[*Watch]bool
	said     bool // why there is nothing but the poll
}

// NewWatcher takes nothing from the kernel yet. Directories above root are never watched. No file that is waited for may be in
// a directory that is on the way to another one.
func NewWatcher(root string, log *slog.Logger) *Watcher {
	return &Watcher{root: filepath.Clean(root), log: log, waiting: map[int]map[*Watch]bool{}}
}

// A Watch is of one file.
type Watch struct {
	// C has a token when it is worth to look for the file. Several events make one token.
	C <-chan struct{}

	c       chan struct{}
	watcher *Watcher
	key     int    // the kernel's number of the watch, -1 for none
	name    string // what must appear in the directory; "" for anything
}

// Watch waits for the file at path to appear, or for what is to be its directory. Whoever looks for the file after Watch
// misses nothing: what happens from then on makes a token. The directory of the file is watched for one event only, however much
// goes on there. So whoever has looked in vain after a token closes the Watch and takes another.
func (w *Watcher) Watch(path string) *Watch {
	c := make(chan struct{}, 1)
	x := &Watch{C: c, c: c, watcher: w, key: -1}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.arm(x, filepath.Clean(path)); err != nil && !w.said {
		w.said = true
		w.log.Warn("directories cannot be watched, so sidecars are found a moment later; the kernel bounds what may be watched by "+
			"fs.inotify.max_user_instances and fs.inotify.max_user_watches", "reason", err)
	}
	return x
}

// Events after which a file or directory may be there. A socket is no use before it is listened on: the sidecar changes its
// mode then (handover.Listen), and that is waited for.
const (
	inFileDir = unix.IN_ATTRIB | unix.IN_MOVED_TO | unix.IN_ONESHOT | unix.IN_DONT_FOLLOW
	above     = unix.IN_CREATE | unix.IN_MOVED_TO
)

// arm finds the deepest directory that is there.
func (w *Watcher) arm(x *Watch, path string) (err error) {
	if w.instance == nil {
		if w.instance, err = open(w.pass, w.broken); err != nil {
			return err
		}
	}
	for dir, mask := filepath.Dir(path), uint32(inFileDir); w.holds(dir); dir, mask = filepath.Dir(dir), above {
		key, err := w.instance.add(dir, mask|unix.IN_ONLYDIR)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			x.name = filepath.Base(dir)
			continue
		}
		if err != nil {
			return err
		}
		x.key = key
		if w.waiting[key] == nil {
			w.waiting[key] = map[*Watch]bool{}
		}
		w.waiting[key][x] = true
		if _, err := os.Lstat(filepath.Join(dir, x.name)); x.name != "" && err == nil {
			x.raise() // it has appeared in between
		}
		return nil
	}
	return nil
}

func (w *Watcher) holds(dir string) bool { return dir == w.root || strings.HasPrefix(dir, w.root+"/") }

// Armed reports whether the kernel was asked to tell. If not, there is nothing but to look now and then.
func (x *Watch) Armed() bool { return x.key >= 0 }

func (x *Watch) raise() {
	select {
	case x.c <- struct{}{}:
	default:
	}
}

// Close ends the watch. It may be called several times.
func (x *Watch) Close() {
	w := x.watcher
	w.mu.Lock()
	defer w.mu.Unlock()
	others := w.waiting[x.key]
	if !others[x] {
		return
	}
	if delete(others, x); len(others) == 0 {
		delete(w.waiting, x.key)
		w.instance.remove(x.key)
	}
}

// Close ends all watches.
func (w *Watcher) Close() {
	w.mu.Lock()
	i := w.instance
	w.forget()
	w.mu.Unlock()
	if i != nil {
		i.close()
	}
}

// forget leaves those who wait to their own devices.
func (w *Watcher) forget() {
	w.instance = nil
	for key := range w.waiting {
		w.wake(key, "")
	}
	clear(w.waiting)
}

// wake signals those who wait for name in a directory, all of them for the name "".
func (w *Watcher) wake(key int, name string) {
	for x := range w.waiting[key] {
		if name == "" || x.name == "" || x.name == name {
			x.raise()
		}
	}
}

// pass is called for each event.
func (w *Watcher) pass(i *instance, e event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.instance != i: // closed
	case e.mask&unix.IN_Q_OVERFLOW != 0: // events were lost, nobody knows whose
		for key := range w.waiting {
			w.wake(key, "")
		}
	case e.mask&unix.IN_IGNORED != 0: // the directory is gone, or had its one event
		w.wake(e.key, "")
		delete(w.waiting, e.key)
	default:
		w.wake(e.key, e.name)
		w.end(e.key)
	}
}

// end forgets those whose one event has come: the kernel has ended the watch.
func (w *Watcher) end(key int) {
	maps.DeleteFunc(w.waiting[key], func(x *Watch, _ bool) bool { return x.name == "" })
	if len(w.waiting[key]) == 0 {
		delete(w.waiting, key)
	}
}

// broken is called when an instance cannot be read any more. The next Watch makes a new one.
func (w *Watcher) broken(i *instance) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.instance == i {
		w.forget()
	}
}
