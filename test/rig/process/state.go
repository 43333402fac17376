package process

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"
)

// State is what the state file holds: all that must be undone when the rig cannot do it itself.
type State struct {
	Processes []Running `json:"processes,omitempty"`
	// NetNS are the names of namespaces under /run/netns.
	NetNS []string `json:"netns,omitempty"`
	// Dirs are folders to remove with all they hold.
	Dirs []string `json:"dirs,omitempty"`
}

// Running is one process of the state file. The start time tells it from a later process with the same number.
type Running struct {
	Name  string `json:"name"`
	PID   int    `json:"pid"`
	Start string `json:"start"` // clock ticks after boot, field 22 of /proc/PID/stat
	NetNS string `json:"netns,omitempty"`
	Log   string `json:"log,omitempty"`
	// Grace is the time between SIGTERM and SIGKILL, in nanoseconds.
	Grace time.Duration `json:"grace"`
}

// ReadState reads a state file. A missing file is an empty state.
func ReadState(path string) (State, error) {
	var s State
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("read %s: %w", path, err)
	}
	return s, nil
}

// write replaces the file in one step, so that a crash leaves the old or the new state.
func (s State) write(path string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// empty says whether nothing is left to undo.
func (s State) empty() bool { return len(s.Processes)+len(s.NetNS)+len(s.Dirs) == 0 }

// Alive says whether the process still runs: a process with its number and its start time that is no zombie.
func (r Running) Alive() bool {
	state, start, err := stat(r.PID)
	return err == nil && start == r.Start && state != "Z" && state != "X"
}

// stat returns the state and the start time of a process, fields 3 and 22 of /proc/PID/stat (proc_pid_stat(5)).
func stat(pid int) (state, start string, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", "", err
	}
	// Field 2 is the program's name in parentheses and may itself hold spaces and parentheses.
	rest := text[bytes.LastIndexByte(text, ')')+1:]
	fields := strings.Fields(string(rest))
	if len(fields) < 20 {
		return "", "", fmt.Errorf("/proc/%d/stat: %d fields after the name, want at least 20", pid, len(fields))
	}
	return fields[0], fields[19], nil
}
