package virthandler

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	v1 "kubevirt.io/api/core/v1"

	"floatip.io/floatip/test/kubevirt/virthandler/launcher"
	netsetup "kubevirt.io/kubevirt/pkg/network/setup"
	"kubevirt.io/kubevirt/pkg/util/migrations"
	"kubevirt.io/kubevirt/pkg/virt-launcher/virtwrap/api"
)

// syncSource starts, cancels and reports a migration away from this node (migration-source.go).
func (h *Handler) syncSource(ctx context.Context, vmi *v1.VirtualMachineInstance, domain *api.Domain) error {
	before := vmi.DeepCopy()
	var syncErr error
	if launcher.Alive(domain) {
		syncErr = h.migrate(ctx, vmi)
	}
	reportProgress(vmi, domain)
	if err := h.netStat.UpdateStatus(vmi, domain); err != nil {
		return errors.Join(syncErr, err)
	}
	return errors.Join(syncErr, h.update(ctx, before, vmi))
}

// migrate gives the launcher its order once the target listens.
func (h *Handler) migrate(ctx context.Context, vmi *v1.VirtualMachineInstance) error {
	m, domain, _ := h.machines.get(vmi.UID)
	state := vmi.Status.MigrationState
	begun := domain.Spec.Metadata.KubeVirt.Migration
	switch {
	case state.AbortRequested:
		if begun == nil || begun.UID != state.MigrationUID || begun.EndTimestamp != nil {
			return nil
		}
		return m.client.CancelMigration(ctx)
	case state.TargetNodeAddress == "" || begun != nil && begun.UID == state.MigrationUID:
		return nil
	}
	to := launcher.MigrationTarget{Socket: state.TargetNodeAddress, PostCopyAfter: launcher.PostCopyAfter(vmi)}
	if c := state.MigrationConfiguration; c != nil && c.BandwidthPerMigration != nil {
		to.Bandwidth = *c.BandwidthPerMigration
	}
	if err := m.client.Migrate(ctx, state.MigrationUID, to); err != nil {
		return err
	}
	h.recorder.Event(vmi, corev1.EventTypeNormal, v1.Migrating.String(), "VirtualMachineInstance is migrating.")
	return nil
}

// reportProgress copies what the launcher says of the running migration (setMigrationProgressStatus).
func reportProgress(vmi *v1.VirtualMachineInstance, domain *api.Domain) {
	state := vmi.Status.MigrationState
	if domain == nil || domain.Spec.Metadata.KubeVirt.Migration == nil ||
		domain.Spec.Metadata.KubeVirt.Migration.UID != state.MigrationUID {
		return
	}
	migration := domain.Spec.Metadata.KubeVirt.Migration
	if migration.StartTimestamp != nil {
		state.StartTimestamp = migration.StartTimestamp
	}
	state.Mode = migration.Mode
	state.AbortStatus = v1.MigrationAbortStatus(migration.AbortStatus)
	if migration.Failed {
		state.Failed, state.EndTimestamp, state.FailureReason = true, migration.EndTimestamp, migration.FailureReason
	}
}

// syncTarget prepares this node for a machine and takes it over (migration-target.go).
func (h *Handler) syncTarget(ctx context.Context, vmi *v1.VirtualMachineInstance, domain *api.Domain) error {
	before := vmi.DeepCopy()
	state := vmi.Status.MigrationState
	if migrationDone(state) {
		return h.finishTarget(ctx, before, vmi, domain)
	}
	if domain == nil {
		if err := h.start(ctx, vmi, netsetup.FilterNetsForMigrationTarget(vmi), true); err != nil {
			h.recorder.Event(vmi, corev1.EventTypeWarning, v1.SyncFailed.String(), err.Error())
			return err
		}
		return nil // the launcher's first state brings us back
	}
	if state.StartTimestamp != nil && state.EndTimestamp != nil {
		state.Completed = true
		if domain.Status.Status != api.Running {
			state.Failed = true
		}
	} else {
		h.reportArrival(vmi, domain)
	}
	return h.update(ctx, before, vmi)
}

// reportArrival tells how far the machine has come; CNIs move the address on TargetNodeDomainReadyTimestamp.
func (h *Handler) reportArrival(vmi *v1.VirtualMachineInstance, domain *api.Domain) {
	state, now := vmi.Status.MigrationState, metav1.Now()
	target := state.TargetState
	if target == nil {
		target = &v1.VirtualMachineInstanceMigrationTargetState{} // an older virt-controller keeps none
	}
	if launcher.Alive(domain) && !state.TargetNodeDomainDetected {
		state.TargetNodeDomainDetected, target.DomainDetected = true, true
	}
	running := domain.Status.Status == api.Running
	if running && state.TargetNodeDomainReadyTimestamp == nil {
		state.TargetNodeDomainReadyTimestamp, target.DomainReadyTimestamp = &now, &now
	}
	migration := domain.Spec.Metadata.KubeVirt.Migration
	if migration != nil && migration.EndTimestamp != nil {
		if state.StartTimestamp == nil {
			state.StartTimestamp = migration.StartTimestamp
		}
		state.EndTimestamp = migration.EndTimestamp
		if running && !migration.Failed {
			h.takeOver(vmi)
		} else {
			state.Failed, state.Completed = true, true
		}
	}
	waiting := domain.Status.Status == api.Paused && domain.Status.Reason == api.ReasonPausedMigration
	if address := string(Dir(h.RunDir, vmi.UID).Migration()); waiting && !migrations.IsMigrating(vmi) && state.TargetNodeAddress != address {
		// KubeVirt's nodes name an address and ports of their migration proxies; the rig's share one machine.
		state.TargetNodeAddress, target.NodeAddress = address, &address
		h.recorder.Event(vmi, corev1.EventTypeNormal, v1.PreparingTarget.String(),
			fmt.Sprintf("Migration Target is listening at %s", address))
	}
}

// takeOver makes this node the instance's owner (ackMigrationCompletion).
func (h *Handler) takeOver(vmi *v1.VirtualMachineInstance) {
	if vmi.Labels == nil {
		vmi.Labels = map[string]string{}
	}
	vmi.Labels[v1.NodeNameLabel] = h.Node
	delete(vmi.Labels, v1.OutdatedLauncherImageLabel)
	delete(vmi.Annotations, v1.EvictionSourceAnnotation)
	vmi.Status.LauncherContainerImageVersion = ""
	vmi.Status.NodeName = h.Node
	vmi.Status.EvacuationNodeName = ""
	vmi.Status.MigrationTransport = v1.MigrationTransportUnix
	h.recorder.Event(vmi, corev1.EventTypeNormal, v1.Migrated.String(),
		fmt.Sprintf("The VirtualMachineInstance migrated to node %s.", h.Node))
}

// finishTarget ends the part of this node as a target: after a failure nothing of the machine stays (finalCleanup).
func (h *Handler) finishTarget(ctx context.Context, before, vmi *v1.VirtualMachineInstance, domain *api.Domain) error {
	if vmi.Status.MigrationState.Failed && domain != nil {
		if err := h.do(ctx, end(domain, launcher.Alive(domain)), vmi); err != nil {
			return err
		}
		if launcher.Alive(domain) {
			return nil // its end brings us back
		}
	}
	delete(vmi.Labels, v1.MigrationTargetNodeNameLabel)
	return h.update(ctx, before, vmi)
}
