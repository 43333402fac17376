// Package reaper removes what a program leaves behind when it is killed: by SIGKILL, by a time limit, by a panic. Nothing in
// the program itself could do that. So the program starts itself once more, before it makes anything; this second one, the
// reaper, holds the other end of a pipe, and when that closes without a farewell it undoes what there is to undo.
//
// A session of its own keeps the signals away from it that end a whole group of processes, as those of timeout(1) and of a
// terminal do.
package reaper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The environment tells a program that it is the reaper, of which kind, and of what.
const (
	kindVariable = "FLOATIP_REAPER"
	pathVariable = "FLOATIP_REAPER_OF"
)

// within bounds the undoing, many times of what it takes.
const within = 5 * time.Minute

// farewell is what the program writes when nothing is left to undo.
const farewell = "done"

// Kind is one way to undo.
type Kind struct{ name string }

// Register names a way to undo what a path stands for. It belongs into a variable of a package: in a program that is the
// reaper of this kind it waits, undoes, and never returns, so that nothing of that program's main is run. Undo is called when
// the other program has ended, and may find that everything has been undone already.
func Register(name string, undo func(ctx context.Context, path string) error) Kind {
	if os.Getenv(kindVariable) == name {
		os.Exit(reap(os.Stdin, os.Getenv(pathVariable), undo))
	}
	return Kind{name}
}

// reap returns the exit code. A failure stands in a file beside path: nobody hears the reaper.
func reap(pipe io.Reader, path string, undo func(ctx context.Context, path string) error) int {
	said, err := io.ReadAll(pipe)
	if string(said) == farewell {
		return 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if err = errors.Join(err, undo(ctx, path)); err == nil {
		return 0
	}
	_ = os.WriteFile(path+".reaper", fmt.Appendf(nil, "undo %s: %v\n", path, err), 0o644)
	return 1
}

// Guard is a reaper that runs. It needs nobody to hold on to it.
type Guard struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

// Guard starts the reaper of what path stands for. Start it before there is anything to undo.
func (k Kind) Guard(path string) (*Guard, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = "floatip-rig-reaper"
	cmd.Dir = "/"
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, kindVariable) {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, kindVariable+"="+k.name, pathVariable+"="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	// No output: `go test` waits until the last process has closed that of the test program.
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start the reaper of %s: %w", path, err), pipe.Close())
	}
	g := &Guard{cmd, pipe}
	guards.Store(g, true)
	return g, nil
}

// guards are those that were not dismissed: the pipe of one that is forgotten would be closed by the garbage collector.
var guards sync.Map

// Dismiss ends the reaper, which does nothing: everything has been undone. A nil Guard has been dismissed.
func (g *Guard) Dismiss() error {
	if g == nil {
		return nil
	}
	guards.Delete(g)
	_, err := io.WriteString(g.pipe, farewell)
	return errors.Join(err, g.pipe.Close(), g.cmd.Wait())
}
