package ipam

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// effect is one system call of a traced process that touches the file, or a line it printed.
type effect struct {
	kind   effectKind
	offset int64
	data   []byte
}

type effectKind string

const (
	effectWrite    effectKind = "write"    // data at offset
	effectSync     effectKind = "sync"     // all that came before is on the disk
	effectTruncate effectKind = "truncate" // the file is offset bytes long
	effectPrint    effectKind = "print"    // data on standard output
)

// syscallInfo is struct ptrace_syscall_info for an entry (ptrace(2), PTRACE_GET_SYSCALL_INFO).
type syscallInfo struct {
	op     uint8
	_      [3]uint8
	arch   uint32
	ip, sp uint64
	number uint64
	args   [6]uint64
}

const (
	syscallEntry = 1 // PTRACE_SYSCALL_INFO_ENTRY
	syscallExit  = 2 // PTRACE_SYSCALL_INFO_EXIT
)

// tracer follows a process and all of its threads with ptrace(2).
type tracer struct {
	path    string
	effects []effect
	// fails says, of a flush of the file that was noted, whether the process is to be told that it failed. May be nil.
	fails   func(effects []effect) bool
	failing map[int]bool // threads that are in such a system call
}

// trace runs cmd and returns, in order, what it did to the file at path. It must have stopped for nobody else: all system
// calls of ptrace come from the one thread.
func trace(t *testing.T, cmd *exec.Cmd, path string, fails func(effects []effect) bool) []effect {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start a traced process (needs ptrace of own children): %v", err)
	}
	tr := &tracer{path: path, fails: fails, failing: map[int]bool{}}
	status, err := tr.run(cmd.Process.Pid)
	cmd.Process.Release()
	if err != nil || status.ExitStatus() != 0 {
		t.Fatalf("traced process: %v, status %d", err, status)
	}
	return tr.effects
}

func (tr *tracer) run(pid int) (syscall.WaitStatus, error) {
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
		return 0, err
	}
	options := syscall.PTRACE_O_TRACESYSGOOD | syscall.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL
	if err := syscall.PtraceSetOptions(pid, options); err != nil {
		return 0, fmt.Errorf("ptrace options: %w", err)
	}
	if err := syscall.PtraceSyscall(pid, 0); err != nil {
		return 0, err
	}
	for {
		thread, err := syscall.Wait4(-1, &status, syscall.WALL, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return 0, err
		case status.Exited() || status.Signaled():
			if thread == pid {
				return status, nil
			}
			continue
		}
		deliver := 0
		switch signal := status.StopSignal(); {
		case signal == syscall.SIGTRAP|0x80:
			if err := tr.stopped(pid, thread); err != nil {
				return 0, err
			}
		case signal != syscall.SIGTRAP && signal != syscall.SIGSTOP:
			deliver = int(signal) // the runtime's own, such as SIGURG
		}
		if err := syscall.PtraceSyscall(thread, deliver); err != nil && !errors.Is(err, syscall.ESRCH) {
			return 0, err
		}
	}
}

// stopped notes the system call that the thread is about to make, if it touches the file.
func (tr *tracer) stopped(pid, thread int) error {
	var info syscallInfo
	_, _, errno := syscall.Syscall6(syscall.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(thread),
		unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 {
		return fmt.Errorf("ptrace syscall info: %w", errno)
	}
	if info.op == syscallExit && tr.failing[thread] {
		delete(tr.failing, thread)
		return failSyscall(thread, unix.EIO)
	}
	if info.op != syscallEntry {
		return nil
	}
	fd := int(info.args[0])
	switch info.number {
	case unix.SYS_PWRITE64, unix.SYS_WRITE:
		return tr.written(pid, fd, info)
	case unix.SYS_FDATASYNC, unix.SYS_FSYNC:
		if noted := tr.note(pid, fd, effect{kind: effectSync}); noted && tr.fails != nil && tr.fails(tr.effects) {
			tr.failing[thread] = true
		}
	case unix.SYS_FTRUNCATE:
		tr.note(pid, fd, effect{kind: effectTruncate, offset: int64(info.args[1])})
	}
	return nil
}

func (tr *tracer) written(pid, fd int, info syscallInfo) error {
	one := effect{kind: effectWrite, offset: int64(info.args[3])}
	if info.number == unix.SYS_WRITE {
		if fd != 1 {
			return nil
		}
		one = effect{kind: effectPrint}
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return err
	}
	defer memory.Close()
	one.data = make([]byte, info.args[2])
	if _, err := memory.ReadAt(one.data, int64(info.args[1])); err != nil {
		return fmt.Errorf("read the data of a write: %w", err)
	}
	tr.note(pid, fd, one)
	return nil
}

// note keeps what concerns the file, and reports whether it did.
func (tr *tracer) note(pid, fd int, one effect) bool {
	if one.kind != effectPrint {
		if name, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); err != nil || name != tr.path {
			return false
		}
	}
	tr.effects = append(tr.effects, one)
	return true
}
