package sidecar

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// settle gives back to the kernel what a look at the rules used: one sidecar runs beside every VM, and nearly always
// there is nothing to do. The heap goes first, then the pages of the program's file, all of which its start has mapped,
// 16 at a fault (fault_around_bytes in mm/memory.c). What an idle sidecar needs of them comes back from the page cache.
func settle() {
	debug.FreeOSMemory()
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return
	}
	for _, m := range cleanMappings(string(maps)) {
		// A refusal costs memory, nothing else.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.first, m.end-m.first, unix.MADV_DONTNEED)
	}
}

// mapping is a range of addresses.
type mapping struct{ first, end uintptr }

// cleanMappings returns those of /proc/PID/smaps (proc_pid_smaps(5)) that nobody can write to and that have no page of
// their own: all that they hold is in their file.
func cleanMappings(smaps string) (out []mapping) {
	var m mapping
	readOnly := false
	for line := range strings.Lines(smaps) {
		var first, end uintptr
		var access string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &first, &end, &access); err == nil {
			m, readOnly = mapping{first, end}, strings.HasPrefix(access, "r-")
			continue
		}
		if fields := strings.Fields(line); readOnly && len(fields) > 1 && fields[0] == "Anonymous:" && fields[1] == "0" {
			out = append(out, m)
		}
	}
	return out
}
