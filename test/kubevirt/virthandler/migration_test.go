package virthandler_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "kubevirt.io/api/core/v1"

	"floatip.io/floatip/test/kubevirt/virthandler"
	"floatip.io/floatip/test/kubevirt/virthandler/launcher"
	"kubevirt.io/kubevirt/pkg/virt-launcher/virtwrap/api"
)

// A guest migrates from one pod to another: the source's machine ends with the reason Migrated, the guest runs on with
// its address, its MAC and its memory, and answers on the other pod's address.
func TestMigration(t *testing.T) {
	needRoot(t)
	tools(t)
	kernel, initrd := guestImage(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	vmi := instance("testvm")
	launch := func(p pod, incoming bool) (launcher.Dir, *launcher.Client) {
		runDir := shortDir(t)
		if err := virthandler.NewNetwork(runDir).Setup(vmi, vmi.Spec.Networks, p.pod); err != nil {
			t.Fatal(err)
		}
		dir := launcher.Dir(filepath.Join(runDir, string(vmi.UID)))
		spec := launcher.Spec{VMI: vmi, Kernel: kernel, Initrd: initrd, Nameserver: "10.96.0.10",
			Search: []string{"default.svc.cluster.local"}, Incoming: incoming}
		if err := launcher.Start(dir, spec, p.pod); err != nil {
			t.Fatal(err)
		}
		client := launcher.Connect(dir)
		t.Cleanup(func() { end(t, client, dir) })
		return dir, client
	}
	first, second := newPod(t, "eth0", "100.0.1.2/24"), newPod(t, "eth0", "100.0.2.2/24")
	_, source := launch(first, false)
	nic := waitFor(t, ctx, source, api.Running).Domain.Spec.Devices.Interfaces[0]
	banner(t, ctx, first.node, "100.0.1.2:22")

	// As NetStat writes it into the instance's status, from which the target takes it.
	vmi.Status.Interfaces = []v1.VirtualMachineInstanceNetworkInterface{{Name: "default", MAC: nic.MAC.MAC, PodInterfaceName: "eth0"}}
	targetDir, target := launch(second, true)
	arrived := waitFor(t, ctx, target, api.Paused)
	for arrived.Domain.Status.Reason != api.ReasonPausedMigration {
		var err error
		if arrived, err = target.Domain(ctx, arrived.Revision); err != nil {
			t.Fatal(err)
		}
	}
	if got := arrived.Domain.Spec.Devices.Interfaces[0].MAC.MAC; got != nic.MAC.MAC {
		t.Errorf("MAC on the target is %s, want the source's %s", got, nic.MAC.MAC)
	}
	begun := time.Now()
	if err := source.Migrate(ctx, "m1", launcher.MigrationTarget{Socket: targetDir.Migration()}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, ctx, target, api.Running)
	t.Logf("from the order to the guest on the target: %s", time.Since(begun).Round(time.Millisecond))
	if left := waitFor(t, ctx, source, api.Shutoff); left.Domain.Status.Reason != api.ReasonMigrated {
		t.Errorf("the source ended with reason %s, want %s", left.Domain.Status.Reason, api.ReasonMigrated)
	}
	if line := banner(t, ctx, second.node, "100.0.2.2:22"); !strings.HasPrefix(line, "SSH-2.0-dropbear") {
		t.Errorf("banner after the migration is %q", line)
	}
}
