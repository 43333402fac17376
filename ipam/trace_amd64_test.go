package ipam

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// failSyscall lets the system call that the thread returns from return errno.
func failSyscall(thread int, errno unix.Errno) error {
	var registers unix.PtraceRegs
	if err := unix.PtraceGetRegs(thread, &registers); err != nil {
		return fmt.Errorf("ptrace registers: %w", err)
	}
	registers.Rax = uint64(-int64(errno))
	return unix.PtraceSetRegs(thread, &registers)
}
