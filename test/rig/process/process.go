package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Spec says what to run.
type Spec struct {
	// Name is unique within its Group and is how people find the process: in progress lines, in the state file, as
	// the default name of the log.
	Name string
	// Path and Args are the program and what follows it on the command line.
	Path string
	Args []string
	// Env is added to the rig's own environment.
	Env []string
	// Dir is the working directory. Defaults to the rig's own.
	Dir string
	// NetNS is the path of the network namespace to run in. Empty means the rig's own.
	NetNS string
	// Log is the file that gets standard output and error; it is appended to. Its folder must exist.
	Log string
	// Grace is what the program gets between SIGTERM and SIGKILL. Defaults to 5 s: the API server, the slowest, drains
	// for about two seconds.
	Grace time.Duration
}

const defaultGrace = 5 * time.Second

// Process is a started program. It stays valid after the program ended.
type Process struct {
	Spec
	PID  int
	done chan struct{} // closed once the program has ended
	err  error         // how it ended; read after done is closed
}

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the program ended: nil for exit code 0 and while it is still running.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// start runs spec. A kept process survives the rig, any other gets SIGKILL from the kernel when the rig dies.
func start(spec Spec, keep bool) (*Process, error) {
	if spec.Grace == 0 {
		spec.Grace = defaultGrace
	}
	log, err := os.OpenFile(spec.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: open its log: %w", spec.Name, err)
	}
	defer log.Close()

	cmd := exec.Command(spec.Path, spec.Args...)
	cmd.Env = append(os.Environ(), spec.Env...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = spec.Dir, log, log
	// A session of its own: the terminal's interrupt reaches the rig alone, which then ends things in order, and one
	// signal to the group reaches the program's own children too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if !keep {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	if err := spawn(spec.NetNS, cmd); err != nil {
		return nil, fmt.Errorf("start %s (%s): %w", spec.Name, filepath.Base(spec.Path), err)
	}
	p := &Process{Spec: spec, PID: cmd.Process.Pid, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// spawner is the one thread that all programs are forked from. The kernel sends a child's parent-death signal when
// the *thread* that forked it ends (prctl(2), PR_SET_PDEATHSIG), so that thread must live as long as the rig; and since
// it does nothing else, it may stay in whichever network namespace it entered last.
var spawner = sync.OnceValue(func() chan<- spawnRequest {
	requests := make(chan spawnRequest)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open(selfNetNS)
		for r := range requests {
			if err != nil {
				r.result <- err
				continue
			}
			ns := r.netns
			if ns == "" {
				ns = fmt.Sprintf("/proc/self/fd/%d", home.Fd())
			}
			if err := enter(ns); err != nil {
				r.result <- err
				continue
			}
			r.result <- r.cmd.Start()
		}
	}()
	return requests
})

type spawnRequest struct {
	netns  string
	cmd    *exec.Cmd
	result chan error
}

func spawn(netns string, cmd *exec.Cmd) error {
	r := spawnRequest{netns: netns, cmd: cmd, result: make(chan error, 1)}
	spawner() <- r
	return <-r.result
}

// Run runs a short command inside the network namespace at netns until it ends, and returns its error. The caller sets
// the command's files; a context belongs to exec.CommandContext. The command dies with the rig.
func Run(netns string, cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := spawn(netns, cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// errStillRunning is what stopping returns for a process that outlived SIGKILL for a while, which the kernel allows
// only while it hangs in a system call.
var errStillRunning = errors.New("still running after SIGKILL")

// Stop ends the program and everything in its process group: SIGTERM, then SIGKILL after its grace or when ctx is done.
// A program that has ended already is no error.
func (p *Process) Stop(ctx context.Context) error {
	if err := terminate(ctx, p.PID, p.done, p.Grace); err != nil {
		return fmt.Errorf("stop %s (pid %d): %w", p.Name, p.PID, err)
	}
	return nil
}

// terminate signals the process group pid until done is closed.
func terminate(ctx context.Context, pid int, done <-chan struct{}, grace time.Duration) error {
	for _, step := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{{syscall.SIGTERM, grace}, {syscall.SIGKILL, killWait}} {
		select {
		case <-done:
			return nil
		default:
		}
		if err := syscall.Kill(-pid, step.signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
		timer := time.NewTimer(step.wait)
		defer timer.Stop()
		expired := timer.C
		cancelled := ctx.Done()
		if step.signal == syscall.SIGKILL {
			cancelled = nil // the last resort is waited for in any case
		}
		select {
		case <-done:
			return nil
		case <-expired:
		case <-cancelled:
		}
	}
	return errStillRunning
}

// killWait is how long a killed process may take to vanish: memory of hundreds of MiB is freed on a busy machine.
const killWait = time.Minute
