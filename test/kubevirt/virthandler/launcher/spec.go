package launcher

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	v1 "kubevirt.io/api/core/v1"
)

// Spec says what a launcher runs. It lies in the launcher's folder.
type Spec struct {
	VMI *v1.VirtualMachineInstance `json:"vmi"`
	// Kernel and Initrd are files of the rig's guest.
	Kernel string `json:"kernel"`
	Initrd string `json:"initrd"`
	// Nameserver and Search are what a pod's resolv.conf would say.
	Nameserver string   `json:"nameserver"`
	Search     []string `json:"search"`
	// GuestFiles exist as long as the machine does: the rig's kubelet keeps the pod's containers for so long.
	GuestFiles []string `json:"guestFiles,omitempty"`
	// Incoming makes the machine wait for the state of a migrating one.
	Incoming bool `json:"incoming,omitempty"`
}

// Dir is the folder of one launcher.
type Dir string

func (d Dir) path(name string) string { return filepath.Join(string(d), name) }

// Guest is the socket of the guest's control channel.
func (d Dir) Guest() string { return d.path("guest.sock") }

// Migration is the socket where a machine that waits for a migration listens.
func (d Dir) Migration() string { return d.path("migration.sock") }

// Console is the log of the guest's serial console.
func (d Dir) Console() string { return d.path("console.log") }

// Log is the log of the launcher and of qemu.
func (d Dir) Log() string { return d.path("launcher.log") }

func (d Dir) orders() string     { return d.path("launcher.sock") }
func (d Dir) monitor() string    { return d.path("qmp.sock") }
func (d Dir) specFile() string   { return d.path("launch.json") }
func (d Dir) resolvConf() string { return d.path("resolv.conf") }

// maxSocketPath is what a unix socket's address holds beside the closing NUL (unix(7), sun_path).
const maxSocketPath = 107

// write makes the folder with the spec in it.
func (d Dir) write(spec Spec) error {
	if path := d.Migration(); len(path) > maxSocketPath {
		return fmt.Errorf("path of a unix socket is longer than %d bytes: %s; choose a shorter run folder", maxSocketPath, path)
	}
	if err := os.MkdirAll(string(d), 0o755); err != nil {
		return err
	}
	content, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(d.specFile(), content, 0o600)
}

// Read returns the spec of the folder. The error is fs.ErrNotExist's kind where no launcher was started.
func (d Dir) Read() (Spec, error) {
	var spec Spec
	content, err := os.ReadFile(d.specFile())
	if err == nil {
		err = json.Unmarshal(content, &spec)
	}
	return spec, err
}
