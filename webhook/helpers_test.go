package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/webhook/firewall"
	"floatip.io/floatip/webhook/kubevirt"
)

// world is a cluster as the hooks see it, behind a TLS server, with a real ledger in a file.
type world struct {
	t      testing.TB
	hooks  *Hooks
	ledger *ipam.Ledger
	path   string
	server *httptest.Server
	gate   *Gate

	mu     sync.Mutex // guards what follows
	labels map[string]map[string]string
	vms    map[string]map[string]string // annotations by namespace/name/uid
	vmis   map[string]*kubevirt.VirtualMachineInstance
	events []string

	unread    error  // what a look at a VM's annotations answers
	carrier   string // what is left of VMs that are gone
	announced int    // how often a node is still said to answer for what a VM held

	policies []*networkingv1.NetworkPolicy
	defaults map[string]firewall.Default // by pool

	deliveries map[string]floatip.Delivery // by pool

	refused map[string]string // the Pod Security level that the pod of an instance is marked with
}

var testTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const testUser = "alice"

// newWorld opens a ledger with the pools and serves the hooks.
func newWorld(t testing.TB, pools ...ipam.Pool) *world {
	t.Helper()
	w := &world{
		t: t, path: filepath.Join(t.TempDir(), "ledger.db"), gate: &Gate{},
		labels: map[string]map[string]string{"vms": {floatip.LabelEnabled: "true"}},
		vms:    map[string]map[string]string{},
		vmis:   map[string]*kubevirt.VirtualMachineInstance{},

		defaults: map[string]firewall.Default{}, deliveries: map[string]floatip.Delivery{},
	}
	for _, p := range pools {
		w.defaults[p.Name] = firewall.DefaultAllow
	}
	w.open(pools)
	w.hooks = &Hooks{
		Options: Options{
			KubeVirtNamespace: "kubevirt",
			SidecarImage:      "floatip/floatip-sidecar:test",
			ClusterNetworks:   []netip.Prefix{netip.MustParsePrefix("100.0.0.0/16")},
		},
		Ledger: w.ledger, Cluster: w, Events: w,
		Metrics: NewMetrics(prometheus.NewRegistry()),
		Now:     func() time.Time { return testTime },
	}
	mux := http.NewServeMux()
	w.hooks.Register(muxServer{mux}, w.gate)
	w.gate.Open()
	w.server = httptest.NewTLSServer(mux)
	t.Cleanup(w.server.Close)
	return w
}

// open opens the ledger, as a start of the process does.
func (w *world) open(pools []ipam.Pool) {
	w.t.Helper()
	ledger, err := ipam.Open(w.path, ipam.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		report, err := ledger.Check(context.Background(), ipam.Against{})
		if err := errors.Join(err, report.Err()); err != nil && !errors.Is(err, ipam.ErrClosed) {
			w.t.Error(err)
		}
		ledger.Close()
	})
	ledger.SetPools(pools)
	w.ledger = ledger
}

// restart closes the ledger and opens it again.
func (w *world) restart(pools []ipam.Pool) {
	w.t.Helper()
	if err := w.ledger.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.open(pools)
	w.hooks.Ledger = w.ledger
}

type muxServer struct{ mux *http.ServeMux }

func (m muxServer) Register(path string, hook http.Handler) { m.mux.Handle(path, hook) }

func (w *world) NamespaceLabels(_ context.Context, namespace string) (map[string]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	labels, ok := w.labels[namespace]
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, namespace)
	}
	return labels, nil
}

func (w *world) VMAnnotations(_ context.Context, owner floatip.Owner) (map[string]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	annotations, ok := w.vms[owner.String()+"/"+owner.UID]
	if w.unread != nil {
		return nil, w.unread
	}
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "virtualmachines"}, owner.Name)
	}
	return annotations, nil
}

func (w *world) Carrier(_ context.Context, owner floatip.Owner) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.vms[owner.String()+"/"+owner.UID]; ok {
		return "VM", nil
	}
	return w.carrier, nil
}

