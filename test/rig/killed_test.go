package rig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"floatip.io/floatip/test/rig/lan"
	"floatip.io/floatip/test/rig/process"
)

// childOf names the folder in which a child of TestKilled makes its rig.
const childOf = "FLOATIP_TEST_KILLED"

// TestKilledChild is the program that TestKilled kills. It makes of a rig what survives a program: the network's namespaces, a
// process in one of them, as guests and containers are, a mount of a node, folders and files; and a process of the group.
func TestKilledChild(t *testing.T) {
	parent := os.Getenv(childOf)
	if parent == "" {
		return
	}
	r := &Rig{opts: Options{Nodes: 1}}
	if err := errors.Join(r.open(parent), r.startLAN(t.Context())); err != nil {
		t.Fatal(err)
	}
	node := r.LAN.Nodes[0]
	guest := exec.Command("nsenter", "--net="+node.Namespace, "sleep", "1000")
	guest.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // else the kernel would end it
	mount := filepath.Join(nodeDir(r.Dir, node.Name), "pods", "volume")
	_, err := r.group.Start(process.Spec{
		Name: "server", Path: "/bin/sleep", Args: []string{"1000"}, NetNS: node.Namespace, Log: filepath.Join(r.Dir, "log"),
	})
	if err := errors.Join(err, guest.Start(), os.MkdirAll(mount, 0o755), unix.Mount("tmpfs", mount, "tmpfs", 0, "size=64k")); err != nil {
		t.Fatal(err)
	}
	fmt.Println("rig", r.Dir)
	<-t.Context().Done() // never: it is killed
}

// child starts TestKilledChild, and returns it with its rig.
func child(t *testing.T, parent string) (*exec.Cmd, *Rig) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestKilledChild$")
	cmd.Env = append(os.Environ(), childOf+"="+parent)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	for lines := bufio.NewScanner(out); lines.Scan(); {
		dir, found := strings.CutPrefix(lines.Text(), "rig ")
		if !found {
			t.Log(lines.Text())
			continue
		}
		t.Cleanup(func() { // for a test that fails
			_ = cmd.Process.Kill()
			if err := reap(context.Background(), dir); err != nil {
				t.Error(err)
			}
		})
		r := &Rig{Dir: dir}
		if r.LAN, err = lan.Open(dir); err != nil {
			t.Fatal(err)
		}
		return cmd, r
	}
	t.Fatal("the child made no rig")
	return nil, nil
}

// A rig goes away with its program when that is killed, without anybody starting another one; the rig of another program,
// made in the same way, stays until that ends.
func TestKilled(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	parent := t.TempDir()
	first, gone := child(t, parent)
	second, stays := child(t, parent)
	before, err := stays.Leftovers()
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{stays.Dir, "/run/netns/", "mount "} {
		if !strings.Contains(strings.Join(before, "\n"), what) {
			t.Errorf("the child made no %s, so this shows little:\n%s", what, strings.Join(before, "\n"))
		}
	}
	for _, step := range []struct {
		program *exec.Cmd
		rig     *Rig
	}{{first, gone}, {second, stays}} {
		pids, err := step.rig.LAN.Processes()
		if err != nil || len(pids) < 2 {
			t.Errorf("processes %v run in the namespaces (%v), want guest and server", pids, err)
		}
		if err := step.program.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		await(ctx, t, "the killed program's rig to go away", func() error {
			left, err := step.rig.Leftovers()
			if len(left) > 0 {
				err = errors.Join(err, errors.New(strings.Join(left, "\n")))
			}
			for _, pid := range pids {
				if state := stateOf(pid); state != "" && state != "Z" {
					err = errors.Join(err, fmt.Errorf("process %d is in state %s", pid, state))
				}
			}
			return err
		})
		if step.rig == gone {
			if after, err := stays.Leftovers(); err != nil || len(after) != len(before) {
				t.Errorf("of the other rig there is (%v):\n%s\nwas:\n%s", err, strings.Join(after, "\n"), strings.Join(before, "\n"))
			}
		}
	}
}

// stateOf returns the letter of a process's state, "" if there is none (proc_pid_stat(5)).
func stateOf(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	return strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[0]
}
