package launcher

import (
	"context"
	"reflect"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	v1 "kubevirt.io/api/core/v1"

	"kubevirt.io/kubevirt/pkg/virt-launcher/virtwrap/api"
)

// Snapshot is a machine's state at one moment. Later ones have greater revisions.
type Snapshot struct {
	Revision int         `json:"revision"`
	Domain   *api.Domain `json:"domain"`
}

// Alive says whether a domain has a machine, running or paused.
func Alive(domain *api.Domain) bool {
	if domain == nil {
		return false
	}
	switch domain.Status.Status {
	case api.Shutoff, api.Crashed, "":
		return false
	}
	return true
}

// state is the domain as far as the launcher knows it.
type state struct {
	mu       sync.Mutex // guards the fields below
	revision int
	domain   *api.Domain
	changed  chan struct{} // closed and replaced at each change
	// ending is why qemu is about to end, or has ended; empty as long as nobody said so.
	ending api.StateChangeReason
}

func newState(vmi *v1.VirtualMachineInstance) *state {
	domain := api.NewMinimalDomainWithNS(vmi.Namespace, vmi.Name)
	domain.Spec.Metadata.KubeVirt.UID = vmi.UID
	domain.Spec.OS.Type.Machine = MachineType
	domain.Spec.CurrentMemory = &api.Memory{Value: uint64(memory(vmi)), Unit: "b"}
	// Paused, for the reason libvirt has while it makes a machine.
	domain.Status = api.DomainStatus{Status: api.Paused, Reason: api.ReasonPausedStartingUp}
	return &state{revision: 1, domain: domain, changed: make(chan struct{})}
}

// update changes the domain and wakes those who wait for that. What changes nothing wakes nobody: virt-handler repeats
// its orders whenever it is woken.
func (s *state) update(change func(domain *api.Domain)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := s.domain.DeepCopy()
	change(changed)
	if reflect.DeepEqual(changed, s.domain) {
		return
	}
	s.domain = changed
	s.revision++
	close(s.changed)
	s.changed = make(chan struct{})
}

// after waits for a revision greater than the given one, or for ctx.
func (s *state) after(ctx context.Context, revision int) Snapshot {
	for {
		s.mu.Lock()
		now, changed := Snapshot{s.revision, s.domain}, s.changed
		s.mu.Unlock()
		if now.Revision > revision {
			return now
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return now
		}
	}
}

func (s *state) lifecycle(status api.LifeCycle, reason api.StateChangeReason) {
	s.update(func(domain *api.Domain) {
		domain.Status.Status, domain.Status.Reason = status, reason
	})
}

// observe turns qemu's events into libvirt's states, as far as virt-handler acts on them (qemu qapi/run-state.json).
func (s *state) observe(e event) {
	switch e.Name {
	case "RESUME":
		s.lifecycle(api.Running, api.ReasonUnknown)
	case "STOP":
		s.lifecycle(api.Paused, s.pauseReason())
	case "SHUTDOWN":
		s.setEnding(endingReason(e.Data.Reason))
	case "GUEST_PANICKED":
		s.setEnding(api.ReasonPanicked)
	case "MIGRATION":
		s.observeMigration(e.Data.Status)
	}
}

func (s *state) pauseReason() api.StateChangeReason {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.domain.Spec.Metadata.KubeVirt.Migration; m != nil && m.EndTimestamp == nil {
		if m.Mode == v1.MigrationPostCopy {
			return api.ReasonPausedPostcopy
		}
		return api.ReasonPausedMigration
	}
	return api.ReasonPausedUser
}

func endingReason(qemu string) api.StateChangeReason {
	switch qemu {
	case "guest-shutdown", "guest-reset":
		return api.ReasonShutdown
	case "guest-panic":
		return api.ReasonPanicked
	}
	return api.ReasonDestroyed
}

// ended records that qemu is gone, with the reason that it gave. Without one it crashed or was killed.
func (s *state) ended() {
	s.mu.Lock()
	reason := s.ending
	s.mu.Unlock()
	if reason == "" {
		s.lifecycle(api.Crashed, api.ReasonCrashed)
		return
	}
	s.lifecycle(api.Shutoff, reason)
}

// setEnding notes why qemu is about to end. The first reason counts: after an order to quit, qemu tells of a quit,
// whatever it was for.
func (s *state) setEnding(reason api.StateChangeReason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending == "" {
		s.ending = reason
	}
}

// observeMigration keeps KubeVirt's record of a migration (api.MigrationMetadata), on both of its sides.
func (s *state) observeMigration(status string) {
	s.update(func(domain *api.Domain) {
		metadata := &domain.Spec.Metadata.KubeVirt
		if metadata.Migration == nil {
			metadata.Migration = &api.MigrationMetadata{}
		}
		now := metav1.Now()
		switch status {
		case "setup", "active":
			if metadata.Migration.StartTimestamp == nil {
				metadata.Migration.StartTimestamp = &now
				metadata.Migration.Mode = v1.MigrationPreCopy
			}
		case "postcopy-active":
			metadata.Migration.Mode = v1.MigrationPostCopy
		case "completed":
			metadata.Migration.EndTimestamp = &now
		case "failed", "cancelled":
			metadata.Migration.EndTimestamp = &now
			metadata.Migration.Failed = true
			metadata.Migration.FailureReason = "qemu: migration " + status
			if status == "cancelled" {
				metadata.Migration.AbortStatus = string(v1.MigrationAbortSucceeded)
			}
		}
	})
}

// beginMigration forgets an earlier migration; it returns false if this one is known.
func (s *state) beginMigration(uid types.UID) bool {
	begun := false
	s.update(func(domain *api.Domain) {
		metadata := &domain.Spec.Metadata.KubeVirt
		if metadata.Migration != nil && metadata.Migration.UID == uid {
			return
		}
		metadata.Migration, begun = &api.MigrationMetadata{UID: uid}, true
	})
	return begun
}

// markShutdown notes that the pod was told to end.
func (s *state) markShutdown() {
	s.update(func(domain *api.Domain) {
		metadata, marked := &domain.Spec.Metadata.KubeVirt, true
		if metadata.GracePeriod == nil {
			metadata.GracePeriod = &api.GracePeriodMetadata{}
		}
		metadata.GracePeriod.MarkedForGracefulShutdown = &marked
	})
}

// beginShutdown notes when the guest was first asked to end.
func (s *state) beginShutdown(grace int64) {
	s.update(func(domain *api.Domain) {
		metadata := &domain.Spec.Metadata.KubeVirt
		if metadata.GracePeriod == nil || metadata.GracePeriod.DeletionTimestamp == nil {
			now := metav1.Now()
			begun := api.GracePeriodMetadata{DeletionGracePeriodSeconds: grace, DeletionTimestamp: &now}
			if metadata.GracePeriod != nil {
				begun.MarkedForGracefulShutdown = metadata.GracePeriod.MarkedForGracefulShutdown
			}
			metadata.GracePeriod = &begun
		}
	})
}
