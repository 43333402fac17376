package appear

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/nodetest"
)

const patience = time.Minute

func newWatcher(t *testing.T) (w *Watcher, root string) {
	t.Helper()
	root = t.TempDir()
	w = NewWatcher(root, slog.New(slog.DiscardHandler))
	t.Cleanup(w.Close)
	return w, root
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

// told waits for a token.
func told(t *testing.T, x *Watch, of string) {
	t.Helper()
	select {
	case <-x.C:
	case <-time.After(patience):
		t.Fatalf("nothing is told of %s within %s", of, patience)
	}
}

func quiet(t *testing.T, x *Watch, of string) {
	t.Helper()
	select {
	case <-x.C:
		t.Errorf("something is told of %s", of)
	default:
	}
}

func wantWatched(t *testing.T, root string, want ...string) {
	t.Helper()
	if have := nodetest.Watched(t, root); !slices.Equal(have, want) {
		t.Errorf("the kernel watches %q, want %q", have, want)
	}
}

// TestAppears: a socket is told of when it can be connected to, and each directory before it when it is made. One watch is enough
// at each time.
func TestAppears(t *testing.T) {
	w, root := newWatcher(t)
	socket := filepath.Join(root, "pods", "uid", "dir", "socket")
	for _, step := range []struct{ watched, makes string }{{".", "pods"}, {"pods", "pods/uid"}, {"pods/uid", "pods/uid/dir"}} {
		x := w.Watch(socket)
		wantWatched(t, root, step.watched)
		mkdir(t, filepath.Join(root, step.makes))
		told(t, x, step.makes)
		x.Close()
		wantWatched(t, root)
	}
	x := w.Watch(socket)
	wantWatched(t, root, "pods/uid/dir")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	short := t.TempDir()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(short, "s")}); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(short, "s"), socket); err != nil { // it is created
		t.Fatal(err)
	}
	other := w.Watch(filepath.Join(root, "pods", "barrier", "socket"))
	mkdir(t, filepath.Join(root, "pods", "barrier"))
	told(t, other, "a directory") // the kernel tells in the order of what happened
	quiet(t, x, "a socket that nobody listens on")
	if err := os.Chmod(socket, 0o600); err != nil {
		t.Fatal(err)
	}
	told(t, x, "a socket whose mode is changed")
}

