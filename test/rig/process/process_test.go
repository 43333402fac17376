package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestGroup(t *testing.T) {
	newGroup := func(t *testing.T) (*Group, string) {
		t.Helper()
		dir := t.TempDir()
		g, err := NewGroup(filepath.Join(dir, "state.json"), false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := Down(context.Background(), g.StatePath(), nil); err != nil {
				t.Error(err)
			}
		})
		return g, dir
	}
	shell := func(t *testing.T, g *Group, dir, script string) *Process {
		t.Helper()
		p, err := g.Start(Spec{
			Name: "shell", Path: "/bin/sh", Args: []string{"-c", script}, Dir: dir, Log: filepath.Join(dir, "log"),
			Grace: 50 * time.Millisecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	exists := func(path string) func(context.Context) error {
		return func(context.Context) error {
			_, err := os.Stat(path)
			return err
		}
	}

	t.Run("a program that ends before it is ready is an error with its last words", func(t *testing.T) {
		g, dir := newGroup(t)
		p := shell(t, g, dir, "echo no such flag; exit 3")
		err := p.WaitReady(t.Context(), nil, exists(filepath.Join(dir, "never")))
		if !errors.Is(err, errGone) {
			t.Fatalf("got %v, want errGone", err)
		}
		for _, want := range []string{"shell ended: exit status 3", "no such flag"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error does not say %q: %v", want, err)
			}
		}
	})

	t.Run("a program that ignores SIGTERM is killed, with its children", func(t *testing.T) {
		g, dir := newGroup(t)
		p := shell(t, g, dir, "trap '' TERM; sh -c 'echo $$ > child; exec sleep 1000' & wait; wait; sleep 1000")
		if err := p.WaitReady(t.Context(), nil, readable(filepath.Join(dir, "child"))); err != nil {
			t.Fatal(err)
		}
		if err := p.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		child := pidIn(t, filepath.Join(dir, "child"))
		if err := Wait(t.Context(), nil, "the child to end", func(context.Context) error {
			if err := syscall.Kill(child, 0); !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("signal 0: %v", err)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	})

	t.Run("the state file names what runs, until it is stopped", func(t *testing.T) {
		g, dir := newGroup(t)
		p := shell(t, g, dir, "exec sleep 1000")
		state, err := ReadState(g.StatePath())
		if err != nil {
			t.Fatal(err)
		}
		if len(state.Processes) != 1 || state.Processes[0].PID != p.PID || !state.Processes[0].Alive() {
			t.Errorf("state %+v, want the living process %d", state, p.PID)
		}
		if _, err := NewGroup(g.StatePath(), false); err == nil {
			t.Error("a second rig on the same state file was not refused")
		}
		if err := g.StopAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		if state, err = ReadState(g.StatePath()); err != nil || len(state.Processes) != 0 {
			t.Errorf("after the stop: %+v, %v", state, err)
		}
	})
}

// readable is a condition that holds when a file has a first line.
func readable(path string) func(context.Context) error {
	return func(context.Context) error {
		text, err := os.ReadFile(path)
		if err == nil && len(text) == 0 {
			err = errors.New("it is empty")
		}
		return err
	}
}

func pidIn(t *testing.T, path string) int {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// A rig that is killed leaves nothing: children die with it, unless they are kept, and then Down finds them.
func TestSurvivorsOfAKilledRig(t *testing.T) {
	for _, keep := range []bool{false, true} {
		t.Run(fmt.Sprintf("keep %v", keep), func(t *testing.T) {
			dir := t.TempDir()
			statePath := filepath.Join(dir, "state.json")
			rig := exec.Command(os.Args[0])
			rig.Env = append(os.Environ(), rigEnv+"="+dir, fmt.Sprintf("%s=%v", keepEnv, keep))
			if err := rig.Start(); err != nil {
				t.Fatal(err)
			}
			var child Running
			err := Wait(t.Context(), nil, "the rig to start its program", func(context.Context) error {
				state, err := ReadState(statePath)
				if err != nil || len(state.Processes) == 0 {
					return fmt.Errorf("state %+v: %w", state, err)
				}
				child = state.Processes[0]
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := rig.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := rig.Wait(); err == nil {
				t.Fatal("the rig was not killed")
			}
			if keep && !child.Alive() {
				t.Fatal("a kept program died with the rig")
			}
			if !keep {
				if err := child.vanish(t.Context()); err != nil {
					t.Error(err)
				}
			}
			if err := Down(t.Context(), statePath, nil); err != nil {
				t.Fatal(err)
			}
			if child.Alive() {
				t.Error("the program survived Down")
			}
			if _, err := os.Stat(filepath.Join(dir, "data")); !os.IsNotExist(err) {
				t.Errorf("the noted folder is still there: %v", err)
			}
			if _, err := os.Stat(statePath); !os.IsNotExist(err) {
				t.Errorf("the state file is still there: %v", err)
			}
		})
	}
}

// The test's own program plays the rig when these are set: a folder, and whether programs are kept.
const (
	rigEnv  = "PROCESS_TEST_RIG"
	keepEnv = "PROCESS_TEST_KEEP"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(rigEnv); dir != "" {
		if err := playRig(dir, os.Getenv(keepEnv) == "true"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		select {} // until killed
	}
	os.Exit(m.Run())
}

func playRig(dir string, keep bool) error {
	g, err := NewGroup(filepath.Join(dir, "state.json"), keep)
	if err != nil {
		return err
	}
	data := filepath.Join(dir, "data")
	if err := errors.Join(os.Mkdir(data, 0o755), g.AddDir(data)); err != nil {
		return err
	}
	_, err = g.Start(Spec{Name: "sleep", Path: "/bin/sleep", Args: []string{"1000"}, Log: filepath.Join(dir, "log")})
	return err
}

// A process number that was given to another program is left alone.
func TestDownSparesAReusedNumber(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	self := State{Processes: []Running{{Name: "reused", PID: os.Getpid(), Start: "1"}}}
	if err := self.write(path); err != nil {
		t.Fatal(err)
	}
	if err := Down(t.Context(), path, nil); err != nil { // would end this test
		t.Fatal(err)
	}
}

// Programs run, and connections are made, in the namespace that they were asked to; the caller's stays as it is.
func TestNetworkNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		const reason = "a network namespace of its own needs root"
		if os.Getenv("FLOATIP_TEST_ROOT") == "1" {
			t.Fatal(reason)
		}
		t.Skip(reason)
	}
	dir := t.TempDir()
	g, err := NewGroup(filepath.Join(dir, "state.json"), false)
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("floatip-process-%d", os.Getpid())
	if err := g.AddNetNS(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Down(context.Background(), g.StatePath(), nil); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(netnsDir, name)); !os.IsNotExist(err) {
			t.Errorf("Down left the namespace's name: %v", err)
		}
	})
	for _, args := range [][]string{{"netns", "add", name}, {"-n", name, "link", "set", "lo", "up"}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	path := filepath.Join(netnsDir, name)
	want := namespaceOf(t, path)

	for _, tc := range []struct{ netns, want string }{{path, want}, {"", namespaceOf(t, selfNetNS)}, {path, want}} {
		var out bytes.Buffer
		cmd := exec.CommandContext(t.Context(), "readlink", "/proc/self/ns/net")
		cmd.Stdout = &out
		if err := Run(tc.netns, cmd); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tc.want, strings.TrimSpace(out.String())); diff != "" {
			t.Errorf("program started in %q (-want +got):\n%s", tc.netns, diff)
		}
	}

	var listener net.Listener
	if err := InNetNS(path, func() (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := Dialer(path)(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if conn, err := Dialer("")(t.Context(), "tcp", listener.Addr().String()); err == nil {
		conn.Close()
		t.Error("the listener is reachable from outside of its namespace")
	}
}

// namespaceOf returns a namespace's identity as /proc writes it: net:[4026531840].
func namespaceOf(t *testing.T, path string) string {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("net:[%d]", st.Ino)
}
