package virthandler_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "kubevirt.io/api/core/v1"

	"floatip.io/floatip/test/kubevirt/virthandler"
)

// variant is one way in which KubeVirt makes its NAT tables (network/setup/netpod/masquerade). Port ranges came with v1.9:
// test/kubevirt19 has them.
type variant struct {
	link      string // of the pod
	addresses []string
	change    func(*v1.VirtualMachineInstance)
	bindings  []binding
	commands  int // how often KubeVirt runs nft
}

// binding is a part of the sidecar's input.
type binding struct {
	Floating     string     `json:"floating"`
	Fixed        string     `json:"fixed"`
	Gateway      string     `json:"gateway"`
	GuestNetwork string     `json:"guestNetwork"`
	Ports        []portItem `json:"ports,omitempty"`
}

type portItem struct {
	Protocol string `json:"protocol"`
	Port     int    `json:"port"`
}

const (
	pod4 = "100.0.1.2/24"
	pod6 = "fd00:100::1:2/64"
)

var (
	binding4 = binding{Floating: "192.168.100.50", Fixed: "10.0.2.2", Gateway: "10.0.2.1", GuestNetwork: "10.0.2.0/24"}
	binding6 = binding{Floating: "2001:db8::50", Fixed: "fd10:0:2::2", Gateway: "fd10:0:2::1", GuestNetwork: "fd10:0:2::/120"}
)

func listPorts(vmi *v1.VirtualMachineInstance) {
	vmi.Spec.Domain.Devices.Interfaces[0].Ports = []v1.Port{{Port: 22}, {Port: 80, Protocol: "TCP"}, {Port: 53, Protocol: "UDP"}}
}

var variants = map[string]variant{
	"no ports": {addresses: []string{pod4}, bindings: []binding{binding4}, commands: 13},
	"ports": {
		addresses: []string{pod4}, change: listPorts, commands: 19,
		bindings: []binding{{"192.168.100.50", "10.0.2.2", "10.0.2.1", "10.0.2.0/24", []portItem{{"TCP", 22}, {"TCP", 80}, {"UDP", 53}}}},
	},
	"legacy migration ports": {
		addresses: []string{pod4}, bindings: []binding{binding4}, commands: 15,
		change: func(vmi *v1.VirtualMachineInstance) { vmi.Status.MigrationTransport = "" },
	},
	"istio": {
		addresses: []string{pod4}, bindings: []binding{binding4}, commands: 15,
		change: func(vmi *v1.VirtualMachineInstance) {
			vmi.Annotations = map[string]string{"sidecar.istio.io/inject": "true"}
		},
	},
	"UDP ports": {
		addresses: []string{pod4}, commands: 16,
		change: func(vmi *v1.VirtualMachineInstance) {
			vmi.Spec.Domain.Devices.Interfaces[0].Ports = []v1.Port{{Port: 53, Protocol: "UDP"}, {Port: 5060, Protocol: "udp"}}
		},
		bindings: []binding{{"192.168.100.50", "10.0.2.2", "10.0.2.1", "10.0.2.0/24", []portItem{{"UDP", 53}, {"UDP", 5060}}}},
	},
	"ports, dual stack": {
		addresses: []string{pod4, pod6}, change: listPorts, commands: 38,
		bindings: []binding{
			{"192.168.100.50", "10.0.2.2", "10.0.2.1", "10.0.2.0/24", []portItem{{"TCP", 22}, {"TCP", 80}, {"UDP", 53}}},
			{"2001:db8::50", "fd10:0:2::2", "fd10:0:2::1", "fd10:0:2::/120", []portItem{{"TCP", 22}, {"TCP", 80}, {"UDP", 53}}},
		},
	},
	"istio, ports, dual stack": {
		addresses: []string{pod4, pod6}, bindings: []binding{binding4, binding6}, commands: 34,
		change: func(vmi *v1.VirtualMachineInstance) {
			listPorts(vmi)
			vmi.Annotations = map[string]string{"sidecar.istio.io/inject": "true"}
		},
	},
	"custom IPv6 network": {
		addresses: []string{pod4, pod6}, commands: 26,
		change: func(vmi *v1.VirtualMachineInstance) {
			vmi.Spec.Networks[0].Pod.VMIPv6NetworkCIDR = "fd20:1:2::/120"
		},
		bindings: []binding{
			binding4,
			{Floating: "2001:db8::50", Fixed: "fd20:1:2::2", Gateway: "fd20:1:2::1", GuestNetwork: "fd20:1:2::/120"},
		},
	},
	"dual stack": {addresses: []string{pod4, pod6}, bindings: []binding{binding4, binding6}, commands: 26},
	"IPv6":       {addresses: []string{pod6}, bindings: []binding{binding6}, commands: 13},
	"custom network": {
		addresses: []string{pod4}, commands: 13,
		change: func(vmi *v1.VirtualMachineInstance) {
			vmi.Spec.Networks[0].Pod.VMNetworkCIDR = "10.11.12.0/24"
		},
		bindings: []binding{{Floating: "192.168.100.50", Fixed: "10.11.12.2", Gateway: "10.11.12.1", GuestNetwork: "10.11.12.0/24"}},
	},
	"pod link not eth0": {
		link: "ovn-udn1", addresses: []string{pod4}, bindings: []binding{binding4}, commands: 13,
		change: func(vmi *v1.VirtualMachineInstance) {
			vmi.Status.Interfaces = []v1.VirtualMachineInstanceNetworkInterface{{Name: "default", PodInterfaceName: "ovn-udn1"}}
		},
	},
}

