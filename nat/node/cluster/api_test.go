package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/nat/node"
)

// patience bounds every wait of this test.
const patience = 2 * time.Minute

// assets finds kube-apiserver and etcd, as make builds them for the rig.
func assets(t testing.TB) string {
	t.Helper()
	for _, dir := range []string{os.Getenv("KUBEBUILDER_ASSETS"), "../../../bin/rig"} {
		if _, err := os.Stat(filepath.Join(dir, "kube-apiserver")); dir != "" && err == nil {
			return dir
		}
	}
	const reason = "needs kube-apiserver and etcd in KUBEBUILDER_ASSETS or bin/rig: make rig-binaries"
	if os.Getenv("FLOATIP_TEST_ROOT") == "1" {
		t.Fatal(reason)
	}
	t.Skip(reason)
	return ""
}

// machineCRD is what a VirtualMachineInstance needs here: KubeVirt's own has no status subresource either.
func machineCRD() *apiextensionsv1.CustomResourceDefinition {
	anything := true
	return &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "virtualmachineinstances.kubevirt.io"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: kubevirtGroup, Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "virtualmachineinstances", Singular: "virtualmachineinstance", Kind: machineKind},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
				Name: "v1", Served: true, Storage: true, Schema: &apiextensionsv1.CustomResourceValidation{
					OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", XPreserveUnknownFields: &anything},
				},
			}},
		},
	}
}

// world is a real API server with an agent's side of it.
type world struct {
	t       testing.TB
	dir     string // its programs are known by it, and end with this one
	env     *envtest.Environment
	api     client.Client
	config  *rest.Config
	cluster *Cluster
	woken   chan struct{}
}

func newWorld(t testing.TB) *world {
	t.Helper()
	env := &envtest.Environment{
		BinaryAssetsDirectory: assets(t), CRDDirectoryPaths: []string{"../../../manifests/crds"}, ErrorIfCRDPathMissing: true,
		CRDs:                     []*apiextensionsv1.CustomResourceDefinition{machineCRD()},
		ControlPlaneStartTimeout: patience, ControlPlaneStopTimeout: patience, // envtest's own 20 s pass on a busy machine
	}
	env.ControlPlane.GetAPIServer().Configure().Set("endpoint-reconciler-type", "none")
	dir := t.TempDir()
	// Of their own choice they would have new ones after a restart.
	env.ControlPlane.GetAPIServer().CertDir = filepath.Join(dir, "certificates")
	env.ControlPlane.Etcd = &envtest.Etcd{DataDir: filepath.Join(dir, "etcd")}
	guard(t, dir, env.ControlPlane.APIServer.CertDir, env.ControlPlane.Etcd.DataDir)
	config, err := env.Start()
	if err != nil {
		t.Fatalf("start the API server: %v", err)
	}
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Errorf("stop the API server: %v", err)
		}
	})
	scheme := runtime.NewScheme() // the agent knows less of the core's objects
	addMachines(scheme)
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	w := &world{t: t, dir: dir, env: env, config: config, woken: make(chan struct{}, 1)}
	if w.api, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	return w
}

// start runs the agent's side.
func (w *world) start() {
	w.t.Helper()
	c, err := New(w.config, "n1", func() {
		select {
		case w.woken <- struct{}{}:
		default:
		}
	}, slog.New(slog.NewTextHandler(logWriter{w.t}, nil)))
	if err != nil {
		w.t.Fatal(err)
	}
	w.cluster = c
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
}

type logWriter struct{ t testing.TB }

func (l logWriter) Write(p []byte) (int, error) {
	l.t.Logf("%s", p[:len(p)-1])
	return len(p), nil
}

func (w *world) create(o client.Object) {
	w.t.Helper()
	if err := w.api.Create(context.Background(), o); err != nil {
		w.t.Fatalf("create %T %s: %v", o, o.GetName(), err)
	}
}

// patch merges the text into the object, or into its status.
func (w *world) patch(o client.Object, text string, subresource ...string) {
	w.t.Helper()
	p := client.RawPatch(types.MergePatchType, []byte(text))
	var err error
	if len(subresource) > 0 {
		err = w.api.SubResource(subresource[0]).Patch(context.Background(), o, p)
	} else {
		err = w.api.Patch(context.Background(), o, p)
	}
	if err != nil {
		w.t.Fatalf("patch %T %s: %v", o, o.GetName(), err)
	}
}

