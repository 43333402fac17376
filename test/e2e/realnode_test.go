package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/test/rig"
	"floatip.io/floatip/test/rig/lan"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/story"
)

// TestRealNode runs in order on one rig, whose node has the real kubelet and containerd: everything of floatip and every
// container of virt-launcher is admitted, pulled, mounted, confined, probed and ended by them.
func TestRealNode(t *testing.T) {
	t.Parallel()
	keepsSysctls(t)
	s := start(t, rig.Options{Nodes: 1, RealNodes: true})
	for _, test := range []struct {
		name string
		run  func(*testing.T, *story.Story)
	}{
		{"webhook and agent run as their manifests say", installOnRealNode},
		{"a VM is reached by its floating address", reachOnRealNode},
		{"the sidecar runs as it was injected", sidecarOnRealNode},
		{"a policy reaches the pod of a running VM by kubelet's volume", policyOnRealNode},
		{"kubelet restarts a killed sidecar, and the rules stand meanwhile", killSidecarOnRealNode},
		{"an agent that kubelet replaces finds everything as it was", replaceAgentOnRealNode},
		{"a deleted VM's pod ends in time, and leg and address go", deleteOnRealNode},
	} {
		if !t.Run(test.name, func(t *testing.T) { test.run(t, s) }) {
			return // the next ones stand on this one
		}
	}
}

// keepsSysctls checks at the end that kubelet has not reached the machine's own settings.
func keepsSysctls(t *testing.T) {
	t.Helper()
	read := func() map[string]string {
		values := map[string]string{}
		for _, name := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"} {
			value, err := os.ReadFile("/proc/sys/" + name)
			if err != nil {
				t.Fatal(err)
			}
			values[name] = string(value)
		}
		return values
	}
	before := read()
	t.Cleanup(func() {
		if diff := cmp.Diff(before, read()); diff != "" {
			t.Errorf("sysctls of the machine (-before +after):\n%s", diff)
		}
	})
}

func installOnRealNode(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	if err := s.Install(ctx); err != nil {
		t.Fatal(err)
	}
	webhook, agent := systemPod(ctx, t, s, "floatip-webhook"), systemPod(ctx, t, s, "floatip-agent")
	wantConfinement(t, s, webhook, "webhook", confinement{User: 65532, Group: 65532})
	wantConfinement(t, s, agent, "agent", confinement{
		Capabilities: []string{"DAC_READ_SEARCH", "NET_ADMIN", "NET_RAW", "SYS_ADMIN"},
	})
	// By API server and kubelet, as a person looks.
	out, err := s.Kubectl(ctx, "", "--namespace="+agent.Namespace, "logs", agent.Name)
	if err != nil || !strings.Contains(out, "floatip-agent starts") {
		t.Errorf("the agent's log: %q, %v", out, err)
	}
}

// systemPod returns the only pod of one of floatip's own programs, but for those that end.
func systemPod(ctx context.Context, t *testing.T, s *story.Story, name string) *corev1.Pod {
	t.Helper()
	var pods corev1.PodList
	err := s.Client.List(ctx, &pods, client.InNamespace("floatip-system"), client.MatchingLabels{"app.kubernetes.io/name": name})
	if err != nil {
		t.Fatal(err)
	}
	live := slices.DeleteFunc(pods.Items, func(pod corev1.Pod) bool { return pod.DeletionTimestamp != nil })
	if len(live) != 1 {
		t.Fatalf("%d pods of %s, want 1", len(live), name)
	}
	return &live[0]
}

