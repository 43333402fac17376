package kernel

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// Tests are tests of a package, and the machine that they run on.
type Tests struct {
	// Package is the folder of the package, below the module's.
	Package string
	// Names are the tests, or subtests, as go test prints them. Each must be there.
	Names []string
	// Without are modules that the kernel shall not have.
	Without []string
	// Options are added to the kernel's command line.
	Options string
	// Modules are loaded before the tests run. Others are when the kernel asks for them.
	Modules []string
	// Programs are paths of programs that the tests need besides those of nat/node/nodetest, Files other files, by their names
	// in the machine.
	Programs []string
	Files    map[string]string
}

// Tag is the build tag of tests that run nowhere else.
const Tag = "secondkernel"

// A test finds the files of its package, and of those above it, where go test has them.
const module, testdata = "module", "testdata"

// patience bounds a machine's life.
const patience = 10 * time.Minute

// programs are those that nat/node/nodetest runs, and what their Debian packages are.
var programs = map[string]string{"ip": "iproute2", "bridge": "iproute2", "nft": "nftables"}

// On runs the tests, each as a subtest. A test that the program skips fails, as does a program without a test.
func (s Tests) On(t *testing.T, root, cacheDir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := newMachine(ctx, cacheDir, s.Without...)
	if err != nil {
		t.Fatal(err)
	}
	m.options = s.Options
	if err := s.equip(ctx, m, root, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	o := m.run(ctx, t.TempDir(), s.command())
	t.Logf("%s on %s %s: %s with the machine's start and end", s.Package, m.kernel.Release, s.Options, time.Since(began).Round(time.Millisecond))
	results, err := read(t.Context(), o.output)
	if err != nil {
		t.Error(err)
	}
	results.tell(t)
	for _, name := range s.Names {
		if results.find(strings.Split(name, "/")) == nil {
			t.Errorf("%s did not run", name)
		}
	}
	if o.err != nil {
		t.Error(o.err)
	} else if o.status != 0 && !t.Failed() {
		t.Errorf("the test program ended with status %d:\n%s", o.status, o.output)
	}
}

// equip puts the test program, its package's files and what it runs into the machine.
func (s Tests) equip(ctx context.Context, m machine, root, folder string) error {
	program := filepath.Join(folder, "program")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-tags", Tag, "-ldflags=-w", "-o", program, "./"+s.Package)
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", build, err, said)
	}
	if err := m.tree.Copy(filepath.Join(module, s.Package, "program"), program, 0o755); err != nil {
		return err
	}
	if err := m.tree.Copy("etc/protocols", "/etc/protocols", 0o644); err != nil { // for nft
		return err
	}
	for folder := s.Package; folder != "."; folder = filepath.Dir(folder) {
		if err := m.tree.CopyAll(filepath.Join(module, folder, testdata), filepath.Join(root, folder, testdata)); err != nil {
			return err
		}
	}
	for name, debianPackage := range programs {
		if err := m.tree.Program(name, debianPackage); err != nil {
			return err
		}
	}
	for _, path := range s.Programs {
		if err := m.tree.Program(path, "-y; make packages"); err != nil {
			return err
		}
	}
	for name, path := range s.Files {
		if err := m.tree.Copy(name, path, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// command is what the machine's shell runs.
func (s Tests) command() string {
	var lines strings.Builder
	for _, module := range s.Modules {
		fmt.Fprintf(&lines, "modprobe %s || exit 1\n", module)
	}
	fmt.Fprintf(&lines, "export FLOATIP_TEST_ROOT=1\ncd /%s\nexec ./program -test.v=test2json -test.run '%s' -test.timeout %s\n",
		filepath.Join(module, s.Package), pattern(s.Names), patience)
	return lines.String()
}

// pattern matches the names and no others, as go test -run has it.
func pattern(names []string) string {
	var whole []string
	for _, name := range names {
		whole = append(whole, "^"+strings.ReplaceAll(regexp.QuoteMeta(name), "/", "$/^")+"$")
	}
	return strings.Join(whole, "|")
}

// result is a test with its subtests, in the order of their beginnings. The root has the output that belongs to no test.
type result struct {
	name     string
	verdict  string // "pass", "fail", "skip"; "" where it did not end
	output   strings.Builder
	children []*result
}

// read makes the results of what a test program printed.
func read(ctx context.Context, output []byte) (*result, error) {
	convert := exec.CommandContext(ctx, "go", "tool", "test2json")
	convert.Stdin = bytes.NewReader(output)
	events, err := convert.Output()
	root := &result{}
	if err != nil {
		return root, fmt.Errorf("%s: %w", convert, err)
	}
	tests := map[string]*result{"": root}
	for lines := json.NewDecoder(bytes.NewReader(events)); lines.More(); {
		var event struct{ Action, Test, Output string } // go doc test2json
		if err := lines.Decode(&event); err != nil {
			return root, fmt.Errorf("%s: %w", convert, err)
		}
		test := tests[event.Test]
		if test == nil {
			parent, name := "", event.Test
			if i := strings.LastIndex(name, "/"); i >= 0 && tests[name[:i]] != nil {
				parent, name = name[:i], name[i+1:]
			}
			test = &result{name: name}
			tests[event.Test] = test
			tests[parent].children = append(tests[parent].children, test)
		}
		switch event.Action {
		case "output":
			test.output.WriteString(event.Output)
		case "pass", "fail", "skip":
			test.verdict = event.Action
		}
	}
	return root, nil
}

// find returns the test below r with this path of names, nil if there is none.
func (r *result) find(path []string) *result {
	for _, name := range path {
		i := slices.IndexFunc(r.children, func(child *result) bool { return child.name == name })
		if i < 0 {
			return nil
		}
		r = r.children[i]
	}
	return r
}

// fault says what is wrong with a test, or with the root, "" for nothing.
func (r *result) fault() string {
	switch {
	case r.name == "" && len(r.children) == 0:
		return "no test ran"
	case r.name == "" || r.verdict == "pass":
		return ""
	case r.verdict == "fail":
		return "failed"
	case r.verdict == "skip":
		return "skipped, where nothing may be"
	}
	return "did not end"
}

// tell makes the results those of t, each child a subtest with its log.
func (r *result) tell(t *testing.T) {
	t.Helper()
	if log := r.output.String(); log != "" {
		t.Log("\n" + log)
	}
	for _, child := range r.children {
		t.Run(child.name, child.tell)
	}
	if fault := r.fault(); fault != "" && !t.Failed() {
		t.Error(fault)
	}
}
