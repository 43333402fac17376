package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/story"
)

// takesEffect bounds the time from a change of who may come in to the first packet that is judged by it. A kubelet
// writes the downward-API file within seconds, where the machine has nothing else to do.
const takesEffect = time.Minute

// knockWithin is how long a host waits for an answer: a closed port swallows what is sent to it, an open one answers
// within milliseconds, on a busy machine within some hundred.
const knockWithin = time.Second

// gate is the firewall of the VM's floating address as two hosts outside and a pod inside meet it.
type gate struct {
	*story.Story
	t   *testing.T
	ctx context.Context
	// provider is a host on the provider LAN, beyond one behind its gateway.
	provider, beyond string
	peer             netip.AddrPort // the VM by its pod address
	inside           string
}

func newGate(t *testing.T, s *story.Story) *gate {
	t.Helper()
	node := launcherPod(t, s).Spec.NodeName
	peer, err := s.Rig.LAN.AddPod(node, "gate")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Rig.LAN.DelPod(node, "gate") })
	return gateFrom(t, s, peer.Namespace)
}

// gateFrom asks the VM's pod address from a namespace of the cluster.
func gateFrom(t *testing.T, s *story.Story, inside string) *gate {
	t.Helper()
	podIP, err := netip.ParseAddr(launcherPod(t, s).Status.PodIP)
	if err != nil {
		t.Fatal(err)
	}
	return &gate{
		Story: s, t: t, ctx: bounded(t),
		provider: s.Rig.LAN.ProviderHost.Namespace, beyond: s.Rig.LAN.OutsideHost.Namespace,
		peer: netip.AddrPortFrom(podIP, 22), inside: inside,
	}
}

// admits waits until the floating address answers those it shall answer and nobody else. The pod's own address, which
// is the CNI's business, answers throughout.
func (g *gate) admits(what string, provider, beyond bool) {
	g.t.Helper()
	begun := time.Now()
	ctx, cancel := context.WithTimeout(g.ctx, takesEffect)
	defer cancel()
	err := process.Wait(ctx, nil, what, func(ctx context.Context) error {
		other := make(chan error, 1)
		go func() { other <- answers(ctx, "the host beyond", g.beyond, beyond) }()
		return errors.Join(answers(ctx, "the provider host", g.provider, provider), <-other)
	})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Logf("%s: after %s", what, time.Since(begun).Round(time.Millisecond))
	if _, err := story.Banner(g.ctx, g.inside, g.peer); err != nil {
		g.t.Errorf("%s: the pod's own address: %v", what, err)
	}
}

// answers reports whether the guest's server greets a host, and is nil if that is as wanted.
func answers(ctx context.Context, who, namespace string, want bool) error {
	short, cancel := context.WithTimeout(ctx, knockWithin)
	defer cancel()
	_, err := story.Banner(short, namespace, netip.AddrPortFrom(story.Floating, 22))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil && !want:
		return fmt.Errorf("%s gets an answer", who)
	case err != nil && want:
		return fmt.Errorf("%s gets no answer: %w", who, err)
	}
	return nil
}

// policy creates a NetworkPolicy for all pods of the VM's namespace, which is gone at the latest when the test ends.
func (g *gate) policy(name string, spec networkingv1.NetworkPolicySpec) *networkingv1.NetworkPolicy {
	g.t.Helper()
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: story.Namespace, Name: name}, Spec: spec}
	if err := g.Client.Create(g.ctx, p); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		if err := g.Client.Delete(context.Background(), p); client.IgnoreNotFound(err) != nil {
			g.t.Error(err)
		}
	})
	return p
}

func (g *gate) remove(p *networkingv1.NetworkPolicy) {
	g.t.Helper()
	if err := g.Client.Delete(g.ctx, p); err != nil {
		g.t.Fatal(err)
	}
}