// The sidecar may start before KubeVirt's set-up, between any two of its nft commands, or after: KubeVirt succeeds, its
// chains are what they are without the sidecar, and the sidecar's are the same each time.
func TestSidecarStartsAtAnyMoment(t *testing.T) {
	needRoot(t)
	tools(t)
	env := newEnvironment(t)
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			alone := v.rules(t, env, never, nil)
			after := v.rules(t, env, v.commands+1, nil)
			if diff := cmp.Diff(alone, after.without("floatip_")); diff != "" {
				t.Errorf("KubeVirt's rules with the sidecar (-alone +with):\n%s", diff)
			}
			if len(after) <= len(alone) {
				t.Errorf("the sidecar added nothing to %d chains and sets", len(alone))
			}
			for _, command := range moments(name, v.commands) {
				if diff := cmp.Diff(after, v.rules(t, env, command, after)); diff != "" {
					t.Errorf("rules when the sidecar starts before command %d of %d (-after +then):\n%s", command, v.commands, diff)
				}
			}
		})
	}
}

// update writes what TestRecordedCommands compares with.
var update = flag.Bool("update", false, "record KubeVirt's nft commands instead of comparing them")

// recorded is where the tests of floatip's rules have KubeVirt's nft commands from: those of package nat drive flows
// beside each of these tables, and cannot use KubeVirt's packages (see go.mod).
const recorded = mainModule + "/nat/testdata/kubevirt"

// What is recorded of KubeVirt is what it does.
func TestRecordedCommands(t *testing.T) {
	needRoot(t)
	tools(t)
	env := newEnvironment(t)
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			_, commands := v.run(t, env, never, nil)
			path := filepath.Join(recorded, "v1.8.4-"+strings.ToLower(strings.NewReplacer(",", "", " ", "-").Replace(name))+".txt")
			if *update {
				if err := os.WriteFile(path, []byte(commands), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(commands, "\n")); diff != "" {
				t.Errorf("KubeVirt's commands (-recorded +run):\n%s", diff)
			}
		})
	}
}

// environment is what the runs share.
type environment struct {
	sidecar   string // floatip-sidecar
	nft, path string // the real nft, and PATH without a gate
}

