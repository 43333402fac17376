package realnode

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// program is one of the node's own.
type program struct {
	path string
	args []string
	log  string
	env  []string
}

// children are the processes that the first process has to wait for: its programs, and whoever lost his parent.
type children struct {
	mu       sync.Mutex // guards programs; held while one starts, so that its end is not missed
	programs map[int]string
	end      chan error // gets the end of the first program that ends
}

func newChildren() *children {
	return &children{programs: map[int]string{}, end: make(chan error, 1)}
}

func (c *children) start(p program) error {
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	process, err := os.StartProcess(p.path, append([]string{p.path}, p.args...), &os.ProcAttr{
		Env: p.env, Files: []*os.File{nil, out, out},
	})
	if err != nil {
		return err
	}
	c.programs[process.Pid] = filepath.Base(p.path)
	return process.Release()
}

// noChildPoll is how soon to look again while there is no child at all, which is so before the first program.
const noChildPoll = 20 * time.Millisecond

// reap waits for every child. The end of a program is the end of the node.
func (c *children) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.ECHILD):
			time.Sleep(noChildPoll)
		case err == nil:
			c.mu.Lock()
			name, own := c.programs[pid]
			c.mu.Unlock()
			if own {
				c.end <- fmt.Errorf("%s ended: exit code %d, signal %d", name, status.ExitStatus(), status.Signal())
				return
			}
		}
	}
}
