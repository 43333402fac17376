package story

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// lookAtMachines writes what the kernel knows of each qemu of the rig whose files are below root, and of the network of its pod, into
// a file of its own in dir. A guest that fell silent leaves no other trace.
func lookAtMachines(root, dir string) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, line := range lines {
		raw, err := os.ReadFile(line)
		arguments := strings.Split(string(raw), "\x00")
		if err != nil || !strings.HasPrefix(filepath.Base(arguments[0]), "qemu-system") || !strings.Contains(string(raw), root) {
			continue
		}
		process := filepath.Dir(line)
		out := &bytes.Buffer{}
		fmt.Fprintln(out, time.Now().Format(time.RFC3339Nano), strings.Join(arguments, " "))
		// Twice, with a pause in which a thread that runs uses some of the processor: so it can be seen who waits. There is no
		// condition to wait for; it is after a failure only.
		for range 2 {
			for _, name := range []string{"comm", "wchan", "stack", "stat"} {
				cat(out, filepath.Join(process, "task", "*", name))
			}
			time.Sleep(100 * time.Millisecond)
		}
		cat(out, filepath.Join(process, "fdinfo", "*"))
		for _, command := range []string{
			"ip -s -d link", "ip addr", "ip neigh", "ip route show table all", "bridge -d link", "bridge fdb", "nft list ruleset", "ss -nap",
		} {
			show(out, process, command)
		}
		_ = os.WriteFile(filepath.Join(dir, "machine-"+filepath.Base(process)+".log"), out.Bytes(), 0o644)
	}
}

func cat(out *bytes.Buffer, pattern string) {
	files, _ := filepath.Glob(pattern)
	for _, file := range files {
		raw, _ := os.ReadFile(file) // it may be gone by now
		fmt.Fprintf(out, "# %s\n%s\n", file, bytes.TrimSpace(raw))
	}
}

// show runs a command in the network namespace of a process.
func show(out *bytes.Buffer, process, command string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	told, err := exec.CommandContext(ctx, "nsenter",
		append([]string{"--net=" + process + "/ns/net", "--"}, strings.Fields(command)...)...).CombinedOutput()
	fmt.Fprintf(out, "# %s (%v)\n%s\n", command, err, told)
}
