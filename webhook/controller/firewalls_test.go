package controller

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/yaml"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook/kubevirt"
)

const running = "virt-launcher-a-1"

// guarded has the running VM "a" with 192.168.100.50, and the controller of its firewall.
type guarded struct {
	*world
	firewalls *Firewalls
	vm        client.Object
}

func newGuarded(t *testing.T, annotations map[string]string) *guarded {
	t.Helper()
	w := newWorld(t)
	w.start()
	all := w.commit("a", "uid-a")
	maps.Copy(all, annotations)
	g := &guarded{world: w, vm: vm("a", "uid-a", all)}
	pod := launcher(t, running, "uid-a")
	pod.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: "kubevirt.io/v1", Kind: kubevirt.KindVMI, Name: "a", UID: "vmi-a", Controller: new(true),
	}}
	instance := vmi("a", "uid-a")
	instance.Spec = kubevirt.VMISpec{
		Networks: []kubevirt.Network{{Name: "default", Pod: &kubevirt.PodNetwork{}}},
		Domain: kubevirt.Domain{Devices: kubevirt.Devices{Interfaces: []kubevirt.Interface{
			{Name: "default", Masquerade: &kubevirt.Masquerade{}},
		}}},
	}
	w.create(g.vm, instance, pod)
	w.look() // makes the FloatingIP
	w.events()
	g.firewalls = &Firewalls{
		Ledger: w.ledger, Cluster: Cluster{Cached: w.client, Live: w.client}, Writer: w.client,
		Events: Events{Recorder: w.recorder}, Started: w.starter,
	}
	return g
}

func (g *guarded) round() error {
	_, err := g.firewalls.Reconcile(g.t.Context(), requestOf(running))
	return err
}

func (g *guarded) pod() *corev1.Pod {
	g.t.Helper()
	pod := &corev1.Pod{}
	if err := g.client.Get(g.t.Context(), types.NamespacedName{Namespace: "vms", Name: running}, pod); err != nil {
		g.t.Fatal(err)
	}
	return pod
}

// admitted makes a round and returns what the running pod admits from outside after it.
func (g *guarded) admitted() string {
	g.t.Helper()
	if err := g.round(); err != nil {
		g.t.Fatal(err)
	}
	nat, err := floatip.ParsePodNAT([]byte(g.pod().Annotations[floatip.AnnotationNAT]))
	if err != nil {
		g.t.Fatal(err)
	}
	if nat.Firewall == nil || nat.Firewall.Ingress.Everything {
		return "everything"
	}
	var texts []string
	for _, e := range nat.Firewall.Ingress.Entries {
		texts = append(texts, e.String())
	}
	return strings.Join(texts, ", ")
}

func (g *guarded) policy(name, spec string) *networkingv1.NetworkPolicy {
	g.t.Helper()
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "vms", Name: name}}
	if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
		g.t.Fatal(err)
	}
	g.create(p)
	return p
}

// merge patches an object; a nil value takes a key away.
func (g *guarded) merge(o client.Object, fields map[string]any) {
	g.t.Helper()
	raw, err := json.Marshal(fields)
	if err != nil {
		g.t.Fatal(err)
	}
	if err := g.client.Patch(g.t.Context(), o, client.RawPatch(types.MergePatchType, raw)); err != nil {
		g.t.Fatal(err)
	}
}

func (g *guarded) allow(list any) {
	g.t.Helper()
	g.merge(g.vm, map[string]any{"metadata": map[string]any{"annotations": map[string]any{floatip.AnnotationAllow: list}}})
}

// condition returns reason and status of FirewallReady.
func (g *guarded) condition() string {
	g.t.Helper()
	ip := &v1alpha1.FloatingIP{}
	if err := g.client.Get(g.t.Context(), types.NamespacedName{Name: "192.168.100.50"}, ip); err != nil {
		g.t.Fatal(err)
	}
	c := meta.FindStatusCondition(ip.Status.Conditions, v1alpha1.ConditionFirewallReady)
	if c == nil {
		return ""
	}
	return string(c.Status) + " " + c.Reason
}

// The running pod follows everybody who has a say, in whatever order they change their minds.
func TestFirewallFollows(t *testing.T) {
	g := newGuarded(t, nil)
	provider := pool("provider")
	var deny, ssh client.Object
	for _, step := range []struct {
		name   string
		change func()
		want   string
	}{
		{"nobody restricts", func() {}, "everything"},
		{"default deny", func() { deny = g.policy("deny", "podSelector: {}") }, ""},
		{"one port for one network", func() {
			ssh = g.policy("ssh", "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: 22}]}]}")
		}, ""},
		{"the pod gets the label", func() {
			g.merge(g.pod(), map[string]any{"metadata": map[string]any{"labels": map[string]any{"app": "db"}}})
		}, "192.0.2.0/24 tcp/22"},
		{"the VM allows fewer", func() { g.allow("any from 192.0.2.128/25") }, "192.0.2.128/25 tcp/22"},
		{"the VM allows others", func() { g.allow("any from 198.51.100.0/24") }, ""},
		{"policies removed", func() { g.remove(deny, ssh) }, "198.51.100.0/24 any"},
		{"allow list unreadable", func() { g.allow("ssh") }, ""},
		{"allow list removed", func() { g.allow(nil) }, "everything"},
		{"pool denies", func() { g.merge(provider, map[string]any{"spec": map[string]any{"firewall": "Deny"}}) }, ""},
		{"the VM allows", func() { g.allow("icmp") }, "0.0.0.0/0 icmp, ::/0 icmp"},
		{"pool allows", func() { g.allow(nil); g.merge(provider, map[string]any{"spec": map[string]any{"firewall": "Allow"}}) }, "everything"},
	} {
		step.change()
		if got := g.admitted(); got != step.want {
			t.Errorf("%s: admits %q, want %q", step.name, got, step.want)
		}
	}
}

