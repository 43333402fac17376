package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"floatip.io/floatip/test/rig/reaper"
)

// Group starts processes and notes everything that has to go away again in a state file. Its methods may be called
// from many goroutines.
type Group struct {
	path string // the state file
	keep bool

	mu      sync.Mutex // guards what follows, and the file
	state   State
	running []*Process // in order of start
}

// NewGroup makes a group with its state in the file at path, whose folder is made if needed. With keep, processes
// survive the rig and Down ends them later; without, they die with the rig, whatever ends it.
// A state file that names living processes is refused: that rig is up.
func NewGroup(path string, keep bool) (*Group, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	old, err := ReadState(path)
	if err != nil {
		return nil, err
	}
	for _, r := range old.Processes {
		if r.Alive() {
			return nil, fmt.Errorf("%s says that %s (pid %d) is running: take that rig down first", path, r.Name, r.PID)
		}
	}
	// What a dead rig left of namespaces and folders is still to be removed.
	g := &Group{path: path, keep: keep, state: State{NetNS: old.NetNS, Dirs: old.Dirs}}
	return g, g.state.write(path)
}

// killed stands for a state file whose program was killed.
var killed = reaper.Register("processes", func(ctx context.Context, path string) error { return Down(ctx, path, nil) })

// Guard has Down called when this program ends, however it ends. Without anything left by then, it does nothing.
func (g *Group) Guard() error {
	_, err := killed.Guard(g.path)
	return err
}

// StatePath is the file that Down wants.
func (g *Group) StatePath() string { return g.path }

// Start runs a program and notes it. A program that cannot be noted is ended again.
func (g *Group) Start(spec Spec) (*Process, error) {
	p, err := start(spec, g.keep)
	if err != nil {
		return nil, err
	}
	// A program that has ended already has no start time any more; nothing will have to end it.
	_, begun, _ := stat(p.PID)
	err = g.change(func(s *State) {
		s.Processes = append(s.Processes, Running{
			Name: spec.Name, PID: p.PID, Start: begun, NetNS: spec.NetNS, Log: spec.Log, Grace: p.Grace,
		})
		g.running = append(g.running, p)
	})
	if err != nil {
		return nil, errors.Join(err, p.Stop(context.Background()))
	}
	return p, nil
}

// AddNetNS notes a namespace under /run/netns, to be removed by Down. Note it before making it.
func (g *Group) AddNetNS(name string) error {
	return g.change(func(s *State) { s.NetNS = appendNew(s.NetNS, name) })
}

// RemoveNetNS forgets a namespace that is gone.
func (g *Group) RemoveNetNS(name string) error {
	return g.change(func(s *State) { s.NetNS = slices.DeleteFunc(s.NetNS, func(n string) bool { return n == name }) })
}

// AddDir notes a folder, to be removed by Down with all it holds.
func (g *Group) AddDir(path string) error {
	return g.change(func(s *State) { s.Dirs = appendNew(s.Dirs, path) })
}

func (g *Group) change(f func(*State)) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	f(&g.state)
	return g.state.write(g.path)
}

func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// Stop ends one process of the group and forgets it.
func (g *Group) Stop(ctx context.Context, p *Process) error {
	if err := p.Stop(ctx); err != nil {
		return err
	}
	return g.change(func(s *State) {
		g.running = slices.DeleteFunc(g.running, func(q *Process) bool { return q == p })
		s.Processes = slices.DeleteFunc(s.Processes, func(r Running) bool { return r.PID == p.PID })
	})
}

// StopAll ends the processes in reverse order of their start. Namespaces and folders stay: they are Down's.
func (g *Group) StopAll(ctx context.Context) error {
	g.mu.Lock()
	running := slices.Clone(g.running)
	g.mu.Unlock()
	var errs []error
	for _, p := range slices.Backward(running) {
		errs = append(errs, g.Stop(ctx, p))
	}
	return errors.Join(errs...)
}
