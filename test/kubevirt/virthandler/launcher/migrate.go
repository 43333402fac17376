package launcher

import (
	"context"
	"fmt"
	"log"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	v1 "kubevirt.io/api/core/v1"

	"kubevirt.io/kubevirt/pkg/virt-launcher/virtwrap/api"
)

// MigrationTarget says where to and how a machine migrates.
type MigrationTarget struct {
	// Socket is the target's Dir.Migration.
	Socket string `json:"socket"`
	// Bandwidth bounds the transfer, in bytes per second. Zero: 500 MB/s.
	Bandwidth resource.Quantity `json:"bandwidth"`
	// PostCopyAfter is how long after the start the guest goes on at the target although part of its memory is still here.
	// Zero: only when all of it is there.
	PostCopyAfter time.Duration `json:"postCopyAfter,omitempty"`
}

// PostCopyAfter returns the field of that name for an instance with a migration. Virt-launcher looks at whole seconds, and at
// memory in whole gigabytes, rounded up (live-migration-source.go, shouldTriggerTimeout; manager.go, getVMIMigrationDataSize).
func PostCopyAfter(vmi *v1.VirtualMachineInstance) time.Duration {
	state := vmi.Status.MigrationState
	if state == nil || state.MigrationConfiguration == nil {
		return 0
	}
	c := state.MigrationConfiguration
	if c.AllowPostCopy == nil || !*c.AllowPostCopy || c.CompletionTimeoutPerGiB == nil || *c.CompletionTimeoutPerGiB == 0 {
		return 0
	}
	const giga = 1_000_000_000
	acceptable := *c.CompletionTimeoutPerGiB * ((asked(vmi).Value() + giga - 1) / giga)
	return time.Duration(acceptable+1) * time.Second
}

const (
	// defaultBandwidth is enough for the rig's guests to converge, in bytes per second.
	defaultBandwidth = 500_000_000
	// downtimeLimit is how long qemu may pause the guest for the last of its memory, in milliseconds.
	downtimeLimit = 50
)

// can switches one of qemu's migration capabilities on or off. What differs between the two sides makes a migration fail.
func (m *monitor) can(capability string, on bool) error {
	type state struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	return m.do("migrate-set-capabilities", map[string]any{"capabilities": []state{{capability, on}}}, nil)
}

// postCopy is the capability to run a guest whose memory is still on the source: the target's kernel asks qemu for a page
// when the guest touches it (userfaultfd).
const postCopy = "postcopy-ram"

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
	if err := s.machine.can(postCopy, arg.PostCopyAfter > 0); err != nil {
		return s.migrationFailed(err)
	}
	limits := map[string]any{"max-bandwidth": bandwidth, "downtime-limit": downtimeLimit}
	if err := s.machine.do("migrate-set-parameters", limits, nil); err != nil {
		return s.migrationFailed(err)
	}
	if err := s.machine.do("migrate", map[string]string{"uri": "unix:" + arg.Socket}, nil); err != nil {
		return s.migrationFailed(err)
	}
	if arg.PostCopyAfter > 0 {
		time.AfterFunc(arg.PostCopyAfter, func() { s.goOnThere(arg.UID) })
	}
	go s.quitWhenMigrated()
	return nil
}

// goOnThere has the guest of a migration that still copies memory go on at the target.
func (s *server) goOnThere(uid types.UID) {
	now := s.state.after(context.Background(), 0).Domain
	if m := now.Spec.Metadata.KubeVirt.Migration; m == nil || m.UID != uid || m.EndTimestamp != nil {
		return
	}
	if err := s.machine.do("migrate-start-postcopy", nil, nil); err != nil {
		log.Printf("post-copy: %v", err)
	}
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

// StillLine, RunsLine and PostCopyLine begin what the logs of the two machines say about a migration; the time follows, as
// time.RFC3339Nano. Between the first two is the guest's own pause. The third says that what memory is still on this side
// follows the guest; it is qemu's word, which a status may be without: KubeVirt's handler on the source writes it once, and that
// write is refused if the target's handler wrote just before.
const (
	StillLine    = "the guest stands still since "
	RunsLine     = "the guest runs since "
	PostCopyLine = "memory follows the guest since "
)

// tell writes into the log when the guest stopped and ran again, and when its memory began to follow it.
func tell(e event) {
	switch at := e.at().Format(time.RFC3339Nano); {
	case e.Name == "STOP":
		log.Print(StillLine, at)
	case e.Name == "RESUME":
		log.Print(RunsLine, at)
	case e.Name == "MIGRATION" && e.Data.Status == "postcopy-active":
		log.Print(PostCopyLine, at)
	}
}

// cancel gives up a running migration; the guest stays here.
func (s *server) cancel(struct{}) error {
	if s.machine == nil {
		return errGone
	}
	return s.machine.do("migrate_cancel", nil, nil)
}