func newEnvironment(t *testing.T) environment {
	t.Helper()
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Fatal(err)
	}
	env := environment{filepath.Join(t.TempDir(), "floatip-sidecar"), nft, os.Getenv("PATH")}
	build := exec.Command("go", "build", "-o", env.sidecar, "./cmd/floatip-sidecar")
	build.Dir = mainModule
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", build, err, output)
	}
	return env
}

// patience bounds each wait; a set-up takes a second on a busy machine.
const patience = time.Minute

func await(t *testing.T, setup <-chan error) error {
	t.Helper()
	select {
	case err := <-setup:
		return err
	case <-time.After(patience):
		t.Fatalf("KubeVirt's set-up is not done after %s", patience)
		return nil
	}
}

// never is no moment: the sidecar does not start.
const never = -1

// moments are commands before which to start: all of them in the simplest variant, else some of each kind.
func moments(name string, commands int) []int {
	if name != "no ports" {
		return []int{0, 1, commands / 2, commands}
	}
	all := make([]int, commands+1)
	for i := range all {
		all[i] = i
	}
	return all
}

// ruleset is what nft shows, with what differs from run to run left out: by family, table and name.
type ruleset map[string][]string

func (r ruleset) without(prefix string) ruleset {
	kept := ruleset{}
	for name, lines := range r {
		if !strings.Contains(name, prefix) {
			kept[name] = lines
		}
	}
	return kept
}

// rules returns the ruleset of a pod that KubeVirt set up, with a sidecar that starts at a moment: 0 is before the
// set-up, n before KubeVirt's nth nft command. It waits for the wanted ruleset, if there is one, and returns what
// there is when that does not come.
func (v variant) rules(t *testing.T, env environment, moment int, want ruleset) ruleset {
	t.Helper()
	rules, _ := v.run(t, env, moment, want)
	return rules
}

// run is rules, and returns KubeVirt's nft commands too.
func (v variant) run(t *testing.T, env environment, moment int, want ruleset) (ruleset, string) {
	t.Helper()
	link := v.link
	if link == "" {
		link = "eth0"
	}
	p := newPod(t, link, v.addresses...)
	vmi := instance("testvm")
	if v.change != nil {
		v.change(vmi)
	}
	start := func() { v.startSidecar(t, env.sidecar, p.pod, "k6t-"+link) }
	if moment == 0 {
		start()
	}
	gate := newGate(t, moment, env)
	setup := make(chan error, 1)
	go func() { setup <- virthandler.NewNetwork(shortDir(t)).Setup(vmi, vmi.Spec.Networks, p.pod) }()
	if moment > 0 && moment <= v.commands {
		gate.wait(t, setup)
		start()
		gate.open(t)
	}
	if err := await(t, setup); err != nil {
		t.Fatalf("KubeVirt's set-up with the sidecar started before command %d: %v", moment, err)
	}
	commands := gate.commands(t)
	if got := strings.Count(commands, "\n"); got != v.commands {
		t.Fatalf("KubeVirt ran nft %d times, want %d", got, v.commands)
	}
	if moment > v.commands {
		start()
	}
	deadline := time.Now().Add(patience)
	for {
		now := readRules(t, env.nft, p.pod)
		if want == nil || cmp.Equal(now, want) || time.Now().After(deadline) {
			return now, commands
		}
		time.Sleep(50 * time.Millisecond) // between two looks at the kernel
	}
}

