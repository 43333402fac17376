package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"floatip.io/floatip/test/lab"
)

// build makes the program as it is shipped, and reports its size.
func build(b *testing.B) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "floatip-sidecar")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return path
}

// started is a sidecar whose rules stand.
func started(b *testing.B, binary, natFile string, ns *lab.Namespace) *exec.Cmd {
	b.Helper()
	cmd := exec.Command(binary, "--nat-file", natFile, "--socket", filepath.Join(b.TempDir(), "s"))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := ns.Start(cmd); err != nil {
		b.Fatal(err)
	}
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		if strings.Contains(lines.Text(), "installed rules") {
			return cmd
		}
	}
	b.Fatal("the sidecar ended before its rules stood")
	return nil
}

func end(b *testing.B, cmd *exec.Cmd) {
	b.Helper()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		b.Fatal(err)
	}
	cmd.Wait() // SIGPIPE on the log that nobody reads any more is an end, too
}

// What a sidecar may take; there is one beside every VM.
const (
	limitStart    = 8   // ms from exec to rules in place
	limitEnd      = 100 // ms from SIGTERM to the end
	limitBinary   = 5   // MiB
	limitResident = 5   // MiB, idle
)

// beside prints a figure with its limit.
func beside(b *testing.B, what string, have, limit float64, unit string) {
	b.Helper()
	b.Logf("%s: %.1f %s, limit %g %s", what, have, unit, limit, unit)
}

// BenchmarkStart is from exec to rules in place, in a fresh pod, and SIGTERM to end. The limits are for the median: a
// single slow start is the machine's.
func BenchmarkStart(b *testing.B) {
	binary, file := build(b), natFile(b)
	info, err := os.Stat(binary)
	if err != nil {
		b.Fatal(err)
	}
	size := float64(info.Size()) / (1 << 20)
	var starts, ends []time.Duration
	for b.Loop() {
		b.StopTimer()
		ns := lab.New(b, "pod")
		b.StartTimer()
		began := time.Now()
		cmd := started(b, binary, file, ns)
		starts = append(starts, time.Since(began))
		b.StopTimer()
		began = time.Now()
		end(b, cmd)
		ends = append(ends, time.Since(began))
		b.StartTimer()
	}
	b.ReportMetric(median(starts), "ms-start")
	b.ReportMetric(median(ends), "ms-SIGTERM")
	b.ReportMetric(size, "MiB-binary")
	beside(b, "exec to rules in place", median(starts), limitStart, "ms")
	beside(b, "SIGTERM to the end", median(ends), limitEnd, "ms")
	beside(b, "program file", size, limitBinary, "MiB")
}

// median is in ms.
func median(times []time.Duration) float64 {
	slices.Sort(times)
	return float64(times[len(times)/2].Microseconds()) / 1000
}

// BenchmarkIdle reports what a sidecar holds while there is nothing to do, and the processor time that it takes. "file"
// is the program itself, which all sidecars of a node share.
func BenchmarkIdle(b *testing.B) {
	binary := build(b)
	cmd := started(b, binary, natFile(b), lab.New(b, "pod"))
	defer end(b, cmd)
	status := fmt.Sprintf("/proc/%d/status", cmd.Process.Pid)
	<-time.After(3 * time.Second) // what is measured is quiet
	for b.Loop() {
		resident(b, status, "VmRSS")
	}
	b.ReportMetric(resident(b, status, "VmRSS")/1024, "MiB-resident")
	beside(b, "resident, idle", resident(b, status, "VmRSS")/1024, limitResident, "MiB")
	b.ReportMetric(resident(b, status, "RssAnon")/1024, "MiB-anonymous")
	b.ReportMetric(resident(b, status, "RssFile")/1024, "MiB-file")
}

// resident returns one line of /proc/PID/status, in KiB.
func resident(b *testing.B, path, name string) (kib float64) {
	b.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			if _, err := fmt.Sscan(rest, &kib); err != nil {
				b.Fatal(err)
			}
		}
	}
	return kib
}
