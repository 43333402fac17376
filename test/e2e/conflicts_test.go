package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/test/rig/lan"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/story"
)

// foreignHost: a host on the provider network has the addresses of two VMs before they start. The one that floatip chose
// is exchanged for the next; the one that was asked for waits, says why, and starts when the host gives it up.
func foreignHost(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	wanted := netip.MustParseAddr("192.168.100.90")
	for name, annotations := range map[string]map[string]string{
		"wanderer": nil, "waiter": {floatip.AnnotationRequest: wanted.String()},
	} {
		vm, err := createVM(ctx, s, story.Namespace, name, annotations)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Client.Delete(context.WithoutCancel(ctx), vm); err != nil {
				t.Error(err)
			}
		})
	}
	first, err := s.AddressOf(ctx, story.Namespace, "wanderer")
	if err != nil {
		t.Fatal(err)
	}
	host := s.Rig.LAN.ProviderHost.Namespace
	address := func(verb string, a netip.Addr) {
		t.Helper()
		if _, err := lan.Exec(ctx, host, "ip", "address", verb, a.String()+"/32", "dev", "lo"); err != nil {
			t.Fatal(err)
		}
	}
	address("add", first)
	address("add", wanted)
	for _, name := range []string{"wanderer", "waiter"} {
		if err := s.Rig.KubeVirt.Start(ctx, story.Namespace, name); err != nil {
			t.Fatal(err)
		}
	}

	var next netip.Addr
	if err := process.Wait(ctx, nil, "the next address", func(ctx context.Context) error {
		if next, err = s.AddressOf(ctx, story.Namespace, "wanderer"); err == nil && next == first {
			return fmt.Errorf("the VM still shows %s", first)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.WaitReady(ctx, next); err != nil {
		t.Fatal(err)
	}
	if _, _, err := story.WaitBanner(ctx, s.Rig.LAN.OutsideHost.Namespace, netip.AddrPortFrom(next, 22)); err != nil {
		t.Errorf("the VM does not answer at its next address %s: %v", next, err)
	}
	if line, err := s.Ledger(ctx, "history", first.String()); err != nil || !strings.Contains(line, "another host") {
		t.Errorf("the history of %s does not say why it was given back: %v\n%s", first, err, line)
	}
	told := func(name, text string) {
		t.Helper()
		vm, err := s.VM(ctx, story.Namespace, name)
		if err != nil {
			t.Fatal(err)
		}
		notes, err := s.WaitEvent(ctx, vm, "FloatingIPConflict")
		if err != nil || len(notes) != 1 || !strings.Contains(notes[0], text) || !strings.Contains(notes[0], " on ") {
			t.Errorf("events of %s: %q, %v; want one with %q", name, notes, err, text)
		}
	}
	told("wanderer", "the VM gets "+next.String())
	told("waiter", "waits for it")

	waiting, err := s.FloatingIP(ctx, wanted)
	if err != nil {
		t.Fatal(err)
	}
	ready := meta.FindStatusCondition(waiting.Status.Conditions, v1alpha1.ConditionReady)
	if waiting.Status.Phase != v1alpha1.PhaseBound || ready == nil || ready.Reason != floatip.ReasonAddressTaken {
		t.Errorf("phase %s, Ready %+v; want Bound because of the other host", waiting.Status.Phase, ready)
	}
	address("del", wanted)
	if _, err := s.WaitReady(ctx, wanted); err != nil {
		t.Error(err)
	}
	address("del", first)
}
