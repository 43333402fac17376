package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"floatip.io/floatip/test/rig/cluster"
	"floatip.io/floatip/test/rig/process"
)

// patience bounds the whole test: many times the 15 to 28 s that it took on two cores that did other work as well, and
// less than what go test grants a package, so that the clean-up still runs.
const patience = 4 * time.Minute

// A stock virtual machine, started by the call that virtctl makes, becomes a virt-launcher pod on a node: the API
// server, both controllers, the scheduler, virt-api and virt-controller have all done their part.
func TestVirtualMachineBecomesPod(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c := startCluster(ctx, t)
	kubeVirt, err := c.InstallKubeVirt(ctx)
	if err != nil {
		t.Fatal(err)
	}
	admin := clientOf(t, c, c.Kubeconfig())
	addNode(ctx, t, c, "node1")

	vm := readFile(t, "../../testdata/vm.yaml")
	kubectl(ctx, t, c, "", "create", "namespace", "demo")
	kubectl(ctx, t, c, vm, "--namespace=demo", "apply", "-f", "-")
	if pods := virtLaunchers(ctx, t, admin); len(pods) != 0 {
		t.Fatalf("a stopped virtual machine has %d pods", len(pods))
	}
	if err := kubeVirt.Start(ctx, "demo", "nosuchvm"); !apierrors.IsNotFound(err) {
		t.Errorf("start a virtual machine that does not exist: %v, want a NotFound error", err)
	}
	begun := time.Now()
	if err := kubeVirt.Start(ctx, "demo", "testvm"); err != nil {
		t.Fatal(err)
	}
	pod := waitForScheduledPod(ctx, t, c, admin)
	t.Logf("from start to a scheduled pod: %s", time.Since(begun).Round(time.Millisecond))

	if got, want := launcherImage(pod), "quay.io/kubevirt/virt-launcher:"+cluster.KubeVirtVersion; got != want {
		t.Errorf("image of the container compute: %q, want %q", got, want)
	}
	if pod.Spec.NodeName != "node1" {
		t.Errorf("pod was scheduled to %q, want node1", pod.Spec.NodeName)
	}
	// What proves later that floatip's webhooks ran: the same annotations, here of KubeVirt's own.
	const want = `"mutation.webhook.admission.k8s.io/round_0_index_0":"{\"configuration\":\"virt-api-mutator\"`
	if !strings.Contains(readFile(t, c.AuditLog()), want) {
		t.Errorf("the audit log does not hold %s", want)
	}
}