func reachOnRealNode(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	if err := s.AddPool(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.AddNamespace(ctx, story.Namespace, true); err != nil {
		t.Fatal(err)
	}
	manifest, err := s.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Kubectl(ctx, manifest, "-n", story.Namespace, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if err := s.Rig.KubeVirt.Start(ctx, story.Namespace, story.VMName); err != nil {
		t.Fatal(err)
	}
	if _, err := s.WaitReady(ctx, story.Floating); err != nil {
		t.Fatal(err)
	}
	reached(ctx, t, s)
	// The guest's calls of the provider network carry the floating address, those of the cluster the pod's.
	guest, err := s.Guest(ctx, story.Namespace, story.VMName)
	if err != nil {
		t.Fatal(err)
	}
	pod := launcherPod(t, s)
	podAddress, err := netip.ParseAddr(pod.Status.PodIP)
	if err != nil {
		t.Fatal(err)
	}
	for _, peer := range []struct {
		lan.Host
		seesAs netip.Addr
	}{{s.Rig.LAN.ProviderHost, story.Floating}, {s.Rig.LAN.Nodes[0].Host, podAddress}} {
		witness, err := story.NewWitness(peer.Namespace, peer.Address)
		if err != nil {
			t.Fatal(err)
		}
		seen, err := witness.Sees(ctx, guest)
		if err := errors.Join(err, witness.Close()); err != nil {
			t.Fatal(err)
		}
		if seen != peer.seesAs {
			t.Errorf("%s sees the guest as %s, want %s", peer.Address, seen, peer.seesAs)
		}
	}
}

// reached asks the guest from the provider network and from beyond its gateway.
func reached(ctx context.Context, t *testing.T, s *story.Story) {
	t.Helper()
	for _, namespace := range []string{s.Rig.LAN.ProviderHost.Namespace, s.Rig.LAN.OutsideHost.Namespace} {
		banner, _, err := story.WaitBanner(ctx, namespace, netip.AddrPortFrom(story.Floating, 22))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(banner, "SSH-") {
			t.Errorf("%s answers %q, want SSH-…", story.Floating, banner)
		}
		if _, err := story.Ping(ctx, namespace, story.Floating, 1); err != nil {
			t.Error(err)
		}
	}
}

func launcherPod(t *testing.T, s *story.Story) *corev1.Pod {
	t.Helper()
	pod, err := s.LauncherPod(bounded(t), story.Namespace, story.VMName)
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

func sidecarOnRealNode(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	pod := launcherPod(t, s)
	// The group is the pod's, which the injected container says nothing of.
	wantConfinement(t, s, pod, floatip.SidecarContainer, confinement{Group: 107, Capabilities: []string{"NET_ADMIN"}})
	status := sidecarStatus(pod)
	if status.State.Running == nil || status.RestartCount != 0 {
		t.Errorf("the sidecar's status is %+v, want it running for the first time", status)
	}
	compute := containerStatus(pod.Status.ContainerStatuses, "compute")
	if compute.State.Running == nil || status.State.Running == nil ||
		compute.State.Running.StartedAt.Before(&status.State.Running.StartedAt) {
		t.Errorf("compute started at %v, before the sidecar at %v", compute.State.Running, status.State.Running)
	}
	out, err := s.Rig.Exec(ctx, pod, floatip.SidecarContainer, "/floatip-sidecar", "status")
	if err != nil || !strings.Contains(out, story.Floating.String()) {
		t.Errorf("floatip-sidecar status in the container: %q, %v; want %s in it", out, err, story.Floating)
	}
}

// sidecarStatus is what kubelet tells of the sidecar, a restartable init container.
func sidecarStatus(pod *corev1.Pod) corev1.ContainerStatus {
	return containerStatus(pod.Status.InitContainerStatuses, floatip.SidecarContainer)
}

func containerStatus(statuses []corev1.ContainerStatus, name string) corev1.ContainerStatus {
	for _, status := range statuses {
		if status.Name == name {
			return status
		}
	}
	return corev1.ContainerStatus{}
}

func killSidecarOnRealNode(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	pod := launcherPod(t, s)
	before := table(ctx, t, s, pod)
	pid, err := s.Rig.ContainerPID(pod, floatip.SidecarContainer)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	reached(ctx, t, s)
	err = process.Wait(ctx, nil, "kubelet to restart the sidecar", func(ctx context.Context) error {
		if pod, err = s.LauncherPod(ctx, story.Namespace, story.VMName); err != nil {
			return err
		}
		if status := sidecarStatus(pod); status.RestartCount != 1 || status.State.Running == nil {
			return fmt.Errorf("it was restarted %d times: %+v", status.RestartCount, status.State)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.WaitReady(ctx, story.Floating); err != nil {
		t.Fatal(err)
	}
	reached(ctx, t, s)
	// Handles tell a rule that was written again from one that stayed.
	if diff := cmp.Diff(before, table(ctx, t, s, pod)); diff != "" {
		t.Errorf("the sidecar's restart changed the table:\n%s", diff)
	}
}

// table lists the NAT table of a pod with the rules' handles and without counters.
func table(ctx context.Context, t *testing.T, s *story.Story, pod *corev1.Pod) string {
	t.Helper()
	inPod, err := s.Rig.PodNetNS(pod)
	if err != nil {
		t.Fatal(err)
	}
	listing, err := lan.Exec(ctx, inPod, "nft", "--stateless", "--handle", "list", "table", "ip", "nat")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"chain KUBEVIRT_PREINBOUND", "chain floatip_prerouting", story.Floating.String()} {
		if !strings.Contains(listing, want) {
			t.Fatalf("the table has no %q:\n%s", want, listing)
		}
	}
	return listing
}

// replaceAgentOnRealNode deletes the agent's pod. Meanwhile the kernel goes on.
func replaceAgentOnRealNode(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	old := systemPod(ctx, t, s, "floatip-agent")
	if err := s.Client.Delete(ctx, old); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	err := process.Wait(ctx, nil, "another pod of the agent to be ready", func(ctx context.Context) error {
		var pods corev1.PodList
		if err := s.Client.List(ctx, &pods, client.InNamespace("floatip-system"),
			client.MatchingLabels{"app.kubernetes.io/name": "floatip-agent"}); err != nil {
			return err
		}
		for _, pod := range pods.Items {
			if pod.UID != old.UID && len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].Ready {
				return nil
			}
		}
		if _, err := story.Banner(ctx, s.Rig.LAN.ProviderHost.Namespace, netip.AddrPortFrom(story.Floating, 22)); err != nil {
			t.Errorf("%s after the agent's pod was deleted: %v", time.Since(begun), err)
		}
		return errors.New("there is none")
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.WaitReady(ctx, story.Floating); err != nil {
		t.Fatal(err)
	}
	reached(ctx, t, s)
	out, err := s.Rig.Exec(ctx, systemPod(ctx, t, s, "floatip-agent"), "agent", "/floatip-agent", "status")
	if err != nil || !strings.Contains(out, story.Floating.String()) {
		t.Errorf("floatip-agent status in the container: %q, %v; want %s in it", out, err, story.Floating)
	}
}

func deleteOnRealNode(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	pod := launcherPod(t, s)
	// What kubelet tells last would be gone with the pod a moment later.
	holdPod(ctx, t, s, pod, true)
	vm, err := s.VM(ctx, story.Namespace, story.VMName)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Client.Delete(ctx, vm); err != nil {
		t.Fatal(err)
	}
	err = process.Wait(ctx, nil, "the containers to end", func(ctx context.Context) error {
		if err := s.Client.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if pod.DeletionTimestamp == nil || pod.Status.Phase == corev1.PodRunning {
			return fmt.Errorf("the pod is %s, deletion %v", pod.Status.Phase, pod.DeletionTimestamp)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// DeletionTimestamp is when the grace period ends.
	sidecar := sidecarStatus(pod).State.Terminated
	compute := containerStatus(pod.Status.ContainerStatuses, "compute").State.Terminated
	switch {
	case sidecar == nil || compute == nil:
		t.Errorf("sidecar %+v, compute %+v: want both terminated", sidecar, compute)
	case sidecar.ExitCode != 0 || compute.ExitCode != 0:
		t.Errorf("sidecar %+v, compute %+v: want both to end by themselves", sidecar, compute)
	case sidecar.FinishedAt.Before(&compute.FinishedAt):
		t.Errorf("the sidecar ended at %s, before the guest's container at %s", sidecar.FinishedAt, compute.FinishedAt)
	case pod.DeletionTimestamp.Before(&sidecar.FinishedAt):
		t.Errorf("the sidecar ended at %s, the grace period at %s", sidecar.FinishedAt, pod.DeletionTimestamp)
	}
	holdPod(ctx, t, s, pod, false)
	if err := s.WaitReleased(ctx, story.Floating); err != nil {
		t.Fatal(err)
	}
	if _, err := story.Knock(ctx, s.Rig.LAN.ProviderHost.Namespace, story.Floating, 1); err == nil {
		t.Errorf("%s still answers", story.Floating)
	}
	err = process.Wait(ctx, nil, "the leg to go", func(ctx context.Context) error {
		links, err := lan.Exec(ctx, s.Rig.LAN.Nodes[0].Namespace, "ip", "-brief", "link")
		if err == nil && strings.Contains(links, leg.PortName(string(pod.UID))) {
			err = fmt.Errorf("the node has\n%s", links)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// holdPod keeps a pod's object from going by a finalizer, or lets it go.
func holdPod(ctx context.Context, t *testing.T, s *story.Story, pod *corev1.Pod, hold bool) {
	t.Helper()
	finalizers := "null"
	if hold {
		finalizers = `["test.floatip.io/look"]`
	}
	patch := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":`+finalizers+`}}`))
	if err := s.Client.Patch(ctx, pod, patch); err != nil {
		t.Fatal(err)
	}
}

// policyOnRealNode: the way of a firewall leads over an annotation and the file that kubelet makes of it.
func policyOnRealNode(t *testing.T, s *story.Story) {
	g := gateFrom(t, s, s.Rig.LAN.Nodes[0].Namespace)
	deny := g.policy("deny", denyIngress)
	g.admits("default deny", false, false)
	ssh := g.policy("ssh", from(s.Rig.LAN.ProviderHost.Address, intstr.FromInt32(22)))
	g.admits("port 22 for the provider host", true, false)
	g.remove(ssh)
	g.remove(deny)
	g.admits("policies removed", true, true)
}