// allow sets the VM's allow list, or takes it away.
func (g *gate) allow(list any) error {
	vm, err := g.VM(g.ctx, story.Namespace, story.VMName)
	if err != nil {
		return err
	}
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:null}}}`, floatip.AnnotationAllow)
	if list != nil {
		patch = fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, floatip.AnnotationAllow, list)
	}
	return g.Client.Patch(g.ctx, vm, client.RawPatch(types.MergePatchType, []byte(patch)))
}

// label labels the VM's running pod.
func (g *gate) label(key, value string) {
	g.t.Helper()
	pod, err := g.LauncherPod(g.ctx, story.Namespace, story.VMName)
	if err != nil {
		g.t.Fatal(err)
	}
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, key, value)
	if err := g.Client.Patch(g.ctx, pod, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gate) poolDefault(value v1alpha1.FirewallDefault) {
	g.t.Helper()
	pool := &v1alpha1.FloatingIPPool{ObjectMeta: metav1.ObjectMeta{Name: story.Pool}}
	patch := fmt.Sprintf(`{"spec":{"firewall":%q}}`, value)
	if err := g.Client.Patch(g.ctx, pool, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		g.t.Fatal(err)
	}
}

var (
	ingressOnly = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	denyIngress = networkingv1.NetworkPolicySpec{PolicyTypes: ingressOnly}
	denyEgress  = networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}}
)

// from admits one host to one port.
func from(host netip.Addr, port intstr.IntOrString) networkingv1.NetworkPolicySpec {
	block := &networkingv1.IPBlock{CIDR: netip.PrefixFrom(host, host.BitLen()).String()}
	return networkingv1.NetworkPolicySpec{PolicyTypes: ingressOnly, Ingress: []networkingv1.NetworkPolicyIngressRule{{
		From:  []networkingv1.NetworkPolicyPeer{{IPBlock: block}},
		Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
	}}}
}

// policiesOfARunningVM: what a namespace's policies say is so on the floating address too, within seconds, both ways.
func policiesOfARunningVM(t *testing.T, s *story.Story) {
	g := newGate(t, s)
	g.admits("no policy", true, true)
	deny := g.policy("deny", denyIngress)
	g.admits("default deny", false, false)
	if _, err := story.Knock(g.ctx, g.provider, story.Floating, 1); err == nil {
		t.Error("a closed address answers an echo request")
	}
	ssh := g.policy("ssh", from(s.Rig.LAN.ProviderHost.Address, intstr.FromInt32(22)))
	g.admits("port 22 for the provider host", true, false)
	g.remove(ssh)
	g.remove(deny)
	g.admits("policies removed", true, true)

	labelled := denyIngress
	labelled.PodSelector.MatchLabels = map[string]string{"tier": "closed"}
	closed := g.policy("labelled", labelled)
	g.admits("a policy for other pods", true, true)
	g.label("tier", "closed")
	g.admits("the pod gets the label of the policy", false, false)
	g.remove(closed)

	egress := g.policy("egress", denyEgress)
	g.guestReaches(false)
	g.remove(egress)
	g.guestReaches(true)
}

// guestReaches waits until the guest gets through to the provider host, or does not.
func (g *gate) guestReaches(want bool) {
	g.t.Helper()
	channel, err := g.Guest(g.ctx, story.Namespace, story.VMName)
	if err != nil {
		g.t.Fatal(err)
	}
	defer channel.Close()
	witness, err := story.NewWitness(g.provider, g.Rig.LAN.ProviderHost.Address)
	if err != nil {
		g.t.Fatal(err)
	}
	defer witness.Close()
	to := witness.Address()
	ctx, cancel := context.WithTimeout(g.ctx, takesEffect)
	defer cancel()
	err = process.Wait(ctx, nil, "what the guest may reach", func(ctx context.Context) error {
		told, err := channel.Run(ctx, fmt.Sprintf("nc -w 1 %s %d </dev/null", to.Addr(), to.Port()))
		if reached := err == nil && strings.TrimSpace(told) == story.Floating.String(); reached != want {
			return fmt.Errorf("the guest reaches the provider host: %t, told %q (%v)", reached, told, err)
		}
		return nil
	})
	if err != nil {
		g.t.Fatal(err)
	}
}

// allowLists: the VM's owner and the administrator narrow it down further; what cannot be read is refused or told.
func allowLists(t *testing.T, s *story.Story) {
	g := newGate(t, s)
	if err := g.allow("tcp/22 from " + s.Rig.LAN.OutsideHost.Address.String()); err != nil {
		t.Fatal(err)
	}
	g.admits("an allow list for the host beyond", false, true)
	field := "metadata.annotations[" + floatip.AnnotationAllow + "]"
	if err := g.allow("ssh"); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), field) {
		t.Errorf("a malformed allow list: %v, want it to be invalid", err)
	}
	if err := g.allow(nil); err != nil {
		t.Fatal(err)
	}
	g.admits("no allow list", true, true)
	g.poolDefault(v1alpha1.FirewallDeny)
	g.admits("a pool that denies", false, false)
	g.poolDefault(v1alpha1.FirewallAllow)
	g.admits("a pool that allows", true, true)

	vm, err := s.VM(g.ctx, story.Namespace, story.VMName)
	if err != nil {
		t.Fatal(err)
	}
	misspelt := g.policy("misspelt", from(s.Rig.LAN.ProviderHost.Address, intstr.FromString("shh")))
	if _, err := s.WaitEvent(g.ctx, vm, "NetworkPolicyPortUnknown"); err != nil {
		t.Error(err)
	}
	fip, err := s.FloatingIP(g.ctx, story.Floating)
	if err != nil {
		t.Fatal(err)
	}
	if !meta.IsStatusConditionFalse(fip.Status.Conditions, v1alpha1.ConditionFirewallReady) {
		t.Errorf("conditions %+v, want %s to be False", fip.Status.Conditions, v1alpha1.ConditionFirewallReady)
	}
	g.admits("a policy with an unknown port", false, false)
	g.remove(misspelt)
	g.admits("the policy with an unknown port removed", true, true)
}

// evictedFromAClosedNamespace: a VM without an eviction strategy starts anew on another node when its own is drained, and its
// address follows. A namespace that denies by default has no moment in which a VM that starts can be reached.
func evictedFromAClosedNamespace(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	before := newGate(t, s)
	deny := before.policy("deny", denyIngress)
	before.admits("default deny while the VM runs", false, false)
	knocking, enough := context.WithCancel(ctx)
	answered := make(chan string, 1)
	go func() { answered <- knock(knocking, s.Rig.LAN.ProviderHost.Namespace) }()
	drainLauncher(t, s)
	g := newGate(t, s)
	err := process.Wait(g.ctx, nil, "the guest's server", func(ctx context.Context) error {
		_, err := story.Banner(ctx, g.inside, g.peer)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	g.admits("a VM that started under default deny", false, false)
	enough()
	if reply := <-answered; reply != "" {
		t.Errorf("the floating address answered while the VM started: %s", reply)
	}
	g.remove(deny)
	g.admits("the policy removed", true, true)
}

// drainLauncher does to the VM's node and pod what kubectl drain does, and waits until the VM is ready on another node.
func drainLauncher(t *testing.T, s *story.Story) {
	t.Helper()
	ctx, pod := bounded(t), launcherPod(t, s)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: pod.Spec.NodeName}}
	cordon := func(ctx context.Context, on bool) {
		t.Helper()
		patch := fmt.Appendf(nil, `{"spec":{"unschedulable":%t}}`, on)
		if err := s.Client.Patch(ctx, node, client.RawPatch(types.MergePatchType, patch)); err != nil {
			t.Fatal(err)
		}
	}
	cordon(ctx, true)
	defer cordon(context.WithoutCancel(ctx), false)
	if err := s.Client.SubResource("eviction").Create(ctx, pod, &policyv1.Eviction{}); err != nil {
		t.Fatalf("evict %s: %v", pod.Name, err)
	}
	err := process.Wait(ctx, nil, "the VM on another node", func(ctx context.Context) error {
		fip, err := s.FloatingIP(ctx, story.Floating)
		if err == nil && (fip.Status.Phase != v1alpha1.PhaseReady || fip.Status.Node == node.Name || fip.Status.Pod == pod.Name) {
			err = fmt.Errorf("%s is %s on %q in pod %q", story.Floating, fip.Status.Phase, fip.Status.Node, fip.Status.Pod)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// knock sends echo requests until one is answered, and returns the answer, or nothing once ctx is done.
func knock(ctx context.Context, namespace string) string {
	for ctx.Err() == nil {
		if line, err := story.Knock(ctx, namespace, story.Floating, 5); err == nil {
			return line
		}
	}
	return ""
}

// webhookMayOnly: the webhook's right to patch pods reaches the firewall of launchers, and nothing else.
func webhookMayOnly(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	pod, err := s.LauncherPod(ctx, story.Namespace, story.VMName)
	if err != nil {
		t.Fatal(err)
	}
	config := s.Rig.Cluster.RESTConfig()
	config.Impersonate.UserName = "system:serviceaccount:floatip-system:floatip-webhook"
	webhook, err := client.New(config, client.Options{Scheme: s.Client.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	for name, patch := range map[string]string{
		"a label":             `{"metadata":{"labels":{"changed":"true"}}}`,
		"another annotation":  `{"metadata":{"annotations":{"changed":"true"}}}`,
		"an image":            `{"spec":{"containers":[{"name":"compute","image":"example/other"}]}}`,
		"the annotation away": `{"metadata":{"annotations":{"floatip.io/nat":null}}}`,
	} {
		err := webhook.Patch(ctx, pod.DeepCopy(), client.RawPatch(types.StrategicMergePatchType, []byte(patch)))
		if err == nil || !strings.Contains(err.Error(), "pods-by-floatip.floatip.io") {
			t.Errorf("the webhook changes %s: %v, want its policy to refuse", name, err)
		}
	}
}
