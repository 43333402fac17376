package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"kubevirt.io/kubevirt/pkg/virt-launcher/virtwrap/api"
)

// folderCheck is how often the launcher looks whether its folder still exists.
const folderCheck = time.Second

// server is one launcher at work.
type server struct {
	dir   Dir
	spec  Spec
	state *state
	exit  context.CancelFunc

	machine *monitor // set before orders are served
}

// Run is the launcher's process; Start makes one. It returns after an order to exit, when ctx is done, or when the
// folder is removed; qemu has then ended.
func Run(ctx context.Context, dir Dir) error {
	// qemu is killed when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	spec, err := dir.Read()
	if err != nil {
		return fmt.Errorf("read the launcher's orders: %w", err)
	}
	ctx, exit := context.WithCancel(ctx)
	defer exit()
	s := &server{dir: dir, spec: spec, state: newState(spec.VMI), exit: exit}
	listener, err := listen(dir)
	if err != nil {
		return err
	}
	qemu, err := s.start(ctx)
	if err != nil {
		// Told as a crash, since virt-handler waits for a state.
		log.Printf("start the machine: %v", err)
		s.state.lifecycle(api.Crashed, api.ReasonFailed)
	} else {
		ended := make(chan struct{})
		go func() { defer close(ended); s.watch(qemu.Wait()) }()
		defer func() { _ = qemu.Process.Kill(); <-ended }() // a kill that fails finds it ended
	}
	go s.exitWithFolder(ctx)
	go s.heedShutdown(ctx)
	return s.serve(ctx, listener)
}

// listen makes the socket appear only when it accepts: a client takes a refusal for the end of the launcher.
func listen(dir Dir) (net.Listener, error) {
	hidden := dir.path("new.sock")
	if err := os.Remove(hidden); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false) // the name is not its own any more; the folder is removed as a whole
	if err := os.Rename(hidden, dir.orders()); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// start sets up the pod's side and qemu.
func (s *server) start(ctx context.Context) (*exec.Cmd, error) {
	if err := enterPod(s.dir, s.spec); err != nil {
		return nil, err
	}
	if err := s.markGuest(); err != nil {
		return nil, err
	}
	var guest6 string
	var err error
	s.state.update(func(domain *api.Domain) { guest6, err = connect(s.spec.VMI, domain) })
	if err != nil {
		return nil, err
	}
	interfaces := s.state.after(ctx, 0).Domain.Spec.Devices.Interfaces
	qemu := exec.Command("qemu-system-x86_64", qemuArgs(s.dir, s.spec, interfaces, guest6)...)
	qemu.Stdout, qemu.Stderr = os.Stdout, os.Stderr
	qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	log.Printf("start %s", qemu)
	if err := qemu.Start(); err != nil {
		return nil, err
	}
	if err := s.attach(ctx); err != nil {
		return nil, errors.Join(err, qemu.Process.Kill(), qemu.Wait())
	}
	return qemu, nil
}

// attach connects to qemu's monitor and takes over its state.
func (s *server) attach(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	machine, err := dialMonitor(ctx, s.dir.monitor(), func(e event) {
		tell(e)
		s.state.observe(e)
	})
	if err != nil {
		return err
	}
	s.machine = machine
	if err := machine.can("events", true); err != nil {
		return err
	}
	if s.spec.Incoming {
		if err := machine.can(postCopy, PostCopyAfter(s.spec.VMI) > 0); err != nil {
			return err
		}
	}
	var now struct {
		Running bool `json:"running"`
	}
	if err := machine.do("query-status", nil, &now); err != nil {
		return err
	}
	switch {
	case now.Running:
		s.state.lifecycle(api.Running, api.ReasonUnknown)
	case s.spec.Incoming:
		s.state.lifecycle(api.Paused, api.ReasonPausedMigration)
	}
	return nil
}

// watch tells the machine's end: to virt-handler, and to the kubelet by the guest files.
func (s *server) watch(err error) {
	log.Printf("qemu ended: %v", err)
	s.state.ended()
	for _, path := range s.spec.GuestFiles {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Printf("remove a guest file: %v", err)
		}
	}
}

