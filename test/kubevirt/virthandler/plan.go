package virthandler

import (
	"time"

	v1 "kubevirt.io/api/core/v1"

	"floatip.io/floatip/test/kubevirt/virthandler/launcher"
	"kubevirt.io/kubevirt/pkg/util/migrations"
	"kubevirt.io/kubevirt/pkg/virt-launcher/virtwrap/api"
)

// step is what to do next with the machine of an instance.
type step string

const (
	stepNone     step = "none"
	stepStart    step = "start"
	stepShutdown step = "shut down" // by the power button, until the grace period is over
	stepDestroy  step = "destroy"
	stepRemove   step = "remove" // the launcher and all that is left of an ended machine
)

// shutdownRetry is how often the power button is pressed: a guest that still boots misses it (vm.go, shutdownVMI).
const shutdownRetry = 5 * time.Second

// plan decides as virt-handler does (vm.go, sync). The instance is nil when the API no longer has it, the domain is nil
// when the node has no machine for it.
func plan(vmi *v1.VirtualMachineInstance, domain *api.Domain, node string, now time.Time) step {
	alive := launcher.Alive(domain)
	switch {
	case vmi == nil || vmi.IsFinal():
		return end(domain, alive)
	case migrated(domain):
		// The instance's state is the other node's to tell, once that has taken over.
		if ownedBy(vmi, node) {
			return stepNone
		}
		return stepRemove
	case (vmi.DeletionTimestamp != nil || podEnds(domain) && vmi.IsRunning()) && alive:
		if graceLeft(vmi, domain, now) <= 0 {
			return stepDestroy
		}
		return stepShutdown
	case vmi.DeletionTimestamp == nil && domain == nil && vmi.IsScheduled() && ownedBy(vmi, node):
		return stepStart
	}
	return stepNone
}

func end(domain *api.Domain, alive bool) step {
	switch {
	case domain == nil:
		return stepNone
	case alive:
		return stepDestroy
	}
	return stepRemove
}

// podEnds says that the pod was told to end, and the guest shall be shut down (vm.go, hasGracefulShutdownTrigger).
func podEnds(domain *api.Domain) bool {
	if domain == nil {
		return false
	}
	grace := domain.Spec.Metadata.KubeVirt.GracePeriod
	return grace != nil && grace.MarkedForGracefulShutdown != nil && *grace.MarkedForGracefulShutdown
}

// migrated says that the machine has left for another node.
func migrated(domain *api.Domain) bool {
	return domain != nil && domain.Status.Status == api.Shutoff && domain.Status.Reason == api.ReasonMigrated
}

// ownedBy says whether the node tells the state of the instance (vm.go, isVMIOwnedByNode).
func ownedBy(vmi *v1.VirtualMachineInstance, node string) bool {
	return vmi.Labels[v1.NodeNameLabel] == node || vmi.Status.NodeName == node
}

// graceLeft is how long the guest may still take for its shutdown; the time counts from the first order.
func graceLeft(vmi *v1.VirtualMachineInstance, domain *api.Domain, now time.Time) time.Duration {
	grace := gracePeriod(vmi)
	metadata := domain.Spec.Metadata.KubeVirt.GracePeriod
	if metadata == nil || metadata.DeletionTimestamp == nil {
		return grace
	}
	return metadata.DeletionTimestamp.Add(grace).Sub(now)
}

func gracePeriod(vmi *v1.VirtualMachineInstance) time.Duration {
	seconds := v1.DefaultGracePeriodSeconds
	if vmi.Spec.TerminationGracePeriodSeconds != nil {
		seconds = *vmi.Spec.TerminationGracePeriodSeconds
	}
	return time.Duration(seconds) * time.Second
}

// phase is what the instance's phase becomes (vm.go, calculateVmPhaseForStatusReason).
func phase(vmi *v1.VirtualMachineInstance, domain *api.Domain) v1.VirtualMachineInstancePhase {
	if domain == nil {
		if vmi.IsRunning() || vmi.IsScheduled() && vmi.DeletionTimestamp != nil {
			return v1.Failed // the machine vanished, or is never to start
		}
		return vmi.Status.Phase
	}
	switch domain.Status.Status {
	case api.Running, api.Blocked, api.PMSuspended:
		return v1.Running
	case api.Paused:
		if domain.Status.Reason == api.ReasonPausedStartingUp {
			return vmi.Status.Phase
		}
		return v1.Running
	case api.Shutoff, api.Crashed:
		switch domain.Status.Reason {
		case api.ReasonShutdown:
			return v1.Succeeded
		case api.ReasonMigrated:
			return vmi.Status.Phase
		}
		// Destroyed: the guest did not heed its power button within the grace period.
		return v1.Failed
	}
	return vmi.Status.Phase
}

// role is what a node has to do with an instance.
type role string

const (
	roleNone   role = "none"
	roleOwner  role = "owner"
	roleSource role = "migration source"
	roleTarget role = "migration target"
)

// roleOf follows the conditions of virt-handler's three controllers (vm.go, migration-source.go, migration-target.go).
// An instance that is deleted belongs to its owner again.
func roleOf(vmi *v1.VirtualMachineInstance, node string) role {
	state := vmi.Status.MigrationState
	deleted := vmi.DeletionTimestamp != nil || vmi.IsFinal()
	switch {
	case state != nil && !deleted && vmi.Labels[v1.MigrationTargetNodeNameLabel] == node:
		return roleTarget
	case state != nil && !deleted && vmi.Status.NodeName == node && state.SourceNode == node && !migrationDone(state):
		return roleSource
	case ownedBy(vmi, node) && (deleted || !migrations.IsMigrating(vmi)):
		return roleOwner
	}
	return roleNone
}

func migrationDone(state *v1.VirtualMachineInstanceMigrationState) bool {
	return state.EndTimestamp != nil && (state.Completed || state.Failed)
}
