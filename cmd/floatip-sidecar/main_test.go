package main

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"floatip.io/floatip"
	"floatip.io/floatip/test/lab"
)

// asProgram makes the test binary be floatip-sidecar.
const asProgram = "FLOATIP_SIDECAR_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) == "1" {
		main()
	}
	os.Exit(m.Run())
}

func program(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	// The race detector would sleep for a second at the end.
	cmd.Env = append(os.Environ(), asProgram+"=1", "GORACE=atexit_sleep_ms=0")
	return cmd
}

func natFile(t testing.TB) string {
	t.Helper()
	p := floatip.PodNAT{
		Version: floatip.PodNATVersion, Owner: floatip.Owner{Namespace: "shop", Name: "web"},
		Interface: floatip.DefaultGuestInterface,
		Bindings: []floatip.Binding{{
			Floating: netip.MustParseAddr("192.168.100.50"), Fixed: netip.MustParseAddr("10.0.2.2"),
			Gateway: netip.MustParseAddr("10.0.2.1"), GuestNetwork: netip.MustParsePrefix("10.0.2.0/24"),
		}},
	}
	text, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), floatip.NATFile)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// startWith starts cmd in ns with no capability but those, and no way to gain others: what a container runtime does for
// "drop ALL, add …" and allowPrivilegeEscalation false.
func startWith(t *testing.T, ns *lab.Namespace, cmd *exec.Cmd, capabilities ...uintptr) {
	t.Helper()
	err := ns.Do(func() error {
		for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
			if slices.Contains(capabilities, c) {
				continue
			}
			err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
			if err != nil && !errors.Is(err, unix.EINVAL) { // a kernel that does not know this capability
				return err
			}
		}
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return err
		}
		return cmd.Start()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// shortDir is a directory whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fip")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// The whole life of the container: start, ready, status, end on SIGTERM within 100 ms with the rules in place.
func TestLife(t *testing.T) {
	ns := lab.New(t, "pod")
	socket := filepath.Join(shortDir(t), floatip.SocketFile)
	var log bytes.Buffer
	cmd := program("run", "--nat-file", natFile(t), "--socket", socket)
	cmd.Stderr = &log
	cmd.Env = append(cmd.Env, "POD_NAMESPACE=shop", "POD_NAME=virt-launcher-web-x", "POD_UID=0815")
	startWith(t, ns, cmd, unix.CAP_NET_ADMIN)
	ended := false
	defer func() {
		if !ended {
			cmd.Process.Kill()
			cmd.Wait()
		}
	}()
	lab.Within(t, 10*time.Second, "ready", func() bool { return program("ready", "--socket", socket).Run() == nil })
	out, err := program("status", "--socket", socket).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"phase:    Installed", "pod:      shop/virt-launcher-web-x", "vm:       shop/web",
		"binding:  192.168.100.50 = 10.0.2.2", "traffic:  192.168.100.50 in 0 packets 0 bytes"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("status has no %q:\n%s", want, out)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait() // how long that takes is BenchmarkStart's
	ended = true
	if err != nil {
		t.Errorf("SIGTERM: ended with %v, want success\n%s", err, log.String())
	}
	if listing := ns.Ruleset(t); !strings.Contains(listing, "dnat to 10.0.2.2") {
		t.Errorf("the rules did not stay:\n%s", listing)
	}
	if err := program("ready", "--socket", socket).Run(); err == nil {
		t.Error("ready after the end: want a failure")
	}
}

// Without NET_ADMIN the sidecar goes on running and says what it lacks; the VM is unharmed, and the startup probe lets
// the pod come up.
func TestWithoutCapability(t *testing.T) {
	socket := filepath.Join(shortDir(t), floatip.SocketFile)
	cmd := program("run", "--nat-file", natFile(t), "--socket", socket)
	startWith(t, lab.New(t, "pod"), cmd)
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	lab.Within(t, 10*time.Second, "ready", func() bool { return program("ready", "--socket", socket).Run() == nil })
	out, err := program("status", "--socket", socket).Output()
	if err != nil || !strings.Contains(string(out), "phase:    Failed") || !strings.Contains(string(out), "NET_ADMIN") {
		t.Errorf("status: %v\n%s", err, out)
	}
}

func TestCommandLine(t *testing.T) {
	good := natFile(t)
	bad := filepath.Join(t.TempDir(), "bad.json")
	if err := os.WriteFile(bad, []byte(`{"version":1}`), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args         []string
		code         int
		stdout, errs string
	}{
		"plan":             {[]string{"plan", "--nat-file", good}, exitOK, "dnat to 10.0.2.2", ""},
		"plan of nonsense": {[]string{"plan", "--nat-file", bad}, exitFailure, "", "interface"},
		"plan of nothing":  {[]string{"plan", "--nat-file", bad + "x"}, exitFailure, "", "no such file"},
		"status of nobody": {[]string{"status", "--socket", bad + "x"}, exitFailure, "", "no such file"},
		"ready of nobody":  {[]string{"ready", "--socket", bad + "x"}, exitFailure, "", "no such file"},
		"help":             {[]string{"--help"}, exitOK, "", "usage: floatip-sidecar"},
		"unknown command":  {[]string{"walk"}, exitUsage, "", "unknown command"},
		"unknown flag":     {[]string{"plan", "--fast"}, exitUsage, "", "not defined"},
		"too much":         {[]string{"plan", "please"}, exitUsage, "", "unexpected argument"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := run(tc.args, &stdout, &stderr); code != tc.code {
				t.Errorf("exit code: want %d, have %d", tc.code, code)
			}
			if !strings.Contains(stdout.String(), tc.stdout) || !strings.Contains(stderr.String(), tc.errs) {
				t.Errorf("want %q and %q, have\n%s\n%s", tc.stdout, tc.errs, stdout.String(), stderr.String())
			}
		})
	}
}