// await waits for a view that fits.
func (w *world) await(what string, fits func(node.View) bool) node.View {
	w.t.Helper()
	timeout := time.After(patience)
	for {
		v, complete := w.cluster.View()
		if complete && fits(v) {
			return v
		}
		select {
		case <-w.woken:
		case <-timeout:
			w.t.Fatalf("%s: not within %s; the view is %+v (%t)", what, patience, v, complete)
		}
	}
}

// awaitStatus waits for the stored FloatingIP object to fit.
func (w *world) awaitStatus(what string, fits func(v1alpha1.FloatingIPStatus) bool) {
	w.t.Helper()
	var f v1alpha1.FloatingIP
	f.Name = "192.168.100.50"
	if err := w.reread(&f, func() bool { return fits(f.Status) }); err != nil {
		w.t.Fatalf("%s: not within %s: %v; the status is %+v", what, patience, err, f.Status)
	}
}

// reread reads an object from the API server until it fits.
func (w *world) reread(o client.Object, fits func() bool) error {
	return wait.PollUntilContextTimeout(context.Background(), 5*time.Millisecond, patience, true,
		func(ctx context.Context) (bool, error) {
			err := w.api.Get(ctx, client.ObjectKeyFromObject(o), o)
			return err == nil && fits(), err
		})
}

func (w *world) machine(nodeName string) *unstructured.Unstructured {
	m := &unstructured.Unstructured{}
	m.SetGroupVersionKind(machineVersion.WithKind(machineKind))
	m.SetNamespace("prod")
	m.SetName("web")
	m.SetLabels(map[string]string{nodeLabel: nodeName})
	m.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "kubevirt.io/v1", Kind: vmKind, Name: "web", UID: "vm-1", Controller: &yes}})
	return m
}

// TestAgainstAPIServer follows one machine on a real API server: seen, announced, moved away, released.
func TestAgainstAPIServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod"}})
	thisNode := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	w.create(thisNode)
	w.create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2", Annotations: map[string]string{
		floatip.AnnotationAgent: `{"macs":["02:00:00:00:00:02"]}`,
	}}})
	w.create(&v1alpha1.FloatingIPPool{ObjectMeta: metav1.ObjectMeta{Name: "lan"}, Spec: v1alpha1.FloatingIPPoolSpec{
		Addresses: []string{"192.168.100.50-192.168.100.99"},
	}})
	address := floatingIP(func(f *v1alpha1.FloatingIP) { f.Generation, f.Status = 0, v1alpha1.FloatingIPStatus{} })
	w.create(address)
	vmi := w.machine("n1")
	w.create(vmi)
	for _, name := range []string{"n1", "n2"} {
		w.create(podOn(name, vmi.GetUID()))
	}
	w.start()

	v := w.await("the pod with its machine", func(v node.View) bool { return len(v.Pods) == 1 && len(v.Machines) == 1 })
	if v.Pods[0].Name != "launcher-n1" || v.Pods[0].Machine.UID != string(vmi.GetUID()) {
		t.Errorf("have the pod %+v, want launcher-n1 of %s", v.Pods[0], vmi.GetUID())
	}
	if m := v.Machines[string(vmi.GetUID())]; m.VM != "vm-1" || m.Node != "n1" {
		t.Errorf("have the machine %+v, want VM vm-1 on n1", m)
	}
	if h := v.Addresses[fifty]; h.Owner != (floatip.Owner{Namespace: "prod", Name: "web", UID: "vm-1"}) || h.Pool != "lan" {
		t.Errorf("have the address %+v", h)
	}
	w.report(node.Report{
		Statuses: map[netip.Addr]node.Status{fifty: {Pod: "launcher-n1", Here: true, NATReady: good, LegReady: good, Announced: good, GuestUp: good, ConflictFree: good}},
		Pools:    map[string]bool{"lan": true},
		Own:      []netip.Addr{netip.MustParseAddr("192.168.100.11"), netip.MustParseAddr("2001:db8::11")},
		Agent:    floatip.NodeAgent{MACs: []string{"02:00:00:00:00:01"}},
	})
	w.awaitStatus("ready", func(s v1alpha1.FloatingIPStatus) bool {
		return s.Phase == v1alpha1.PhaseReady && s.Node == "n1" && s.Pod == "launcher-n1" && len(s.Conditions) == 6
	})
	w.awaitLabel(thisNode, "pool.floatip.io/lan", "true")

	// Of a move more is known later, and of the next one nothing yet: what is not known is not taken from the one before.
	stall := 155 * time.Millisecond
	for _, move := range []node.Move{
		{From: "n2", At: time.Unix(1000, 0), Trigger: node.FirstFrame, Stall: &stall, Flows: 6},
		{From: "n3", At: time.Unix(2000, 0), Trigger: node.FirstFrame},
	} {
		w.report(node.Report{
			Statuses: map[netip.Addr]node.Status{fifty: {Pod: "launcher-n1", Here: true, Move: &move, NATReady: good, LegReady: good, Announced: good, GuestUp: good, ConflictFree: good}},
			Pools:    map[string]bool{"lan": true},
		})
		w.awaitStatus("the move from "+move.From, func(s v1alpha1.FloatingIPStatus) bool {
			m := s.LastMove
			return m != nil && m.From == move.From && (m.StallMilliseconds != nil) == (move.Stall != nil) && int(m.Connections) == move.Flows
		})
	}
	if got := thisNode.Annotations[floatip.AnnotationProviderAddresses]; got != "192.168.100.11,2001:db8::11" {
		t.Errorf("the node shows its own addresses as %q", got)
	}
	v = w.await("the other agents", func(v node.View) bool { return len(v.Peers) == 2 })
	for name, mac := range map[string]string{"n1": "02:00:00:00:00:01", "n2": "02:00:00:00:00:02"} {
		if !slices.Equal(v.Peers[name].MACs, []string{mac}) {
			t.Errorf("%s is known by %v, want %s", name, v.Peers[name].MACs, mac)
		}
	}

	// The guest moves: the machine leaves this node's watch, and is looked up for the pod that is left.
	w.patch(vmi, `{"metadata":{"labels":{"kubevirt.io/nodeName":"n2"}}}`)
	w.await("the machine on n2", func(v node.View) bool { return v.Machines[string(vmi.GetUID())].Node == "n2" })

	// The other node was faster: this one must not take its word back.
	w.patch(address, `{"status":{"node":"n2","pod":"launcher-n2"}}`, "status")
	w.await("the status of n2", func(v node.View) bool { return v.Addresses[fifty].Node == "n2" })
	w.report(node.Report{Left: []netip.Addr{fifty}, Pools: map[string]bool{"lan": true}})
	w.patch(address, `{"status":{"node":"n1"}}`, "status")
	w.await("the status of n1", func(v node.View) bool { return v.Addresses[fifty].Node == "n1" })
	w.report(node.Report{Left: []netip.Addr{fifty}, Pools: map[string]bool{}})
	w.awaitStatus("left", func(s v1alpha1.FloatingIPStatus) bool { return s.Phase == v1alpha1.PhaseBound && s.Node == "" })
	w.awaitLabel(thisNode, "pool.floatip.io/lan", "")
	if got := thisNode.Annotations[floatip.AnnotationProviderAddresses]; got != "192.168.100.11,2001:db8::11" {
		t.Errorf("while the NIC is gone the node shows its own addresses as %q", got)
	}
}