// A control plane that cannot start says which program failed and why, and leaves nothing running.
func TestFailedStart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	opts := clusterOptions(t)
	var taken net.Listener // etcd's port
	if err := process.InNetNS(opts.NetNS, func() (err error) {
		taken, err = net.Listen("tcp", "127.0.0.1:2379")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, err := cluster.Start(ctx, opts)
	if err == nil {
		t.Fatal("started although etcd's port is taken")
	}
	for _, want := range []string{"etcd ended: exit status 1", "address already in use", "log/etcd.log"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
	state, err := process.ReadState(opts.Group.StatePath())
	if err != nil {
		t.Fatal(err)
	}
	if len(state.Processes) != 0 {
		t.Errorf("still running: %+v", state.Processes)
	}
}

// startCluster starts a control plane that goes away with the test.
func startCluster(ctx context.Context, t *testing.T) *cluster.Cluster {
	t.Helper()
	c, err := cluster.Start(ctx, clusterOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// clusterOptions are for a control plane in a network namespace of its own. All of it goes away with the test.
func clusterOptions(t *testing.T) cluster.Options {
	t.Helper()
	requireRoot(t)
	binDir := requirePrograms(t)
	dir := t.TempDir()
	group, err := process.NewGroup(filepath.Join(dir, "state.json"), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(group.AddDir(filepath.Dir(dir)), group.Guard()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := process.Down(context.Background(), group.StatePath(), logTo(t)); err != nil {
			t.Error(err)
		}
	})
	advertise := netip.MustParseAddr("201.0.0.1")
	netns, err := cluster.NewNetNS(t.Context(), group, advertise)
	if err != nil {
		t.Fatal(err)
	}
	return cluster.Options{
		Dir: dir, BinDir: binDir, NetNS: netns, Advertise: advertise,
		Group: group, Progress: logTo(t),
	}
}

// requireRoot skips the test for other users, unless FLOATIP_TEST_ROOT says that it must run.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	const reason = "a network namespace of its own needs root"
	if os.Getenv("FLOATIP_TEST_ROOT") == "1" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// requirePrograms returns the folder of the control plane's programs.
func requirePrograms(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../../bin/rig")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "kube-apiserver")); err != nil {
		t.Fatalf("%v: build the control plane with `make rig-binaries`", err)
	}
	return dir
}

func kubectl(ctx context.Context, t *testing.T, c *cluster.Cluster, stdin string, args ...string) {
	t.Helper()
	out, err := c.Kubectl(ctx, strings.NewReader(stdin), args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(strings.TrimSpace(out))
}

func clientOf(t *testing.T, c *cluster.Cluster, kubeconfig string) *kubernetes.Clientset {
	t.Helper()
	config, err := c.RESTConfigOf(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	set, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// addNode registers a node with the credentials of its kubelet, as a kubelet would.
func addNode(ctx context.Context, t *testing.T, c *cluster.Cluster, name string) {
	t.Helper()
	kubeconfig, err := c.NodeKubeconfig(name)
	if err != nil {
		t.Fatal(err)
	}
	kubelet := clientOf(t, c, kubeconfig)
	capacity := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi"),
		corev1.ResourceEphemeralStorage: resource.MustParse("100Gi"), corev1.ResourcePods: resource.MustParse("110"),
		// virt-handler's device plugin offers these.
		"devices.kubevirt.io/tun": resource.MustParse("100"), "devices.kubevirt.io/vhost-net": resource.MustParse("100"),
	}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			corev1.LabelHostname: name, corev1.LabelArchStable: "amd64", corev1.LabelOSStable: "linux",
			// virt-handler's labels, which virt-controller writes into the pod's node selector.
			"kubevirt.io/schedulable": "true", "machine-type.node.kubevirt.io/q35": "true",
		}},
		Status: corev1.NodeStatus{
			Capacity: capacity, Allocatable: capacity,
			Conditions: []corev1.NodeCondition{{
				Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Test",
				LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
			}},
		},
	}
	if _, err := kubelet.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func virtLaunchers(ctx context.Context, t *testing.T, admin *kubernetes.Clientset) []corev1.Pod {
	t.Helper()
	list, err := admin.CoreV1().Pods("demo").List(ctx, metav1.ListOptions{LabelSelector: "kubevirt.io=virt-launcher"})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func waitForScheduledPod(
	ctx context.Context, t *testing.T, c *cluster.Cluster, admin *kubernetes.Clientset,
) corev1.Pod {
	t.Helper()
	var pod corev1.Pod
	err := process.Wait(ctx, logTo(t), "a scheduled virt-launcher pod", func(ctx context.Context) error {
		pods := virtLaunchers(ctx, t, admin)
		if len(pods) != 1 {
			return fmt.Errorf("%d pods", len(pods))
		}
		if pod = pods[0]; pod.Spec.NodeName == "" {
			return errors.New("no node yet: " + whyPending(pod))
		}
		return nil
	})
	if err != nil {
		out, _ := c.Kubectl(context.WithoutCancel(ctx), nil, "--namespace=demo", "describe", "vm,vmi,pods")
		t.Fatalf("%v\n%s", err, out)
	}
	return pod
}

// whyPending is what the scheduler says.
func whyPending(pod corev1.Pod) string {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled {
			return c.Message
		}
	}
	return "the scheduler has not looked yet"
}

func launcherImage(pod corev1.Pod) string {
	for _, c := range pod.Spec.Containers {
		if c.Name == "compute" {
			return c.Image
		}
	}
	return ""
}

func logTo(t *testing.T) process.Progress { return func(line string) { t.Log(line) } }

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
