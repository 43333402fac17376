package appear

import (
	"bytes"
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"
)

// instance is one of inotify. Reading it takes no thread: Go's runtime waits for it together with its sockets.
type instance struct {
	fd   int
	file *os.File // owns fd
	done chan struct{}
}

// event is what the kernel tells (struct inotify_event in inotify(7)).
type event struct {
	key  int    // of the watch
	mask uint32 // IN_...
	name string // of the entry in the directory; "" for the directory itself
}

// open makes an instance. pass gets each event, broken is called if it cannot be read any more.
func open(pass func(*instance, event), broken func(*instance)) (*instance, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	i := &instance{fd: fd, file: os.NewFile(uintptr(fd), "inotify"), done: make(chan struct{})}
	go func() {
		defer close(i.done)
		defer i.file.Close()
		defer broken(i)
		buffer := make([]byte, 4096)
		for {
			n, err := i.file.Read(buffer)
			if err != nil {
				return
			}
			for _, e := range parse(buffer[:n]) {
				pass(i, e)
			}
		}
	}()
	return i, nil
}

// close waits for the last event to be passed on.
func (i *instance) close() {
	i.file.Close()
	<-i.done
}

// add returns the kernel's number for the directory. It is the same one as long as the directory is watched, and not given to
// another one soon.
func (i *instance) add(dir string, mask uint32) (key int, err error) {
	key, err = unix.InotifyAddWatch(i.fd, dir, mask)
	if err != nil {
		return -1, &os.PathError{Op: "inotify_add_watch", Path: dir, Err: err}
	}
	return key, nil
}

// remove does nothing to a watch that the kernel has ended itself.
func (i *instance) remove(key int) { _, _ = unix.InotifyRmWatch(i.fd, uint32(key)) }

// parse reads what the kernel has written.
func parse(raw []byte) (events []event) {
	for len(raw) >= unix.SizeofInotifyEvent {
		e := event{key: int(int32(binary.NativeEndian.Uint32(raw))), mask: binary.NativeEndian.Uint32(raw[4:])}
		length := int(binary.NativeEndian.Uint32(raw[12:]))
		raw = raw[unix.SizeofInotifyEvent:]
		if length > len(raw) {
			return events
		}
		name, _, _ := bytes.Cut(raw[:length], []byte{0})
		e.name, raw = string(name), raw[length:]
		events = append(events, e)
	}
	return events
}
