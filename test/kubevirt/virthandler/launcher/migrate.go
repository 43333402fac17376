package launcher

import (
	"context"
	"fmt"
	"log"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"kubevirt.io/kubevirt/pkg/virt-launcher/virtwrap/api"
)

// MigrationTarget says where to and how a machine migrates.
type MigrationTarget struct {
	// Socket is the target's Dir.Migration.
	Socket string `json:"socket"`
	// Bandwidth bounds the transfer, in bytes per second. Zero: 500 MB/s.
	Bandwidth resource.Quantity `json:"bandwidth"`
}

const (
	// defaultBandwidth is enough for the rig's guests to converge, in bytes per second.
	defaultBandwidth = 500_000_000
	// downtimeLimit is how long qemu may pause the guest for the last of its memory, in milliseconds.
	downtimeLimit = 50
)

// capabilities are qemu's migration capabilities to switch on.
func capabilities(names ...string) any {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	list := make([]capability, len(names))
	for i, name := range names {
		list[i] = capability{name, true}
	}
	return map[string]any{"capabilities": list}
}

// migrate starts to copy the machine. A repeated order is none. How it goes on is told in the domain's metadata; at
// the end this side's machine quits, with the reason Migrated.
func (s *server) migrate(arg migrateOrder) error {
	if s.machine == nil {
		return errGone
	}
	if !s.state.beginMigration(arg.UID) {
		return nil
	}
	bandwidth := arg.Bandwidth.Value()
	if bandwidth == 0 {
		bandwidth = defaultBandwidth
	}
	limits := map[string]any{"max-bandwidth": bandwidth, "downtime-limit": downtimeLimit}
	if err := s.machine.do("migrate-set-parameters", limits, nil); err != nil {
		return s.migrationFailed(err)
	}
	if err := s.machine.do("migrate", map[string]string{"uri": "unix:" + arg.Socket}, nil); err != nil {
		return s.migrationFailed(err)
	}
	go s.quitWhenMigrated()
	return nil
}

func (s *server) migrationFailed(err error) error {
	s.state.observeMigration("failed")
	return fmt.Errorf("migrate: %w", err)
}

// quitWhenMigrated waits for the end of the migration. After a success the guest runs elsewhere.
func (s *server) quitWhenMigrated() {
	for revision := 0; ; {
		now := s.state.after(context.Background(), revision)
		revision = now.Revision
		migration := now.Domain.Spec.Metadata.KubeVirt.Migration
		if migration.EndTimestamp == nil && Alive(now.Domain) {
			continue
		}
		if !migration.Failed && Alive(now.Domain) {
			s.state.setEnding(api.ReasonMigrated)
			if err := s.end("quit"); err != nil {
				log.Printf("end the machine that has migrated: %v", err)
			}
		}
		return
	}
}

// StillLine and RunsLine begin what the logs of the two machines say about a migration; the time follows, as time.RFC3339Nano.
// What is between them is the guest's own pause.
const (
	StillLine = "the guest stands still since "
	RunsLine  = "the guest runs since "
)

// tellPause writes into the log when the guest stopped and ran again.
func tellPause(e event) {
	switch at := e.at().Format(time.RFC3339Nano); e.Name {
	case "STOP":
		log.Print(StillLine, at)
	case "RESUME":
		log.Print(RunsLine, at)
	}
}

// cancel gives up a running migration; the guest stays here.
func (s *server) cancel(struct{}) error {
	if s.machine == nil {
		return errGone
	}
	return s.machine.do("migrate_cancel", nil, nil)
}
