package launcher

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	v1 "kubevirt.io/api/core/v1"

	"github.com/google/go-cmp/cmp"
	"kubevirt.io/kubevirt/pkg/virt-launcher/virtwrap/api"
)

func TestQEMUArgs(t *testing.T) {
	guest := resource.MustParse("256Mi")
	vmi := &v1.VirtualMachineInstance{
		ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "vm1"},
		Spec: v1.VirtualMachineInstanceSpec{Domain: v1.DomainSpec{
			Memory:   &v1.Memory{Guest: &guest},
			CPU:      &v1.CPU{Cores: 2, Sockets: 1},
			Firmware: &v1.Firmware{UUID: "5d307ca9-b3ef-428c-8861-06e72d69f223"},
			Chassis:  &v1.Chassis{Asset: "floatip=192.0.2.1,2001:db8::1"},
		}},
	}
	interfaces := []api.Interface{{MAC: &api.MAC{MAC: "02:00:00:00:00:05"}, Target: &api.InterfaceTarget{Device: "tap0"}}}
	spec := Spec{VMI: vmi, Kernel: "/guest/vmlinuz", Initrd: "/guest/initrd", Incoming: true}
	got := strings.Join(qemuArgs("/run/vm", spec, interfaces, "fd10:0:2::2/120,fd10:0:2::1"), " ")
	want := "-name guest=demo_vm1 -machine q35 -accel tcg -cpu max -smp 2 -m 262152K -nographic -nodefaults -no-user-config " +
		"-kernel /guest/vmlinuz -initrd /guest/initrd " +
		"-append console=ttyS0 quiet panic=-1 floatip.ip6=fd10:0:2::2/120,fd10:0:2::1 " +
		"-qmp unix:/run/vm/qmp.sock,server=on,wait=off " +
		"-chardev file,id=console,path=/run/vm/console.log -serial chardev:console -device virtio-serial-pci,id=serial " +
		"-chardev socket,id=guest,server=on,wait=off,path=/run/vm/guest.sock " +
		"-device virtserialport,bus=serial.0,chardev=guest,name=io.floatip.guest.0 " +
		"-uuid 5d307ca9-b3ef-428c-8861-06e72d69f223 -smbios type=3,asset=floatip=192.0.2.1,,2001:db8::1 " +
		"-netdev tap,id=net0,ifname=tap0,script=no,downscript=no " +
		"-device virtio-net-pci,id=nic0,netdev=net0,mac=02:00:00:00:00:05,romfile= " +
		"-incoming unix:/run/vm/migration.sock"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestMemory(t *testing.T) {
	for _, row := range []struct {
		request string
		want    int64
	}{
		{"64M", leastMemory},
		{"1Gi", 1 << 30},
	} {
		vmi := &v1.VirtualMachineInstance{}
		vmi.Spec.Domain.Resources.Requests = corev1.ResourceList{"memory": resource.MustParse(row.request)}
		if got := memory(vmi); got != row.want {
			t.Errorf("request of %s: %d bytes, want %d", row.request, got, row.want)
		}
	}
}

// What qemu tells becomes the states of libvirt that virt-handler knows.
func TestObserve(t *testing.T) {
	shutdown := func(reason string) event {
		e := event{Name: "SHUTDOWN"}
		e.Data.Reason = reason
		return e
	}
	migration := func(status string) event {
		e := event{Name: "MIGRATION"}
		e.Data.Status = status
		return e
	}
	for name, row := range map[string]struct {
		events []event
		ended  bool
		want   api.DomainStatus
	}{
		"made":                           {nil, false, api.DomainStatus{Status: api.Paused, Reason: api.ReasonPausedStartingUp}},
		"runs":                           {[]event{{Name: "RESUME"}}, false, api.DomainStatus{Status: api.Running, Reason: api.ReasonUnknown}},
		"paused":                         {[]event{{Name: "STOP"}}, false, api.DomainStatus{Status: api.Paused, Reason: api.ReasonPausedUser}},
		"paused to migrate":              {[]event{migration("active"), {Name: "STOP"}}, false, api.DomainStatus{Status: api.Paused, Reason: api.ReasonPausedMigration}},
		"runs elsewhere, memory is here": {[]event{migration("active"), migration("postcopy-active"), {Name: "STOP"}}, false, api.DomainStatus{Status: api.Paused, Reason: api.ReasonPausedPostcopy}},
		"guest powered off":              {[]event{shutdown("guest-shutdown")}, true, api.DomainStatus{Status: api.Shutoff, Reason: api.ReasonShutdown}},
		"told to quit":                   {[]event{shutdown("host-qmp-quit")}, true, api.DomainStatus{Status: api.Shutoff, Reason: api.ReasonDestroyed}},
		"killed":                         {nil, true, api.DomainStatus{Status: api.Crashed, Reason: api.ReasonCrashed}},
		"the guest panicked":             {[]event{{Name: "GUEST_PANICKED"}}, true, api.DomainStatus{Status: api.Shutoff, Reason: api.ReasonPanicked}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newState(&v1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "vm1"}})
			for _, e := range row.events {
				s.observe(e)
			}
			if row.ended {
				s.ended()
			}
			if diff := cmp.Diff(row.want, s.after(t.Context(), 0).Domain.Status); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
		})
	}
}

