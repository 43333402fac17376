package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// runc runs containers with the runtime of that name.
type runc struct {
	root string // where it keeps its state
}

func (r runc) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "runc", append([]string{"--root", r.root}, args...)...)
}

func (r runc) do(ctx context.Context, args ...string) error {
	out, err := r.command(ctx, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("runc %s: %w: %s", args[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}

// start runs a container from its bundle with its output in the file at log, and returns once its first process runs.
// The channel gets its exit code, 128 and the signal's number if it was killed. The error is errNotStarted, with runc's
// own words, if there never was a process.
//
// In the foreground runc waits for the container; it does so in a session of its own, so that containers outlive the
// kubelet as they do on a real node.
func (r runc) start(ctx context.Context, id, bundle, log string, spec *specs.Spec) (<-chan int, error) {
	pid := filepath.Join(bundle, pidFile)
	if err := writeBundle(bundle, spec); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(pid); err != nil {
		return nil, err
	}
	output, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	complaints := filepath.Join(bundle, "runc.log")
	if err := os.RemoveAll(complaints); err != nil {
		return nil, err
	}
	cmd := r.command(context.Background(), "--log", complaints, "run", "--bundle", bundle, "--pid-file", pid, id)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("runc run: %w", err)
	}
	exit := make(chan int, 1)
	go func() {
		_ = cmd.Wait() // how it ended is in ProcessState
		exit <- cmd.ProcessState.ExitCode()
	}()
	return exit, awaitProcess(ctx, pid, complaints, exit)
}

// pidFile is the file in a bundle that exists while the container runs and holds the pid of its first process.
const pidFile = "pid"

// writeBundle writes what runc reads.
func writeBundle(bundle string, spec *specs.Spec) error {
	raw, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(bundle, "rootfs"), 0o755); err != nil {
		return err
	}
	// Any user of the container may report why it ended.
	return errors.Join(
		os.WriteFile(filepath.Join(bundle, "config.json"), raw, 0o600),
		os.WriteFile(filepath.Join(bundle, terminationLog), nil, 0o666),
		os.Chmod(filepath.Join(bundle, terminationLog), 0o666),
	)
}

// pidPoll is how often to look whether runc has started the process: a start takes about a tenth of a second.
const pidPoll = 5 * time.Millisecond

// errNotStarted means that a container's first process never ran.
var errNotStarted = errors.New("runc did not start the container")

// awaitProcess waits until runc has written the pid of the container's first process.
func awaitProcess(ctx context.Context, pid, complaints string, exit chan int) error {
	ticker := time.NewTicker(pidPoll)
	defer ticker.Stop()
	for {
		ended := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case code := <-exit:
			exit <- code // for the caller, if the process ran after all
			ended = true
		case <-ticker.C:
		}
		if _, err := os.Stat(pid); err == nil {
			return nil
		}
		if ended {
			text, _ := os.ReadFile(complaints)
			return fmt.Errorf("%w: %s", errNotStarted, tail(text))
		}
	}
}

// signal sends a signal to the container's first process. It is fine if the container is gone.
func (r runc) signal(ctx context.Context, id string, signal syscall.Signal) error {
	err := r.do(ctx, "kill", id, fmt.Sprint(int(signal)))
	if err != nil && (strings.Contains(err.Error(), "does not exist") || strings.Contains(err.Error(), "not running") ||
		strings.Contains(err.Error(), "process already finished")) {
		return nil
	}
	return err
}

// removals is how often a container is killed and waited for: runc itself gives it ten seconds to end (delete.go, killContainer),
// which an emulator on a busy machine has exceeded.
const removals = 6

// remove forgets the container, after it has killed it if it still runs. It is fine if there is none.
func (r runc) remove(ctx context.Context, id string) (err error) {
	for range removals {
		if err = r.do(ctx, "delete", "--force", id); err == nil || !strings.Contains(err.Error(), "container init still running") {
			return err
		}
	}
	return err
}

// exec runs a command in the container, with the container's own environment.
func (r runc) exec(ctx context.Context, id string, command []string) error {
	return r.do(ctx, append([]string{"exec", id}, command...)...)
}

// list returns the ids of all containers of this node.
func (r runc) list(ctx context.Context) ([]string, error) {
	if _, err := os.Stat(r.root); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	out, err := r.command(ctx, "list", "--quiet").Output()
	if err != nil {
		return nil, fmt.Errorf("runc list: %w", err)
	}
	return strings.Fields(string(out)), nil
}