// Announcer says that a node answers for an address as often as announced says, which counts down.
func (w *world) Announcer(context.Context, string, []netip.Addr) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.announced == 0 {
		return "", nil
	}
	w.announced--
	return "node1", nil
}

func (w *world) VMExists(_ context.Context, namespace, name string) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key := range w.vms {
		if strings.HasPrefix(key, namespace+"/"+name+"/") {
			return true, nil
		}
	}
	return false, nil
}

func (w *world) VMI(_ context.Context, namespace, name string, uid types.UID) (*kubevirt.VirtualMachineInstance, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	vmi, ok := w.vmis[namespace+"/"+name]
	if !ok || vmi.UID != uid {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "virtualmachineinstances"}, name)
	}
	return vmi, nil
}

func (w *world) RefusedInstance(_ context.Context, vmi *kubevirt.VirtualMachineInstance) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.refused[vmi.Name], nil
}

func (w *world) RefusedNamespace(context.Context, string) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, level := range w.refused {
		return level, nil
	}
	return "", nil
}

func (w *world) NetworkPolicies(_ context.Context, namespace string) (list []*networkingv1.NetworkPolicy, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.policies {
		if p.Namespace == namespace {
			list = append(list, p)
		}
	}
	return list, nil
}

func (w *world) FirewallDefault(_ context.Context, pool string) (firewall.Default, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d, ok := w.defaults[pool]
	if !ok {
		return "", apierrors.NewNotFound(schema.GroupResource{Resource: "floatingippools"}, pool)
	}
	return d, nil
}

func (w *world) Delivery(_ context.Context, pool string) (floatip.Delivery, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.defaults[pool]; !ok {
		return "", apierrors.NewNotFound(schema.GroupResource{Resource: "floatingippools"}, pool)
	}
	return w.deliveries[pool], nil
}

func (w *world) Warn(owner floatip.Owner, reason, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, fmt.Sprintf("%s %s: %s", owner, reason, text))
}

func (w *world) WarnNamespace(namespace, reason, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, fmt.Sprintf("%s %s: %s", namespace, reason, text))
}

// review is what a test varies of an AdmissionRequest.
type review struct {
	operation admissionv1.Operation
	kind      schema.GroupVersionKind
	namespace string
	name      string
	user      string
	dryRun    bool
	object    string
	old       string
}

func (r review) request() *admissionv1.AdmissionRequest {
	if r.user == "" {
		r.user = testUser
	}
	if r.operation == "" {
		r.operation = admissionv1.Create
	}
	if r.namespace == "" && r.kind.Kind != "FloatingIPPool" {
		r.namespace = "vms"
	}
	return &admissionv1.AdmissionRequest{
		UID:       uuid.NewUUID(),
		Kind:      metav1.GroupVersionKind{Group: r.kind.Group, Version: r.kind.Version, Kind: r.kind.Kind},
		Resource:  metav1.GroupVersionResource{Group: r.kind.Group, Version: r.kind.Version, Resource: strings.ToLower(r.kind.Kind) + "s"},
		Operation: r.operation,
		Namespace: r.namespace,
		Name:      r.name,
		UserInfo:  authenticationv1.UserInfo{Username: r.user},
		DryRun:    &r.dryRun,
		Object:    rawObject(r.object),
		OldObject: rawObject(r.old),
	}
}

func rawObject(text string) runtime.RawExtension {
	if text == "" {
		return runtime.RawExtension{}
	}
	return runtime.RawExtension{Raw: []byte(text)}
}

// post sends a review to path as the API server does.
func (w *world) post(path string, r review) *admissionv1.AdmissionResponse {
	w.t.Helper()
	request := r.request()
	body, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request:  request,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	answer, err := w.server.Client().Post(w.server.URL+path, "application/json", bytes.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		w.t.Fatalf("%s: HTTP status %s", path, answer.Status)
	}
	var got admissionv1.AdmissionReview
	if err := json.NewDecoder(answer.Body).Decode(&got); err != nil {
		w.t.Fatal(err)
	}
	if got.Response == nil || got.Response.UID != request.UID {
		w.t.Fatalf("%s: response %+v is not for request %s", path, got.Response, request.UID)
	}
	return got.Response
}