func (w *world) report(r node.Report) { w.cluster.Report(r) }

func (w *world) awaitLabel(n *corev1.Node, label, value string) {
	w.t.Helper()
	if err := w.reread(n, func() bool { return n.Labels[label] == value }); err != nil {
		w.t.Fatalf("label %s of the node is %q within %s, want %q: %v", label, n.Labels[label], patience, value, err)
	}
}

func podOn(nodeName string, vmi types.UID) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "prod", Name: "launcher-" + nodeName, Annotations: map[string]string{floatip.AnnotationNAT: "{}"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "kubevirt.io/v1", Kind: machineKind, Name: "web", UID: vmi, Controller: &yes}},
		},
		Spec: corev1.PodSpec{NodeName: nodeName, Containers: []corev1.Container{{Name: "compute", Image: "none"}}},
	}
}

// TestMachineDecodes: fields that are not needed are dropped, whatever they hold.
func TestMachineDecodes(t *testing.T) {
	text := `{"apiVersion":"kubevirt.io/v1","kind":"VirtualMachineInstance","metadata":{"name":"web","namespace":"prod"},
	  "spec":{"domain":{"devices":{"novelty":[1,2]}}},
	  "status":{"activePods":{"p1":"n1"},"migrationState":{"targetPod":"b","failed":true,"completed":true},
	  "interfaces":[{"mac":"52:54:00:aa:bb:cc","name":"default"}]}}`
	var m machine
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		t.Fatal(err)
	}
	want := machineStatus{MigrationState: &migrationState{TargetPod: "b", Failed: true}, Interfaces: []guestInterface{{MAC: "52:54:00:aa:bb:cc"}}, ActivePods: map[types.UID]string{"p1": "n1"}}
	if diff := cmp.Diff(want, m.Status); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	var _ runtime.Object = &m
	if _, err := strip(errors.New("no object")); err == nil {
		t.Error("strip takes anything")
	}
}