// A round on what is right already writes nothing, and of the description only the firewall is ever changed.
func TestFirewallWritesOnlyChanges(t *testing.T) {
	g := newGuarded(t, nil)
	g.policy("deny", "podSelector: {}")
	g.admitted()
	first := g.pod()
	nat, err := floatip.ParsePodNAT([]byte(first.Annotations[floatip.AnnotationNAT]))
	if err != nil {
		t.Fatal(err)
	}
	nat.Firewall = nil
	if text, err := nat.Encode(); err != nil || text != launcher(t, running, "uid-a").Annotations[floatip.AnnotationNAT] {
		t.Errorf("without the firewall: %s, %v", text, err)
	}
	ip := &v1alpha1.FloatingIP{}
	if err := g.client.Get(t.Context(), types.NamespacedName{Name: "192.168.100.50"}, ip); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		g.admitted()
	}
	again := &v1alpha1.FloatingIP{}
	if err := g.client.Get(t.Context(), types.NamespacedName{Name: "192.168.100.50"}, again); err != nil {
		t.Fatal(err)
	}
	if second := g.pod(); second.ResourceVersion != first.ResourceVersion || again.ResourceVersion != ip.ResourceVersion {
		t.Errorf("written again: pod %s to %s, FloatingIP %s to %s",
			first.ResourceVersion, second.ResourceVersion, ip.ResourceVersion, again.ResourceVersion)
	}
}

// What cannot be translated is told once, by an event at the VM and by the condition, and taken back when it is mended.
func TestFirewallProblemsAreTold(t *testing.T) {
	g := newGuarded(t, nil)
	var blocks []string
	for i := range floatip.MaxFirewallEntries + 1 {
		blocks = append(blocks, fmt.Sprintf("{ipBlock: {cidr: 10.%d.%d.0/24}}", i/128, 2*(i%128)))
	}
	for _, tc := range []struct {
		reason, spec string
	}{
		{"FirewallTooLarge", "{podSelector: {}, ingress: [{from: [" + strings.Join(blocks, ", ") + "]}]}"},
		{"NetworkPolicyMalformed", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [x]}}]}]}"},
		{"NetworkPolicyPortUnknown", "{podSelector: {}, ingress: [{ports: [{port: http}]}]}"},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			p := g.policy("bad", tc.spec)
			for range 3 {
				if got := g.admitted(); got != "" {
					t.Errorf("admits %q", got)
				}
			}
			if got := g.condition(); got != "False "+tc.reason {
				t.Errorf("condition %q", got)
			}
			if told := g.events(); len(told) != 1 || !strings.HasPrefix(told[0], "Warning "+tc.reason+" ") {
				t.Errorf("events: %q", told)
			}
			g.remove(p)
			if got := g.admitted(); got != "everything" || g.condition() != "True Translated" {
				t.Errorf("mended: admits %q, condition %q", got, g.condition())
			}
			if told := g.events(); len(told) > 0 {
				t.Errorf("events: %q", told)
			}
		})
	}
}

