package virthandler

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	v1 "kubevirt.io/api/core/v1"

	"kubevirt.io/kubevirt/pkg/virt-launcher/virtwrap/api"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// instance is one on node1, changed as the row wants.
func instance(phase v1.VirtualMachineInstancePhase, changes ...func(*v1.VirtualMachineInstance)) *v1.VirtualMachineInstance {
	vmi := &v1.VirtualMachineInstance{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{v1.NodeNameLabel: "node1"}},
		Status:     v1.VirtualMachineInstanceStatus{Phase: phase, NodeName: "node1"},
	}
	for _, change := range changes {
		change(vmi)
	}
	return vmi
}

func deleted(vmi *v1.VirtualMachineInstance) { vmi.DeletionTimestamp = &metav1.Time{Time: now} }

func movedTo(node string) func(*v1.VirtualMachineInstance) {
	return func(vmi *v1.VirtualMachineInstance) {
		vmi.Labels[v1.NodeNameLabel], vmi.Status.NodeName = node, node
	}
}

// migrating is from node1 to node2.
func migrating(change func(*v1.VirtualMachineInstanceMigrationState)) func(*v1.VirtualMachineInstance) {
	return func(vmi *v1.VirtualMachineInstance) {
		vmi.Labels[v1.MigrationTargetNodeNameLabel] = "node2"
		vmi.Status.MigrationState = &v1.VirtualMachineInstanceMigrationState{SourceNode: "node1", TargetNode: "node2"}
		change(vmi.Status.MigrationState)
	}
}

func prepared(*v1.VirtualMachineInstanceMigrationState) {}

func completed(state *v1.VirtualMachineInstanceMigrationState) {
	state.StartTimestamp, state.EndTimestamp = &metav1.Time{Time: now}, &metav1.Time{Time: now}
	state.Completed = true
}

func domain(status api.LifeCycle, reason api.StateChangeReason) *api.Domain {
	return &api.Domain{Status: api.DomainStatus{Status: status, Reason: reason}}
}

// askedToEnd is a running domain whose power button was pressed some time ago.
func askedToEnd(ago time.Duration) *api.Domain {
	d := domain(api.Running, api.ReasonUnknown)
	d.Spec.Metadata.KubeVirt.GracePeriod = &api.GracePeriodMetadata{DeletionTimestamp: &metav1.Time{Time: now.Add(-ago)}}
	return d
}

// podTold is a running domain whose pod was told to end.
func podTold() *api.Domain {
	d, yes := domain(api.Running, api.ReasonUnknown), true
	d.Spec.Metadata.KubeVirt.GracePeriod = &api.GracePeriodMetadata{MarkedForGracefulShutdown: &yes}
	return d
}

func TestPlan(t *testing.T) {
	running := domain(api.Running, api.ReasonUnknown)
	off := domain(api.Shutoff, api.ReasonShutdown)
	left := domain(api.Shutoff, api.ReasonMigrated)
	for name, row := range map[string]struct {
		vmi    *v1.VirtualMachineInstance
		domain *api.Domain
		want   step
	}{
		"the pod is ready":                           {instance(v1.Scheduled), nil, stepStart},
		"the pod is ready on another node":           {instance(v1.Scheduled, movedTo("node2")), nil, stepNone},
		"the pod is not ready":                       {instance(v1.Scheduling), nil, stepNone},
		"deleted before the start":                   {instance(v1.Scheduled, deleted), nil, stepNone},
		"it runs":                                    {instance(v1.Running), running, stepNone},
		"its pod is deleted while it runs":           {instance(v1.Running), podTold(), stepShutdown},
		"deleted while it runs":                      {instance(v1.Running, deleted), running, stepShutdown},
		"deleted, within the grace period":           {instance(v1.Running, deleted), askedToEnd(10 * time.Second), stepShutdown},
		"deleted, the grace period is over":          {instance(v1.Running, deleted), askedToEnd(time.Hour), stepDestroy},
		"deleted, off, but that is not told yet":     {instance(v1.Running, deleted), off, stepNone},
		"off and told":                               {instance(v1.Succeeded), off, stepRemove},
		"failed by virt-controller while it runs":    {instance(v1.Failed), running, stepDestroy},
		"the object is gone, the machine runs":       {nil, running, stepDestroy},
		"the object is gone, the machine is off":     {nil, off, stepRemove},
		"nothing is left":                            {nil, nil, stepNone},
		"migrated away, the other node has not told": {instance(v1.Running), left, stepNone},
		"migrated away":                              {instance(v1.Running, movedTo("node2")), left, stepRemove},
	} {
		t.Run(name, func(t *testing.T) {
			if got := plan(row.vmi, row.domain, "node1", now); got != row.want {
				t.Errorf("plan: %s, want %s", got, row.want)
			}
		})
	}
}

func TestPhase(t *testing.T) {
	for name, row := range map[string]struct {
		vmi    *v1.VirtualMachineInstance
		domain *api.Domain
		want   v1.VirtualMachineInstancePhase
	}{
		"waits for its machine":             {instance(v1.Scheduled), nil, v1.Scheduled},
		"deleted before the start":          {instance(v1.Scheduled, deleted), nil, v1.Failed},
		"the machine vanished":              {instance(v1.Running), nil, v1.Failed},
		"the machine is being made":         {instance(v1.Scheduled), domain(api.Paused, api.ReasonPausedStartingUp), v1.Scheduled},
		"runs":                              {instance(v1.Scheduled), domain(api.Running, api.ReasonUnknown), v1.Running},
		"paused by a person":                {instance(v1.Running), domain(api.Paused, api.ReasonPausedUser), v1.Running},
		"the guest shut itself down":        {instance(v1.Running), domain(api.Shutoff, api.ReasonShutdown), v1.Succeeded},
		"the guest did not heed the button": {instance(v1.Running), domain(api.Shutoff, api.ReasonDestroyed), v1.Failed},
		"qemu crashed":                      {instance(v1.Running), domain(api.Crashed, api.ReasonCrashed), v1.Failed},
		"left for another node":             {instance(v1.Running), domain(api.Shutoff, api.ReasonMigrated), v1.Running},
	} {
		t.Run(name, func(t *testing.T) {
			if got := phase(row.vmi, row.domain); got != row.want {
				t.Errorf("phase: %s, want %s", got, row.want)
			}
		})
	}
}

func TestRoleOf(t *testing.T) {
	for name, row := range map[string]struct {
		vmi          *v1.VirtualMachineInstance
		node1, node2 role
	}{
		"no migration":              {instance(v1.Running), roleOwner, roleNone},
		"handed over":               {instance(v1.Running, migrating(prepared)), roleSource, roleTarget},
		"completed, not finished":   {instance(v1.Running, movedTo("node2"), migrating(completed)), roleNone, roleTarget},
		"deleted while it migrates": {instance(v1.Running, migrating(prepared), deleted), roleOwner, roleNone},
	} {
		t.Run(name, func(t *testing.T) {
			if got := [2]role{roleOf(row.vmi, "node1"), roleOf(row.vmi, "node2")}; got != [2]role{row.node1, row.node2} {
				t.Errorf("roles of node1 and node2: %s, want %s and %s", got, row.node1, row.node2)
			}
		})
	}
}