func TestObserveMigration(t *testing.T) {
	s := newState(&v1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "vm1"}})
	if !s.beginMigration("a") || s.beginMigration("a") {
		t.Error("a migration begins once")
	}
	s.observeMigration("active")
	s.observeMigration("cancelled")
	got := s.after(t.Context(), 0).Domain.Spec.Metadata.KubeVirt.Migration
	if got.UID != "a" || got.StartTimestamp == nil || got.EndTimestamp == nil || !got.Failed ||
		got.AbortStatus != string(v1.MigrationAbortSucceeded) {
		t.Errorf("a cancelled migration: %+v", got)
	}
	if !s.beginMigration("b") {
		t.Error("another migration does not begin")
	}
	if got := s.after(t.Context(), 0).Domain.Spec.Metadata.KubeVirt.Migration; got.Failed || got.EndTimestamp != nil {
		t.Errorf("the next migration has the last one's end: %+v", got)
	}
}

// As KubeVirt waits: a second more than it is told for each gigabyte of memory that was begun.
func TestPostCopyAfter(t *testing.T) {
	yes, no := true, false
	for _, row := range []struct {
		allowed *bool
		perGiB  int64
		memory  string
		want    time.Duration
	}{
		{&yes, 1, "64M", 2 * time.Second},
		{&yes, 2, "1500M", 5 * time.Second},
		{&yes, 0, "64M", 0},
		{&no, 1, "64M", 0},
		{nil, 1, "64M", 0},
	} {
		vmi := &v1.VirtualMachineInstance{}
		if got := PostCopyAfter(vmi); got != 0 {
			t.Errorf("without a migration: %s", got)
		}
		vmi.Spec.Domain.Resources.Requests = corev1.ResourceList{"memory": resource.MustParse(row.memory)}
		vmi.Status.MigrationState = &v1.VirtualMachineInstanceMigrationState{MigrationConfiguration: &v1.MigrationConfiguration{
			AllowPostCopy: row.allowed, CompletionTimeoutPerGiB: &row.perGiB,
		}}
		if got := PostCopyAfter(vmi); got != row.want {
			t.Errorf("%+v: %s, want %s", row, got, row.want)
		}
	}
}

// An order that is repeated is no change: the launcher's client would be woken to repeat it again.
func TestBeginShutdownTwice(t *testing.T) {
	s := newState(&v1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "vm1"}})
	s.beginShutdown(30)
	once := s.after(t.Context(), 0)
	s.beginShutdown(30)
	if twice := s.after(t.Context(), 0); twice.Revision != once.Revision {
		t.Errorf("revision %d after the second order, want %d as after the first", twice.Revision, once.Revision)
	}
	if got := once.Domain.Spec.Metadata.KubeVirt.GracePeriod; got == nil || got.DeletionTimestamp == nil {
		t.Error("the time of the first order is not noted")
	}
	s.markShutdown()
	marked := s.after(t.Context(), 0)
	s.markShutdown()
	s.beginShutdown(30)
	now := s.after(t.Context(), 0)
	if got := now.Domain.Spec.Metadata.KubeVirt.GracePeriod; now.Revision != marked.Revision || got.DeletionTimestamp == nil ||
		got.MarkedForGracefulShutdown == nil {
		t.Errorf("after the pod was told to end, twice: revision %d, %+v; want %d", now.Revision, got, marked.Revision)
	}
}

// A waiter hears of a change, and gives up with its context.
func TestAfter(t *testing.T) {
	s := newState(&v1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "vm1"}})
	first := s.after(t.Context(), 0)
	heard := make(chan Snapshot)
	go func() { heard <- s.after(t.Context(), first.Revision) }()
	s.lifecycle(api.Running, api.ReasonUnknown)
	if got := <-heard; got.Revision <= first.Revision || got.Domain.Status.Status != api.Running {
		t.Errorf("after revision %d: revision %d, %s", first.Revision, got.Revision, got.Domain.Status.Status)
	}
	if first.Domain.Status.Status != api.Paused {
		t.Error("a snapshot changed after it was taken")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if got := s.after(ended, 1000); got.Revision >= 1000 {
		t.Errorf("revision %d from nowhere", got.Revision)
	}
}
