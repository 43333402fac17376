package launcher

import (
	"context"
	"fmt"
	"log"

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
	// The guest stands still while its memory is copied: the emulator of qemu 7.2 loses writes of a guest that runs meanwhile.
	// With traffic on a busy machine guests came out with a corrupted stack or in an endless loop, by post-copy too.
	if err := s.machine.do("stop", nil, nil); err != nil {
		return s.migrationFailed(err)
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
	s.resume()
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
		if migration.Failed && Alive(now.Domain) {
			s.resume()
		}
		if !migration.Failed && Alive(now.Domain) {
			s.tellPause()
			s.state.setEnding(api.ReasonMigrated)
			if err := s.end("quit"); err != nil {
				log.Printf("end the machine that has migrated: %v", err)
			}
		}
		return
	}
}

// resume lets the guest run: where it was if the migration failed, or where it has come.
func (s *server) resume() {
	if err := s.machine.do("cont", nil, nil); err != nil {
		log.Printf("let the guest run: %v", err)
	}
}

// tellPause writes into the log how long the guest stood still, as qemu measured it.
func (s *server) tellPause() {
	var info struct {
		Total int `json:"total-time"` // the guest was stopped before
	}
	if err := s.machine.do("query-migrate", nil, &info); err != nil {
		log.Printf("ask for the pause of the migration: %v", err)
		return
	}
	log.Printf("%s%d ms", PauseLine, info.Total)
}

// PauseLine begins what the log of a machine that has migrated says about the guest's pause: "345 ms".
const PauseLine = "migrated; the guest stood still for "

// cancel gives up a running migration; the guest stays here.
func (s *server) cancel(struct{}) error {
	if s.machine == nil {
		return errGone
	}
	return s.machine.do("migrate_cancel", nil, nil)
}
