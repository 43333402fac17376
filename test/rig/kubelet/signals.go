package kubelet

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// handlerWithin bounds the wait for a program that never handles SIGTERM. Those of the rig's images do, some milliseconds
// after their start.
const handlerWithin = 5 * time.Second

// awaitHandler waits until the container whose first process is in the file handles SIGTERM. The kernel drops signals for
// the first process of a PID namespace that it does not handle (pid_namespaces(7)): one that comes before the program
// has begun is lost, and the pod ends when its grace period is over, a minute for a launcher.
func awaitHandler(ctx context.Context, pidFile string) {
	raw, err := os.ReadFile(pidFile)
	if err != nil {
		return // it has ended
	}
	ctx, cancel := context.WithTimeout(ctx, handlerWithin)
	defer cancel()
	ticker := time.NewTicker(pidPoll)
	defer ticker.Stop()
	for {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%s/status", strings.TrimSpace(string(raw))))
		if err != nil || handles(string(status), syscall.SIGTERM) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// handles reads the status of a process (proc_pid_status(5)): runc's own, before it becomes the program, does not count.
func handles(status string, signal syscall.Signal) bool {
	fields := map[string]string{}
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	caught, err := strconv.ParseUint(fields["SigCgt"], 16, 64)
	return err == nil && caught&(1<<(signal-1)) != 0 && !strings.HasPrefix(fields["Name"], "runc:[")
}
