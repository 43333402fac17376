package kubevirt19

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "kubevirt.io/api/core/v1"

	"floatip.io/floatip/nat"
	"floatip.io/floatip/test/lab"
	"floatip.io/floatip/webhook/kubevirt"
)

// patience bounds each wait; a start takes some milliseconds on an idle machine.
const patience = time.Minute

// mainModule is floatip's own, seen from this package.
const mainModule = "../.."

// recorded is where the tests of floatip's rules have KubeVirt's nft commands from.
const recorded = mainModule + "/nat/testdata/kubevirt"

// update writes what TestRecordedCommands compares with.
var update = flag.Bool("update", false, "record KubeVirt's nft commands instead of comparing them")

// What is recorded of KubeVirt v1.9.0 is what it does, and without port ranges it does what v1.8.4 did.
func TestRecordedCommands(t *testing.T) {
	t.Parallel()
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			commands, err := v.setup(lab.New(t, "pod"), func(int) {})
			if err != nil {
				t.Fatal(err)
			}
			if len(commands) != v.commands {
				t.Errorf("KubeVirt ran nft %d times, want %d", len(commands), v.commands)
			}
			path := filepath.Join(recorded, "v1.9.0-"+name+".txt")
			if v.like != "" {
				path = filepath.Join(recorded, "v1.8.4-"+v.like+".txt")
			}
			have := strings.Join(commands, "\n") + "\n"
			if *update && v.like == "" {
				if err := os.WriteFile(path, []byte(have), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(have, "\n")); diff != "" {
				t.Errorf("KubeVirt's commands (-recorded +run):\n%s", diff)
			}
		})
	}
}

// What a VM says in KubeVirt's words is read by the webhook's view of it.
func TestPortRangesAreSpelledAlike(t *testing.T) {
	raw, err := json.Marshal(v1.Interface{Name: "default", Ports: singles, PortRanges: ranges})
	if err != nil {
		t.Fatal(err)
	}
	var have kubevirt.Interface
	if err := json.Unmarshal(raw, &have); err != nil {
		t.Fatal(err)
	}
	var want []kubevirt.PortRange
	for _, r := range ranges {
		want = append(want, kubevirt.PortRange{Protocol: r.Protocol, Start: r.Start, End: r.End})
	}
	if diff := cmp.Diff(want, have.PortRanges); diff != "" || len(have.Ports) != len(singles) {
		t.Errorf("%d ports, ranges (-want +got):\n%s", len(have.Ports), diff)
	}
}

// The sidecar may start before KubeVirt's set-up, between any two of its nft commands, or after: KubeVirt succeeds, its
// chains are what they are without the sidecar, and the sidecar's are what its description says.
func TestSidecarStartsAtAnyMoment(t *testing.T) {
	t.Parallel()
	program := build(t)
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			alone := lab.New(t, "alone")
			if _, err := v.setup(alone, func(int) {}); err != nil {
				t.Fatal(err)
			}
			for _, moment := range v.moments(name) {
				pod := lab.New(t, "pod")
				var sidecar *running
				start := func(done int) {
					if done == moment {
						sidecar = startSidecar(t, program, pod, v)
					}
				}
				commands, err := v.setup(pod, start)
				if err != nil {
					t.Fatalf("KubeVirt's set-up with the sidecar started after %d commands: %v", moment, err)
				}
				start(len(commands))
				sidecar.holds(t, pod, v)
				sidecar.end(t)
				if err := sidecar.kernel.Remove(); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(alone.Ruleset(t), pod.Ruleset(t)); diff != "" {
					t.Errorf("KubeVirt's rules, the sidecar having started after %d commands (-alone +beside it):\n%s", moment, diff)
				}
			}
		})
	}
}

// moments are numbers of commands after which to start: all of them where there are ranges and nothing else, otherwise
// some of each kind.
func (v variant) moments(name string) (all []int) {
	if name != "port-ranges" {
		return []int{0, 1, v.commands / 2, v.commands - 1, v.commands}
	}
	for n := range v.commands + 1 {
		all = append(all, n)
	}
	return all
}

// build makes floatip-sidecar.
func build(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "floatip-sidecar")
	cmd := exec.Command("go", "build", "-o", program, "./cmd/floatip-sidecar")
	cmd.Dir = mainModule
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, output)
	}
	return program
}

// running is a sidecar, and what reads the rules of its pod.
type running struct {
	cmd    *exec.Cmd
	log    string
	kernel *nat.Kernel
}

// startSidecar returns once the sidecar's rules stand.
func startSidecar(t *testing.T, program string, pod *lab.Namespace, v variant) *running {
	t.Helper()
	dir, err := os.MkdirTemp("", "kv19") // the path of a socket has 108 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	description, err := v.description().Encode()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "nat.json")
	if err := os.WriteFile(file, []byte(description), 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	r := &running{cmd: exec.Command(program, "run", "--nat-file="+file, "--socket="+filepath.Join(dir, "s")), log: log.Name()}
	r.cmd.Stderr = log
	if r.kernel, err = nat.Open(nat.Config{NetNS: pod.FD()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.kernel.Close() })
	if err := pod.Start(r.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.cmd.Process.Kill() })
	r.holds(t, pod, v)
	return r
}

// holds waits until the pod's kernel holds what the description says.
func (r *running) holds(t *testing.T, pod *lab.Namespace, v variant) {
	t.Helper()
	want := nat.Desired(v.description())
	var difference string
	defer func() {
		if t.Failed() {
			text, _ := os.ReadFile(r.log)
			t.Logf("%s\n%s", difference, text)
		}
	}()
	lab.Within(t, patience, "the sidecar's rules stand", func() bool {
		have, err := r.kernel.Read()
		difference = fmt.Sprint(want.Diff(have), err)
		return err == nil && want.Diff(have) == ""
	})
}

// end kills the sidecar, which leaves the rules in place.
func (r *running) end(t *testing.T) {
	t.Helper()
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = r.cmd.Wait() // it says that it was killed
}