// The conditions of the node agent stay.
func TestFirewallConditionBesideOthers(t *testing.T) {
	g := newGuarded(t, nil)
	ip := &v1alpha1.FloatingIP{ObjectMeta: metav1.ObjectMeta{Name: "192.168.100.50"}}
	other := metav1.Condition{Type: v1alpha1.ConditionNATReady, Status: metav1.ConditionTrue, Reason: "Installed", LastTransitionTime: metav1.NewTime(epoch)}
	patch := mergeStatus(t, map[string]any{"conditions": []metav1.Condition{other}})
	if err := g.client.Status().Patch(t.Context(), ip, patch); err != nil {
		t.Fatal(err)
	}
	g.admitted()
	if err := g.client.Get(t.Context(), client.ObjectKeyFromObject(ip), ip); err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, c := range ip.Status.Conditions {
		have = append(have, c.Type+" "+c.Reason)
	}
	slices.Sort(have)
	if diff := cmp.Diff([]string{"FirewallReady Translated", "NATReady Installed"}, have); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The VM is gone and its guest runs on: nobody can allow anew, so what is admitted only shrinks.
func TestFirewallOfAnOrphan(t *testing.T) {
	g := newGuarded(t, map[string]string{floatip.AnnotationAllow: "tcp/22, tcp/80"})
	const both = "0.0.0.0/0 tcp/22, 0.0.0.0/0 tcp/80, ::/0 tcp/22, ::/0 tcp/80"
	if got := g.admitted(); got != both {
		t.Fatalf("admits %q", got)
	}
	g.remove(g.vm)
	if got := g.admitted(); got != both {
		t.Errorf("after the VM went: admits %q", got)
	}
	p := g.policy("ssh", "{podSelector: {}, ingress: [{ports: [{port: 22}]}]}")
	const ssh = "0.0.0.0/0 tcp/22, ::/0 tcp/22"
	if got := g.admitted(); got != ssh {
		t.Errorf("after a policy: admits %q", got)
	}
	g.remove(p)
	if got := g.admitted(); got != ssh {
		t.Errorf("after the policy went: admits %q", got)
	}
}

// Somebody else's change since the pod was read is not overwritten: the round fails and is made again.
func TestFirewallPatchTestsTheOldValue(t *testing.T) {
	g := newGuarded(t, nil)
	stale := metadataOf(podKind)
	if err := g.client.Get(t.Context(), types.NamespacedName{Namespace: "vms", Name: running}, stale); err != nil {
		t.Fatal(err)
	}
	before, err := floatip.ParsePodNAT([]byte(stale.Annotations[floatip.AnnotationNAT]))
	if err != nil {
		t.Fatal(err)
	}
	g.policy("deny", "podSelector: {}")
	g.admitted()
	now := g.pod().Annotations[floatip.AnnotationNAT]
	after := before
	after.Firewall = &floatip.Firewall{Egress: floatip.Admitted{Everything: true}, Ingress: floatip.Admitted{Everything: true}}
	if err := g.firewalls.write(t.Context(), stale, before, after); err == nil {
		t.Error("written over a newer value")
	}
	if got := g.pod().Annotations[floatip.AnnotationNAT]; got != now {
		t.Errorf("the pod has %s", got)
	}
}

// Pods that translate nothing, or that are about to go, are left alone.
func TestFirewallLeavesAlone(t *testing.T) {
	for name, change := range map[string]func(*guarded){
		"no description": func(g *guarded) {
			g.merge(g.pod(), map[string]any{"metadata": map[string]any{"annotations": map[string]any{floatip.AnnotationNAT: nil}}})
		},
		"the VMI is gone":  func(g *guarded) { g.remove(vmi("a", "")) },
		"another instance": func(g *guarded) { g.merge(g.pod(), ownedBy("vmi-later")) },
		"the pod is gone":  func(g *guarded) { g.remove(g.pod()) },
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuarded(t, nil)
			g.policy("deny", "podSelector: {}")
			change(g)
			if err := g.round(); err != nil {
				t.Error(err)
			}
			var pods corev1.PodList
			if err := g.client.List(t.Context(), &pods); err != nil {
				t.Fatal(err)
			}
			for _, p := range pods.Items {
				if strings.Contains(p.Annotations[floatip.AnnotationNAT], "firewall") {
					t.Errorf("changed: %s", p.Annotations[floatip.AnnotationNAT])
				}
			}
		})
	}
}

func ownedBy(uid string) map[string]any {
	return map[string]any{"metadata": map[string]any{"ownerReferences": []map[string]any{{
		"apiVersion": "kubevirt.io/v1", "kind": kubevirt.KindVMI, "name": "a", "uid": uid, "controller": true,
	}}}}
}

// Each change asks for the pods that it concerns, and for no others.
func TestFirewallConcerns(t *testing.T) {
	g := newGuarded(t, nil)
	other := launcher(t, "virt-launcher-b-1", "uid-b")
	other.OwnerReferences = []metav1.OwnerReference{{APIVersion: "kubevirt.io/v1", Kind: kubevirt.KindVMI, Name: "b", UID: "vmi-b", Controller: new(true)}}
	far := other.DeepCopy()
	far.Namespace = "elsewhere"
	plain := other.DeepCopy()
	plain.Name, plain.Annotations = "virt-launcher-c-1", nil
	g.create(other, far, plain)
	names := func(requests []reconcile.Request) (list []string) {
		for _, r := range requests {
			list = append(list, r.String())
		}
		slices.Sort(list)
		return list
	}
	const a, b, c = "vms/virt-launcher-a-1", "vms/virt-launcher-b-1", "elsewhere/virt-launcher-b-1"
	ctx, r := t.Context(), g.firewalls
	for name, tc := range map[string]struct {
		have []reconcile.Request
		want []string
	}{
		"a VM":         {r.podsOfVM(ctx, vm("a", "", nil)), []string{a}},
		"a policy":     {r.podsOfNamespace(ctx, &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "vms"}}), []string{a, b}},
		"a pool":       {r.allPods(ctx, pool("provider")), []string{c, a, b}},
		"a FloatingIP": {r.podsOfFloatingIP(ctx, floatingIP("50", "a", "uid-a")), []string{a}},
	} {
		if diff := cmp.Diff(tc.want, names(tc.have)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