// startSidecar returns once the sidecar says that its rules stand.
func (v variant) startSidecar(t *testing.T, program string, pod virthandler.Namespace, bridge string) {
	t.Helper()
	dir := shortDir(t)
	description, err := json.Marshal(map[string]any{
		"version": 1, "owner": map[string]string{"namespace": "default", "name": "testvm"},
		"interface": bridge, "bindings": v.bindings, "clusterNetworks": []string{"100.0.0.0/16", "10.96.0.0/12"},
	})
	if err != nil {
		t.Fatal(err)
	}
	file, socket := filepath.Join(dir, "nat"), filepath.Join(dir, "sidecar.sock")
	if err := os.WriteFile(file, description, 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "run", "--nat-file="+file, "--socket="+socket)
	cmd.Stdout, cmd.Stderr = log, log
	if err := pod.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(cmd.Process.Kill(), ignoreKilled(cmd.Wait()), log.Close()); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		output, err := exec.CommandContext(ctx, program, "status", "--socket="+socket).CombinedOutput()
		if err == nil && strings.Contains(string(output), "phase:    Installed") {
			return
		}
		if ctx.Err() != nil {
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("the sidecar's rules do not stand: %s\n%s", output, text)
		}
		time.Sleep(20 * time.Millisecond) // between two questions
	}
}

func ignoreKilled(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && !exit.Exited() {
		return nil
	}
	return err
}

// gate is a program nft in front of the real one. It counts how often it is called, and holds one of the calls.
type gate struct{ dir string }

const gateScript = `#!/bin/sh
echo "$@" >>%[1]s/calls
if [ "$(wc -l <%[1]s/calls)" = %[2]d ]; then
	: >%[1]s/reached
	tries=0
	while [ ! -e %[1]s/open ] && [ $tries -lt 3000 ]; do sleep 0.02; tries=$((tries + 1)); done
fi
exec %[3]s "$@"
`

// newGate puts itself first on PATH, in place of an earlier gate.
func newGate(t *testing.T, moment int, tools environment) gate {
	t.Helper()
	g := gate{shortDir(t)}
	script := fmt.Appendf(nil, gateScript, g.dir, moment, tools.nft)
	if err := os.WriteFile(filepath.Join(g.dir, "nft"), script, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", g.dir+":"+tools.path)
	return g
}

// wait returns once KubeVirt stands before the held command.
func (g gate) wait(t *testing.T, setup <-chan error) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if _, err := os.Stat(filepath.Join(g.dir, "reached")); err == nil {
			return
		} else if !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		select {
		case err := <-setup:
			t.Fatalf("KubeVirt's set-up ended before the held command: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Fatal("KubeVirt did not come to the held command")
}

func (g gate) open(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, "open"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

// commands are the arguments of each call, one call a line.
func (g gate) commands(t *testing.T) string {
	t.Helper()
	calls, err := os.ReadFile(filepath.Join(g.dir, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	return string(calls)
}

// readRules asks nft for the ruleset of a namespace.
func readRules(t *testing.T, nft string, namespace virthandler.Namespace) ruleset {
	t.Helper()
	var output []byte
	err := namespace.Do(func() (err error) {
		output, err = exec.Command(nft, "-j", "list", "ruleset").Output()
		return err
	})
	if err != nil {
		t.Fatalf("nft list ruleset: %v", err)
	}
	var answer struct {
		Items []map[string]map[string]any `json:"nftables"`
	}
	if err := json.Unmarshal(output, &answer); err != nil {
		t.Fatal(err)
	}
	found := ruleset{}
	for _, item := range answer.Items {
		for kind, object := range item {
			if kind == "metainfo" {
				continue
			}
			name := fmt.Sprintf("%s %s %v", object["family"], object["table"], object["name"])
			if kind == "rule" {
				name = fmt.Sprintf("%s %s %v", object["family"], object["table"], object["chain"])
			}
			text, err := json.Marshal(map[string]any{kind: steady(object)})
			if err != nil {
				t.Fatal(err)
			}
			found[name] = append(found[name], string(text))
		}
	}
	return found
}

// steady leaves out handles and the figures of counters.
func steady(value any) any {
	switch v := value.(type) {
	case map[string]any:
		kept := map[string]any{}
		for key, inner := range v {
			if key != "handle" && key != "packets" && key != "bytes" {
				kept[key] = steady(inner)
			}
		}
		return kept
	case []any:
		kept := make([]any, len(v))
		for i, inner := range v {
			kept[i] = steady(inner)
		}
		return kept
	}
	return value
}