// TestRenamed: so are a directory and a file that get their names later.
func TestRenamed(t *testing.T) {
	w, root := newWatcher(t)
	mkdir(t, filepath.Join(root, "later"))
	x := w.Watch(filepath.Join(root, "dir", "file"))
	if err := os.Rename(filepath.Join(root, "later"), filepath.Join(root, "dir")); err != nil {
		t.Fatal(err)
	}
	told(t, x, "the directory")
	x.Close()
	x = w.Watch(filepath.Join(root, "dir", "file"))
	if err := os.WriteFile(filepath.Join(root, "dir", ".file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	quiet(t, x, "another file")
	if err := os.Rename(filepath.Join(root, "dir", ".file"), filepath.Join(root, "dir", "file")); err != nil {
		t.Fatal(err)
	}
	told(t, x, "the file")
}

// TestOthersDirectories: of many that wait in one directory only the one is told whose turn it is, and one that leaves takes the
// watch from nobody.
func TestOthersDirectories(t *testing.T) {
	w, root := newWatcher(t)
	var all []*Watch
	for n := range 3 {
		all = append(all, w.Watch(filepath.Join(root, fmt.Sprint(n), "socket")))
	}
	wantWatched(t, root, ".")
	all[2].Close()
	all[2].Close()
	wantWatched(t, root, ".")
	mkdir(t, filepath.Join(root, "0"))
	mkdir(t, filepath.Join(root, "1"))
	told(t, all[1], "its directory") // so what is told of the first has been told
	told(t, all[0], "its directory")
	mkdir(t, filepath.Join(root, "2"))
	x := w.Watch(filepath.Join(root, "3", "socket"))
	mkdir(t, filepath.Join(root, "3"))
	told(t, x, "its directory")
	for i, x := range all {
		quiet(t, x, fmt.Sprintf("%d, whose directory was there", i))
		x.Close()
	}
	x.Close()
	wantWatched(t, root)
}

// TestGone: a directory that is removed, as kubelet removes those of a pod that has ended, is told of, and no watch is left.
func TestGone(t *testing.T) {
	w, root := newWatcher(t)
	dir := filepath.Join(root, "pods", "uid")
	mkdir(t, dir)
	x := w.Watch(filepath.Join(dir, "socket"))
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	told(t, x, "the directory")
	x.Close()
	wantWatched(t, root)
	x = w.Watch(filepath.Join(dir, "socket"))
	wantWatched(t, root, "pods")
	x.Close()
}

// TestBusyDirectory: whatever goes on in the directory of the file, the kernel tells of the first event and no other.
func TestBusyDirectory(t *testing.T) {
	w, root := newWatcher(t)
	mkdir(t, filepath.Join(root, "dir"))
	x := w.Watch(filepath.Join(root, "dir", "socket"))
	defer x.Close()
	for n := range 100 {
		name := filepath.Join(root, "dir", fmt.Sprint(n))
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(name, 0o644); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			told(t, x, "a file")
			wantWatched(t, root)
		}
	}
	quiet(t, x, "more files")
}

// TestNothingToWatch: above the root nothing is watched, and a link in the place of the directory is not followed.
func TestNothingToWatch(t *testing.T) {
	w, root := newWatcher(t)
	for _, path := range []string{filepath.Join(filepath.Dir(root), "file"), root + "2/file", ""} {
		if x := w.Watch(path); x.Armed() {
			t.Errorf("%q is watched", path)
		}
	}
	elsewhere := t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	w.Watch(filepath.Join(root, "link", "socket"))
	wantWatched(t, elsewhere)
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	if w.Watch(filepath.Join(root, "dir", "file")).Armed() {
		t.Error("a root that is not there is watched")
	}
}

// TestOverflow: when the kernel had no room for events, everybody looks again.
func TestOverflow(t *testing.T) {
	w, root := newWatcher(t)
	mkdir(t, filepath.Join(root, "a"))
	x, y := w.Watch(filepath.Join(root, "a", "file")), w.Watch(filepath.Join(root, "b", "file"))
	w.pass(w.instance, event{key: -1, mask: unix.IN_Q_OVERFLOW})
	told(t, x, "the overflow")
	told(t, y, "the overflow")
	wantWatched(t, root, ".", "a")
	x.Close()
	y.Close()
	wantWatched(t, root)
}

// TestClose: nobody who waits is kept from looking, and what comes later is harmless.
func TestClose(t *testing.T) {
	w, root := newWatcher(t)
	x := w.Watch(filepath.Join(root, "file"))
	w.Close()
	told(t, x, "the end")
	x.Close()
	w.Close()
	wantWatched(t, root)
}

// TestLimits: where the kernel gives no instance or no watch, that is said once, and nothing is waited for. Its bounds are those of
// a user namespace that the test makes.
func TestLimits(t *testing.T) {
	for _, limit := range []string{"max_inotify_instances", "max_inotify_watches"} {
		child := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestLimitsChild$", "-test.v")
		child.Env = append(os.Environ(), "LIMIT="+limit)
		child.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
		if out, err := child.CombinedOutput(); err != nil || !strings.Contains(string(out), "no watch, said once") {
			t.Errorf("%s: %v\n%s", limit, err, out)
		}
	}
}

// TestLimitsChild is what TestLimits runs in a user namespace.
func TestLimitsChild(t *testing.T) {
	limit := os.Getenv("LIMIT")
	if limit == "" {
		return
	}
	bound := filepath.Join("/proc/sys/user", limit)
	set := func(value string) {
		if err := os.WriteFile(bound, []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	set("0")
	var said strings.Builder
	root := t.TempDir()
	w := NewWatcher(root, slog.New(slog.NewTextHandler(&said, nil)))
	defer w.Close()
	for range 3 {
		x := w.Watch(filepath.Join(root, "file"))
		if x.Armed() {
			t.Errorf("there is a watch in spite of %s=0", limit)
		}
		x.Close()
	}
	if n := strings.Count(said.String(), "\n"); n != 1 || !strings.Contains(said.String(), "fs.inotify.max_user_") {
		t.Errorf("it is said %d times: %s", n, said.String())
	}
	set("10")
	x := w.Watch(filepath.Join(root, "file"))
	if !x.Armed() {
		t.Error("there is no watch though the kernel has some again")
	}
	if err := os.WriteFile(filepath.Join(root, "later"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(root, "later"), filepath.Join(root, "file")); err != nil {
		t.Fatal(err)
	}
	told(t, x, "the file")
	if !t.Failed() {
		fmt.Println("no watch, said once")
	}
}