// markGuest makes the guest files.
func (s *server) markGuest() error {
	for _, path := range s.spec.GuestFiles {
		if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
			continue // the container disk's program has made it
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// exitWithFolder ends a launcher that nobody can reach any more.
func (s *server) exitWithFolder(ctx context.Context) {
	for range ticks(ctx, folderCheck) {
		if _, err := os.Stat(s.dir.specFile()); errors.Is(err, fs.ErrNotExist) {
			log.Print("the launcher's folder is gone: exit")
			s.exit()
			return
		}
	}
}

// shutdownCheck is how often the launcher looks whether its pod was told to end.
const shutdownCheck = 200 * time.Millisecond

// ShutdownSuffix ends the name of the file that the pod's own program makes beside a guest file when it is told to end
// (test/rig/kubelet, ShutdownFile).
const ShutdownSuffix = ".shutdown"

// heedShutdown marks the guest for shutdown when its pod is told to end, as virt-launcher does on a signal
// (virtwrap/manager.go, MarkGracefulShutdownVMI). Virt-handler does the rest.
func (s *server) heedShutdown(ctx context.Context) {
	for range ticks(ctx, shutdownCheck) {
		for _, path := range s.spec.GuestFiles {
			if _, err := os.Stat(path + ShutdownSuffix); err == nil {
				s.state.markShutdown()
				return
			}
		}
	}
}

// ticks yields until ctx is done.
func ticks(ctx context.Context, every time.Duration) func(yield func(struct{}) bool) {
	return func(yield func(struct{}) bool) {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				if !yield(struct{}{}) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

// serve answers Client until ctx is done.
func (s *server) serve(ctx context.Context, listener net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /domain", s.handleDomain)
	mux.HandleFunc("POST /shutdown", order(s.shutdown))
	mux.HandleFunc("POST /destroy", order(s.destroy))
	mux.HandleFunc("POST /migrate", order(s.migrate))
	mux.HandleFunc("POST /cancel", order(s.cancel))
	mux.HandleFunc("POST /exit", order(func(struct{}) error { s.exit(); return nil }))
	web := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if web.Shutdown(grace) != nil {
			_ = web.Close() // a client that waits for a change
		}
	}()
	err := web.Serve(listener)
	if !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-stopped
	return nil
}

// handleDomain answers with the first snapshot after the revision that the client knows.
func (s *server) handleDomain(w http.ResponseWriter, r *http.Request) {
	known, err := strconv.Atoi(r.URL.Query().Get("after"))
	if err != nil {
		http.Error(w, "after: "+err.Error(), http.StatusBadRequest)
		return
	}
	if err := json.NewEncoder(w).Encode(s.state.after(r.Context(), known)); err != nil {
		log.Printf("tell the domain: %v", err)
	}
}

// order makes a handler of a method that takes its argument as JSON.
func order[T any](do func(T) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var argument T
		err := json.NewDecoder(r.Body).Decode(&argument)
		if err == nil {
			err = do(argument)
		}
		if err != nil {
			log.Printf("%s: %v", r.URL.Path, err)
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}
}

// shutdown presses the power button.
func (s *server) shutdown(arg shutdownOrder) error {
	s.state.beginShutdown(arg.GraceSeconds)
	return s.end("system_powerdown")
}

// destroy ends the machine at once.
func (s *server) destroy(struct{}) error {
	s.state.setEnding(api.ReasonDestroyed)
	return s.end("quit")
}

// end gives qemu an order to end. That it has ended already, or does so before it answers, is no failure.
func (s *server) end(command string) error {
	if s.machine == nil {
		return nil
	}
	if err := s.machine.do(command, nil, nil); !errors.Is(err, errGone) {
		return err
	}
	return nil
}

type shutdownOrder struct {
	GraceSeconds int64 `json:"graceSeconds"`
}

type migrateOrder struct {
	UID types.UID `json:"uid"`
	MigrationTarget
}
