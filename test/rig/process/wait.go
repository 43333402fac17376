package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// Progress hears one line of text about what the rig does or waits for. Nil is silence.
type Progress func(line string)

// Sayf formats a line.
func (p Progress) Sayf(format string, args ...any) {
	if p != nil {
		p(fmt.Sprintf(format, args...))
	}
}

const (
	pollEvery      = 50 * time.Millisecond // at first; a loopback probe costs well under a millisecond
	pollPart       = 10                    // later, an n-th of what has been waited for so far: others need the processor
	pollMost       = 300 * time.Millisecond
	remindEvery    = 5 * time.Second  // a person wonders what is going on after about that long
	attemptTimeout = 15 * time.Second // one probe; an answer that takes longer is none
)

// errGone marks a wait that ended because the process it was about has ended.
var errGone = errors.New("ended")

// Wait calls cond until it returns nil, and tells progress every few seconds what it waits for and why it is not there
// yet. It returns nil, or ctx's error with the last answer of cond. The context of one call of cond ends after seconds.
func Wait(ctx context.Context, progress Progress, what string, cond func(context.Context) error) error {
	return wait(ctx, nil, progress, what, cond)
}

// wait waits until cond holds, ctx is done, or gone is closed. Each of the latter two also ends a call of cond that
// hangs.
func wait(ctx context.Context, gone <-chan struct{}, progress Progress, what string,
	cond func(context.Context) error,
) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-gone:
			cancel(errGone)
		case <-ctx.Done():
		}
	}()
	begun := time.Now()
	poll := time.NewTimer(0)
	defer poll.Stop()
	reminded := begun
	var last error
	for {
		poll.Reset(min(max(pollEvery, time.Since(begun)/pollPart), pollMost))
		err := attempt(ctx, cond)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil { // one that was cut off at the end says less than the one before
			last = err
		}
		if time.Since(reminded) > remindEvery {
			progress.Sayf("still waiting for %s (%s): %v", what, since(begun), last)
			reminded = time.Now()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w after %s: %w", what, context.Cause(ctx), since(begun), last)
		case <-poll.C:
		}
	}
}

func attempt(ctx context.Context, cond func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	return cond(ctx)
}

func since(begun time.Time) time.Duration { return time.Since(begun).Round(100 * time.Millisecond) }

// WaitReady waits for cond like Wait, but gives up at once when the program has ended. The error then says how it
// ended, and carries the last lines of its log.
func (p *Process) WaitReady(ctx context.Context, progress Progress, cond func(context.Context) error) error {
	err := wait(ctx, p.done, progress, p.Name, cond)
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w\n%s (%s)", err, p.outcome(), p.logTail())
}

func (p *Process) outcome() string {
	select {
	case <-p.done:
		if p.err == nil {
			return p.Name + " ended by itself with exit code 0"
		}
		return fmt.Sprintf("%s ended: %v", p.Name, p.err)
	default:
		return fmt.Sprintf("%s is running (pid %d) but not ready", p.Name, p.PID)
	}
}

// tailBytes and tailLines bound what an error quotes of a log.
const (
	tailBytes = 4096
	tailLines = 12
)

// logTail returns the last lines of the program's log, indented, under its path.
func (p *Process) logTail() string {
	text, err := tail(p.Log, tailBytes)
	if err != nil {
		return fmt.Sprintf("log %s: %v", p.Log, err)
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	lines = lines[max(0, len(lines)-tailLines):]
	return fmt.Sprintf("log %s ends with:\n    %s", p.Log, strings.Join(lines, "\n    "))
}

func tail(path string, n int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.NewSectionReader(f, max(0, size-n), n))
	if cut := bytes.IndexByte(text, '\n'); size > n && cut >= 0 {
		text = text[cut+1:]
	}
	return text, err
}
