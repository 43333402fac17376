package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

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

// agentMayOnly: the agents share a service account; a policy leaves each its own node.
func agentMayOnly(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	nodes := s.Rig.LAN.Nodes
	if len(nodes) < 2 {
		t.Fatal("this test needs two nodes")
	}
	fip, err := s.FloatingIP(ctx, story.Floating)
	if err != nil {
		t.Fatal(err)
	}
	self := fip.Status.Node
	other := nodes[0].Name
	if other == self {
		other = nodes[1].Name
	}
	// kubectl reads what it patches, which an agent may not.
	as := func(node string) client.Client {
		config := rest.CopyConfig(s.Rig.Cluster.RESTConfig())
		config.Impersonate = rest.ImpersonationConfig{
			UserName: "system:serviceaccount:floatip-system:floatip-agent",
			Extra:    map[string][]string{"authentication.kubernetes.io/node-name": {node}},
		}
		c, err := client.New(config, client.Options{Scheme: s.Client.Scheme()})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	status := func(node string) func(client.Client) error {
		patch := fmt.Sprintf(`{"status":{"node":%q,"pod":%q}}`, node, fip.Status.Pod)
		return func(c client.Client) error {
			return c.Status().Patch(ctx, fip.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(patch)))
		}
	}
	annotation := func(node string) func(client.Client) error {
		return func(c client.Client) error {
			o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}
			patch := []byte(`{"metadata":{"annotations":{"floatip.io/test":null}}}`)
			return c.Patch(ctx, o, client.RawPatch(types.MergePatchType, patch))
		}
	}
	for _, tt := range []struct {
		name  string
		agent string
		write func(client.Client) error
		may   bool
	}{
		{"its own address", self, status(self), true},
		{"another node's address, in that node's name", other, status(self), false},
		{"another node's address away", other, status(""), false},
		{"its own node", self, annotation(self), true},
		{"another node", other, annotation(self), false},
	} {
		err := tt.write(as(tt.agent))
		if refused := err != nil && strings.Contains(err.Error(), "agents.floatip.io"); refused == tt.may || tt.may && err != nil {
			t.Errorf("an agent writes %s: %v; want it to be allowed: %t", tt.name, err, tt.may)
		}
	}
}