// apply returns object after the response's patch.
func apply(t testing.TB, object string, response *admissionv1.AdmissionResponse) string {
	t.Helper()
	if !response.Allowed {
		t.Fatalf("refused: %v", response.Result)
	}
	if len(response.Patch) == 0 {
		return object
	}
	patch, err := jsonpatch.DecodePatch(response.Patch)
	if err != nil {
		t.Fatalf("%v: %s", err, response.Patch)
	}
	after, err := patch.Apply([]byte(object))
	if err != nil {
		t.Fatalf("%v: %s on %s", err, response.Patch, object)
	}
	return string(after)
}

var (
	vmGVK  = schema.GroupVersionKind{Group: "kubevirt.io", Version: "v1", Kind: "VirtualMachine"}
	vmiGVK = schema.GroupVersionKind{Group: "kubevirt.io", Version: "v1", Kind: "VirtualMachineInstance"}
	podGVK = schema.GroupVersionKind{Version: "v1", Kind: "Pod"}
)

// createVM runs both phases of a VM's creation, as the API server does, and returns the stored object or the refusal.
func (w *world) createVM(object string, uid string) (string, *metav1.Status) {
	w.t.Helper()
	first := w.post(PathVMCreate, review{kind: vmGVK, object: object})
	if !first.Allowed {
		return "", first.Result
	}
	stored := set(w.t, apply(w.t, object, first), "metadata.uid", uid)
	second := w.post(PathVMCommit, review{kind: vmGVK, object: stored})
	if !second.Allowed {
		return "", second.Result
	}
	return stored, nil
}

// vm returns a VM's JSON with the annotations.
func vm(name string, annotations map[string]string) string {
	metadata := map[string]any{"name": name, "namespace": "vms"}
	if annotations != nil {
		metadata["annotations"] = annotations
	}
	raw, _ := json.Marshal(map[string]any{
		"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": metadata,
		"spec": map[string]any{"running": false},
	})
	return string(raw)
}

// get returns the value at a path of keys, or nil.
func get(t testing.TB, object string, keys ...string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(object), &v); err != nil {
		t.Fatalf("%v: %s", err, object)
	}
	for _, k := range keys {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[k]
	}
	return v
}

// annotation returns an annotation of object, or "".
func annotation(t testing.TB, object, key string) string {
	t.Helper()
	s, _ := get(t, object, "metadata", "annotations", key).(string)
	return s
}

// set returns object with metadata.uid, or another path of two keys, replaced.
func set(t testing.TB, object, path, value string) string {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(object), &v); err != nil {
		t.Fatal(err)
	}
	first, second, _ := bytes.Cut([]byte(path), []byte("."))
	v[string(first)].(map[string]any)[string(second)] = value
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// testPool is the pool "provider" with the range.
func testPool(t testing.TB, addresses ...string) ipam.Pool {
	t.Helper()
	return namedPool(t, "provider", addresses...)
}

func namedPool(t testing.TB, name string, addresses ...string) ipam.Pool {
	t.Helper()
	pool, err := ipam.ParsePool(ipam.PoolText{Name: name, Addresses: addresses})
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

// wantRefused checks code, reason, text and fields of a refusal.
func wantRefused(t testing.TB, got *metav1.Status, code int32, text string, fields ...string) {
	t.Helper()
	if got == nil {
		t.Fatal("allowed")
	}
	if got.Code != code || !bytes.Contains([]byte(got.Message), []byte(text)) {
		t.Errorf("refused with %d %q, want %d and %q in it", got.Code, got.Message, code, text)
	}
	var have []string
	if got.Details != nil {
		for _, c := range got.Details.Causes {
			have = append(have, c.Field)
		}
	}
	slices.Sort(have)
	if diff := cmp.Diff(fields, have); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
}

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }
