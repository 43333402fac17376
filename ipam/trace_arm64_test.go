package ipam

import (
	"debug/elf"
	"fmt"

	"golang.org/x/sys/unix"
)

// failSyscall lets the system call that the thread returns from return errno.
func failSyscall(thread int, errno unix.Errno) error {
	var registers unix.PtraceRegsArm64
	if err := unix.PtraceGetRegSetArm64(thread, int(elf.NT_PRSTATUS), &registers); err != nil {
		return fmt.Errorf("ptrace registers: %w", err)
	}
	registers.Regs[0] = uint64(-int64(errno))
	return unix.PtraceSetRegSetArm64(thread, int(elf.NT_PRSTATUS), &registers)
}
