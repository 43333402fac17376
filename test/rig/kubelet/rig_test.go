package kubelet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"floatip.io/floatip/test/rig/lan"
	"floatip.io/floatip/test/rig/reaper"
)

const inspectImage = "test/inspect:dev"

// node is a running stand-in with one node, no API server but client-go's fake one, and real containers.
type node struct {
	*testing.T
	kubelet *Kubelet
	client  *fake.Clientset
	lan     *lan.LAN
	dir     string
}

// programs are built once for all tests of the package.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "fipbin")
	if err != nil {
		return "", err
	}
	for name, source := range map[string]string{"inspect": "./testdata/inspect", "pause": "../cmd/pause"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, name), source)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("build %s: %w: %s", name, err, out)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := programs(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// crashed removes what a test that was killed has in its folder: the node, and the network.
var crashed = reaper.Register("kubelet test", func(ctx context.Context, dir string) error {
	if err := Remove(ctx, filepath.Join(dir, "node-1")); err != nil {
		return err
	}
	return errors.Join(lan.Remove(dir), os.RemoveAll(dir))
})

func startNode(t *testing.T, objects ...runtime.Object) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("FLOATIP_TEST_ROOT") == "1" {
			t.Fatal("this test runs containers: run it as root")
		}
		t.Skip("not root: cannot run containers")
	}
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "fip")
	if err != nil {
		t.Fatal(err)
	}
	guard, err := crashed.Guard(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(os.RemoveAll(dir), guard.Dismiss()); err != nil {
			t.Error(err)
		}
	})
	network, err := lan.Start(dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	client := fake.NewClientset(objects...)
	client.PrependReactor("create", "serviceaccounts", func(action clienttesting.Action) (bool, runtime.Object, error) {
		if action.GetSubresource() != "token" {
			return false, nil, nil
		}
		return true, &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{
			Token: "a-token", ExpirationTimestamp: metav1.NewTime(time.Now().Add(time.Hour)),
		}}, nil
	})
	log := &lockedBuffer{}
	n := &node{T: t, client: client, lan: network, dir: filepath.Join(dir, "node-1")}
	n.kubelet, err = New(Config{
		Node: "node-1", LAN: network, Dir: n.dir, Client: client,
		Images: Images{inspectImage: {
			Files: map[string]string{"/inspect": filepath.Join(bin, "inspect")}, Entrypoint: []string{"/inspect"},
		}},
		Pause: filepath.Join(bin, "pause"), Log: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.kubelet.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, Remove(context.Background(), n.dir), network.Close()); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of the stand-in:\n%s", log.String())
		}
	})
	n.until("the node is registered", func() bool {
		_, err := client.CoreV1().Nodes().Get(ctx, "node-1", metav1.GetOptions{})
		return err == nil
	})
	return n
}

// lockedBuffer is a buffer for many goroutines: containers that end late still write to the log.
type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(text []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(text)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// patience bounds the wait for a condition; on an idle machine all of them hold within two seconds.
const patience = time.Minute

// until waits for a condition.
func (n *node) until(what string, holds func() bool) {
	n.Helper()
	look := func(context.Context) (bool, error) { return holds(), nil }
	if err := wait.PollUntilContextTimeout(n.Context(), 20*time.Millisecond, patience, true, look); err != nil {
		n.Fatalf("waiting until %s: %v\npods: %s", what, err, n.pods())
	}
}

func (n *node) pods() string {
	list, err := n.client.CoreV1().Pods("").List(n.Context(), metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	raw, _ := json.MarshalIndent(list.Items, "", " ")
	return string(raw)
}

// create stores a pod as the scheduler leaves it, bound to the node.
func (n *node) create(name string, spec corev1.PodSpec, annotations map[string]string) *corev1.Pod {
	n.Helper()
	spec.NodeName = "node-1"
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: "default", UID: types.UID("uid-of-" + name), Annotations: annotations,
		},
		Spec: spec,
	}
	stored, err := n.client.CoreV1().Pods("default").Create(n.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		n.Fatal(err)
	}
	return stored
}

// pod reads a pod, or nil if it is gone.
func (n *node) pod(name string) *corev1.Pod {
	pod, err := n.client.CoreV1().Pods("default").Get(n.Context(), name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return pod
}

// change applies a change to a pod's object, as its owner would.
func (n *node) change(name string, change func(*corev1.Pod)) {
	n.Helper()
	pod := n.pod(name)
	change(pod)
	pod.ResourceVersion += "1"
	if err := n.client.Tracker().Update(corev1.SchemeGroupVersion.WithResource("pods"), pod, "default"); err != nil {
		n.Fatal(err)
	}
}

// delete asks for graceful deletion, as the API server does for a pod that is bound to a node.
func (n *node) delete(name string, graceSeconds int64) {
	n.change(name, func(p *corev1.Pod) {
		p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &metav1.Time{Time: time.Now()}, &graceSeconds
	})
}

// inspection is what testdata/inspect reports.
type inspection struct {
	Args       []string
	Env        map[string]string
	UID, GID   int
	Groups     []int
	Status     map[string]string
	Files      map[string]string
	Hostname   string
	Interfaces []string
	RootError  string
	Unshare    string
}

// inspect waits for the report of a container.
func (n *node) inspect(pod *corev1.Pod, container string) inspection {
	n.Helper()
	var found inspection
	n.until(container+" has reported", func() bool {
		log, err := os.ReadFile(n.kubelet.paths.log(pod.UID, container))
		line, _, complete := strings.Cut(string(log), "\n")
		return err == nil && complete && json.Unmarshal([]byte(line), &found) == nil
	})
	return found
}

func conditions(pod *corev1.Pod) map[corev1.PodConditionType]corev1.ConditionStatus {
	found := map[corev1.PodConditionType]corev1.ConditionStatus{}
	for _, c := range pod.Status.Conditions {
		found[c.Type] = c.Status
	}
	return found
}
