package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"floatip.io/floatip/test/rig/guest"
	"floatip.io/floatip/test/rig/kubelet"
	"floatip.io/floatip/test/rig/lan"
	"floatip.io/floatip/test/rig/process"
)

// patience bounds a whole test: several times the minute that it takes on two idle cores.
const patience = 5 * time.Minute

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("FLOATIP_TEST_ROOT") == "1" {
		t.Fatal("this test starts a cluster in network namespaces: run it as root")
	}
	t.Skip("not root: cannot start a cluster")
}

// A virtual machine without floatip gets its pod, KubeVirt's network and a guest that answers; a pod's object is carried
// out; and after Stop the machine is as before.
func TestRigFromStartToStop(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := Start(ctx, Options{Nodes: 2, Progress: func(line string) { t.Log(line) }})
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	t.Cleanup(func() {
		if stopped {
			return
		}
		if err := r.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	client, err := kubernetes.NewForConfig(r.Cluster.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	pod := startVM(ctx, t, r, client)
	guestAnswers(ctx, t, r, pod)
	webPodIsServed(ctx, t, r, client)

	stopped = true
	if err := r.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, r)
}

// startVM starts the mission's VM and returns its pod, which runs.
func startVM(ctx context.Context, t *testing.T, r *Rig, client kubernetes.Interface) *corev1.Pod {
	t.Helper()
	manifest, err := os.ReadFile("../testdata/vm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	kubectl(ctx, t, r, "", "create", "namespace", "demo")
	kubectl(ctx, t, r, string(manifest), "--namespace=demo", "apply", "-f", "-")
	if err := r.KubeVirt.Start(ctx, "demo", "testvm"); err != nil {
		t.Fatal(err)
	}
	var pod *corev1.Pod
	await(ctx, t, "the VM to run", func() error {
		pods, err := client.CoreV1().Pods("demo").List(ctx, metav1.ListOptions{LabelSelector: "kubevirt.io=virt-launcher"})
		if err != nil || len(pods.Items) != 1 {
			return errors.Join(err, errors.New("it has no pod"))
		}
		pod = &pods.Items[0]
		phase := kubectl(ctx, t, r, "", "--namespace=demo", "get", "vmi", "testvm", "-o", "jsonpath={.status.phase}")
		if phase != "Running" {
			return fmt.Errorf("it is %s, its pod %s", phase, pod.Status.Phase)
		}
		return nil
	})
	return pod
}

// guestAnswers asks the guest for its address, which KubeVirt's DHCP server gave it in the pod's namespace.
func guestAnswers(ctx context.Context, t *testing.T, r *Rig, pod *corev1.Pod) {
	t.Helper()
	namespace, err := r.PodNetNS(pod)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lan.Exec(ctx, namespace, "ip", "link", "show", "k6t-eth0"); err != nil {
		t.Errorf("KubeVirt's bridge in the pod: %v", err)
	}
	pid, err := r.ContainerPID(pod, "compute")
	if err != nil {
		t.Fatal(err)
	}
	if own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil || own != namespaceID(t, namespace) {
		t.Errorf("compute is in %s (%v), want it in the pod's %s", own, err, namespaceID(t, namespace))
	}
	instance := pod.Labels["kubevirt.io/created-by"]
	channel, err := guest.Connect(ctx, r.GuestSocket(pod.Spec.NodeName, instance))
	if err != nil {
		t.Fatal(err)
	}
	defer channel.Close()
	await(ctx, t, "the guest's address", func() error {
		out, err := channel.Run(ctx, "ip -4 addr show")
		if err == nil && !strings.Contains(out, "inet 10.0.2.2/24") {
			err = fmt.Errorf("the guest has no 10.0.2.2/24:\n%s", out)
		}
		return err
	})
}

// namespaceID is how /proc names the namespace that a file stands for.
func namespaceID(t *testing.T, path string) string {
	t.Helper()
	var id string
	err := lan.Do(path, func() (err error) {
		id, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// webPod has a native sidecar, and a token for the API server's sake; its image is one that the rig does not have.
const webPod = `
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: demo, labels: {app: web}, annotations: {note: first}}
spec:
  terminationGracePeriodSeconds: 5
  initContainers:
  - {name: helper, image: example.org/helper, restartPolicy: Always}
  - {name: prepare, image: example.org/prepare}
  containers:
  - name: web
    image: example.org/web
    volumeMounts: [{name: notes, mountPath: /notes}]
  volumes:
  - name: notes
    downwardAPI: {items: [{path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}]}
`

// webPodIsServed has the real scheduler, API server and endpoint controller agree with the stand-in about a pod.
func webPodIsServed(ctx context.Context, t *testing.T, r *Rig, client kubernetes.Interface) {
	t.Helper()
	await(ctx, t, "the service account of the namespace", func() error {
		_, err := client.CoreV1().ServiceAccounts("demo").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	kubectl(ctx, t, r, webPod, "apply", "-f", "-")
	kubectl(ctx, t, r, "", "--namespace=demo", "expose", "pod", "web", "--port=80")
	kubectl(ctx, t, r, "", "--namespace=demo", "wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
	pod, err := client.CoreV1().Pods("demo").Get(ctx, "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	await(ctx, t, "the pod's address in an EndpointSlice", func() error {
		ofService := metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=web"}
		slices, err := client.DiscoveryV1().EndpointSlices("demo").List(ctx, ofService)
		if err != nil || len(slices.Items) == 0 || len(slices.Items[0].Endpoints) == 0 {
			return errors.Join(err, errors.New("there is none"))
		}
		if got := slices.Items[0].Endpoints[0].Addresses[0]; got != pod.Status.PodIP {
			return fmt.Errorf("it is %s, the pod has %s", got, pod.Status.PodIP)
		}
		return nil
	})
	podDir := kubelet.PodDir(nodeDir(r.Dir, pod.Spec.NodeName), pod.UID)
	note := filepath.Join(podDir, "volumes", "kubernetes.io~downward-api", "notes", "note")
	kubectl(ctx, t, r, "", "--namespace=demo", "annotate", "--overwrite", "pod/web", "note=second")
	await(ctx, t, "the changed annotation in the volume", func() error {
		raw, err := os.ReadFile(note)
		if err == nil && string(raw) != "second" {
			err = fmt.Errorf("the file holds %q", raw)
		}
		return err
	})
	kubectl(ctx, t, r, "", "--namespace=demo", "delete", "pod", "web", "--timeout=30s")
}

// nothingLeft checks that a stopped rig left no namespace, process, folder, mount or control group.
func nothingLeft(t *testing.T, r *Rig) {
	t.Helper()
	if left, err := r.Leftovers(); err != nil || len(left) > 0 {
		t.Errorf("left of the stopped rig (%v):\n%s", err, strings.Join(left, "\n"))
	}
}

// A rig whose program was killed is removed by the next one; one that is kept, or in use, is not.
func TestSweep(t *testing.T) {
	needRoot(t)
	parent := t.TempDir() // another test that starts a rig meanwhile sweeps too
	create := func(keep bool) (*lan.LAN, *os.File) {
		t.Helper()
		dir, lock, err := newDir(parent, keep)
		if err != nil {
			t.Fatal(err)
		}
		network, err := lan.Start(dir, 1)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := remove(context.Background(), dir, nil); err != nil {
				t.Error(err)
			}
		})
		return network, lock
	}
	crashed, lockOfCrashed := create(false)
	kept, lockOfKept := create(true)
	used, lockOfUsed := create(false)
	// The end of a program closes its files.
	if err := errors.Join(lockOfCrashed.Close(), lockOfKept.Close()); err != nil {
		t.Fatal(err)
	}
	defer lockOfUsed.Close()

	if err := sweep(t.Context(), parent, nil, crashedOnly); err != nil {
		t.Fatal(err)
	}
	exists := func(network *lan.LAN) bool {
		_, err := os.Stat(network.Gateway.Namespace)
		return err == nil
	}
	if exists(crashed) || !exists(kept) || !exists(used) {
		t.Errorf("after a sweep: crashed %t, kept %t, used %t exist; want false, true, true",
			exists(crashed), exists(kept), exists(used))
	}
	if err := sweep(t.Context(), parent, nil, func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if exists(kept) || !exists(used) {
		t.Errorf("after removing all: kept %t, used %t exist; want false, true", exists(kept), exists(used))
	}
}

func kubectl(ctx context.Context, t *testing.T, r *Rig, stdin string, args ...string) string {
	t.Helper()
	out, err := r.Cluster.Kubectl(ctx, strings.NewReader(stdin), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func await(ctx context.Context, t *testing.T, what string, holds func() error) {
	t.Helper()
	say := func(line string) { t.Log(line) }
	if err := process.Wait(ctx, say, what, func(context.Context) error { return holds() }); err != nil {
		t.Fatal(err)
	}
}
