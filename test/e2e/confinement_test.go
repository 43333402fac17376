package e2e

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"floatip.io/floatip/test/story"
)

// confinement is what the kernel holds against a container's process, beside what all of floatip's have in common: no
// new privileges, a seccomp filter, a root that is read-only.
type confinement struct {
	User, Group int
	// Capabilities are the bounding set; the permitted and the effective one are the same for root, and empty otherwise.
	Capabilities []string
}

// capabilityNames are those that floatip's programs have (linux/capability.h).
var capabilityNames = map[int]string{2: "DAC_READ_SEARCH", 12: "NET_ADMIN", 13: "NET_RAW", 21: "SYS_ADMIN"}

// wantConfinement compares the process of a running container with what its manifest asked for.
func wantConfinement(t *testing.T, s *story.Story, pod *corev1.Pod, container string, want confinement) {
	t.Helper()
	pid, err := s.Rig.ContainerPID(pod, container)
	if err != nil {
		t.Fatal(err)
	}
	status, err := processStatus(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []struct{ name, want string }{
		{"NoNewPrivs", "1"}, {"Seccomp", "2"}, {"CapInh", "0000000000000000"}, {"CapAmb", "0000000000000000"},
		{"CapPrm", status["CapBnd"]}, {"CapEff", status["CapBnd"]},
	} {
		if have := status[field.name]; have != field.want {
			t.Errorf("%s of %s (proc_pid_status(5)) is %q, want %q", field.name, container, have, field.want)
		}
	}
	have := confinement{Capabilities: capabilities(t, status["CapBnd"])}
	have.User, have.Group = firstNumber(t, status["Uid"]), firstNumber(t, status["Gid"])
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("%s is confined in another way than its manifest says (-want +have):\n%s", container, diff)
	}
	if options := rootOptions(t, pid); !slices.Contains(options, "ro") {
		t.Errorf("root of %s is mounted %v, want ro", container, options)
	}
}

// processStatus reads /proc/PID/status (proc_pid_status(5)).
func processStatus(pid int) (map[string]string, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fields := map[string]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		fields[name] = strings.TrimSpace(value)
	}
	return fields, lines.Err()
}

func capabilities(t *testing.T, mask string) []string {
	t.Helper()
	bits, err := strconv.ParseUint(mask, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for bit := range 64 {
		if bits&(1<<bit) == 0 {
			continue
		}
		name, ok := capabilityNames[bit]
		if !ok {
			name = strconv.Itoa(bit)
		}
		names = append(names, name)
	}
	return names
}

// firstNumber is the real one of the four users or groups.
func firstNumber(t *testing.T, list string) int {
	t.Helper()
	first, _, _ := strings.Cut(list, "\t")
	number, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	return number
}

// rootOptions returns the mount options of a process's root (proc_pid_mountinfo(5), fields 5 and 6).
func rootOptions(t *testing.T, pid int) []string {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if fields := strings.Fields(line); len(fields) > 5 && fields[4] == "/" {
			return strings.Split(fields[5], ",")
		}
	}
	t.Fatalf("process %d has no root", pid)
	return nil
}
