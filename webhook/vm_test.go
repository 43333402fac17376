package webhook

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

const mib = 1 << 20

// operations returns the patch as "op path" lines, with values where they are strings.
func operations(t *testing.T, response *admissionv1.AdmissionResponse) []string {
	t.Helper()
	var ops []struct {
		Op, Path string
		Value    any
	}
	if len(response.Patch) > 0 {
		if err := json.Unmarshal(response.Patch, &ops); err != nil {
			t.Fatal(err)
		}
	}
	var lines []string
	for _, o := range ops {
		line := o.Op + " " + o.Path
		if s, ok := o.Value.(string); ok {
			line += " " + s
		}
		lines = append(lines, line)
	}
	return lines
}

func TestCreateVMPatch(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.51"))
	const claimOp = "add /metadata/annotations/floatip.io~1claim "
	for _, tc := range []struct {
		name, object string
		want         []string
	}{
		{"without annotations", `{"metadata":{"name":"a"}}`,
			[]string{"add /metadata/annotations", "add /metadata/managedFields"}},
		{"with null annotations", `{"metadata":{"name":"a","annotations":null}}`,
			[]string{"add /metadata/annotations", "add /metadata/managedFields"}},
		{"with others", `{"metadata":{"name":"a","annotations":{"x":"y"},"managedFields":[{"manager":"kubectl"}]}}`,
			[]string{"add /metadata/annotations/floatip.io~1address 192.168.100.50", claimOp, "add /metadata/managedFields/-"}},
		{"with forged ones", `{"metadata":{"name":"a","annotations":{"floatip.io/address":"192.168.100.99","floatip.io/claim":"x"}}}`,
			[]string{"add /metadata/annotations/floatip.io~1address 192.168.100.50", claimOp, "add /metadata/managedFields"}},
		{"opted out", `{"metadata":{"name":"a","annotations":{"floatip.io/enabled":"false"}}}`, nil},
		{"opted out, with forged ones", `{"metadata":{"name":"a","annotations":{"floatip.io/enabled":"false","floatip.io/address":"192.168.100.50","floatip.io/claim":"x"}}}`,
			[]string{"remove /metadata/annotations/floatip.io~1address", "remove /metadata/annotations/floatip.io~1claim"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			response := w.post(PathVMCreate, review{kind: vmGVK, object: tc.object})
			got := operations(t, response)
			claim := response.AuditAnnotations["claim"]
			for i := range tc.want {
				if strings.HasSuffix(tc.want[i], "claim ") {
					tc.want[i] += claim
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("patch (-want +got):\n%s", diff)
			}
			if c, err := floatip.ParseClaim(claim); err == nil {
				w.ledger.Withdraw(c)
			}
		})
	}
}

// The entry is what keeps the keys when a server-side apply drops the last annotation of its applier.
func TestCreateVMOwnsItsFields(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50/32"))
	object := `{"metadata":{"name":"a","annotations":{"x":"y"},"managedFields":[{"manager":"kubectl","operation":"Update"}]}}`
	after := apply(t, object, w.post(PathVMCreate, review{kind: vmGVK, object: object}))
	want := []any{
		map[string]any{"manager": "kubectl", "operation": "Update"},
		map[string]any{
			"manager": "floatip-webhook", "operation": "Update", "apiVersion": "kubevirt.io/v1",
			"time": "2026-01-02T03:04:05Z", "fieldsType": "FieldsV1",
			"fieldsV1": map[string]any{"f:metadata": map[string]any{"f:annotations": map[string]any{
				"f:floatip.io/address": map[string]any{}, "f:floatip.io/claim": map[string]any{},
			}}},
		},
	}
	if diff := cmp.Diff(any(want), get(t, after, "metadata", "managedFields")); diff != "" {
		t.Errorf("managedFields (-want +got):\n%s", diff)
	}
}

// A field that no version of floatip knows stays, byte for byte: nothing but metadata is in the patch.
func TestCreateVMUnknownFieldsSurvive(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.60"))
	for name, object := range map[string]string{
		"unknown fields": `{"apiVersion":"kubevirt.io/v1","future":{"a":[1.50,1e3]},"metadata":{"name":"a","novel":1},"spec":{"template":{"spec":{"quantum":true}}}}`,
		"no template":    `{"metadata":{"name":"b"},"spec":{}}`,
		"no spec":        `{"metadata":{"name":"c"}}`,
		"one MiB":        `{"metadata":{"name":"d"},"spec":{"x":"` + strings.Repeat("x", mib) + `"}}`,
		"deeply nested":  `{"metadata":{"name":"e"},"spec":` + strings.Repeat(`{"a":`, 5000) + `1` + strings.Repeat(`}`, 5000) + `}`,
		"Metadata twice": `{"Metadata":{"annotations":{"floatip.io/enabled":"false"}},"metadata":{"name":"f"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			response := w.post(PathVMCreate, review{kind: vmGVK, object: object})
			if !response.Allowed || response.AuditAnnotations["address"] == "" {
				t.Fatalf("no address: %+v", response)
			}
			for _, op := range operations(t, response) {
				if !strings.HasPrefix(op, "add /metadata/annotations") && !strings.HasPrefix(op, "add /metadata/managedFields") {
					t.Errorf("touches more than its own: %s", op)
				}
			}
		})
	}
}

func TestCreateVMRefusals(t *testing.T) {
	closed := namedPool(t, "closed", "192.168.101.1-192.168.101.9")
	closed.Selects = func(map[string]string) bool { return false }
	drained := namedPool(t, "drained", "192.168.102.1-192.168.102.9")
	drained.Drain, drained.AutoAssign = true, false
	limited := namedPool(t, "limited", "192.168.103.1-192.168.103.9")
	limited.PerNamespaceLimit, limited.AutoAssign = 1, false
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.51"), closed, drained, limited)
	for i, request := range []map[string]string{
		{floatip.AnnotationRequest: "192.168.100.51"}, {floatip.AnnotationPool: "provider"}, {floatip.AnnotationPool: "limited"},
	} {
		if _, refused := w.createVM(vm(fmt.Sprintf("holder%d", i), request), fmt.Sprintf("uid-holder%d", i)); refused != nil {
			t.Fatal(refused)
		}
	}
	const request, pool = "metadata.annotations[floatip.io/request]", "metadata.annotations[floatip.io/pool]"
	for _, tc := range []struct {
		name        string
		annotations map[string]string
		code        int32
		text        string
		fields      []string
	}{
		{"held by another VM", map[string]string{floatip.AnnotationRequest: "192.168.100.51"},
			http.StatusConflict, "192.168.100.51 is held by VM vms/holder0", []string{request}},
		{"full", nil, http.StatusForbidden, "no free IPv4 address", []string{pool}},
		{"not an address", map[string]string{floatip.AnnotationRequest: "192.168.100.051"},
			http.StatusUnprocessableEntity, `write "192.168.100.51"`, []string{request}},
		{"with a prefix", map[string]string{floatip.AnnotationRequest: "192.168.100.51/24"},
			http.StatusUnprocessableEntity, "not an IP address", []string{request}},
		{"two of one family", map[string]string{floatip.AnnotationRequest: "192.168.100.51,192.168.100.50"},
			http.StatusUnprocessableEntity, "one IPv4 and one IPv6", []string{request}},
		{"outside of every pool", map[string]string{floatip.AnnotationRequest: "10.9.9.9"},
			http.StatusUnprocessableEntity, "no pool has it", []string{request}},
		{"in another pool", map[string]string{floatip.AnnotationRequest: "192.168.103.5", floatip.AnnotationPool: "provider"},
			http.StatusUnprocessableEntity, "pool limited", []string{request}},
		{"unknown pool", map[string]string{floatip.AnnotationPool: "nowhere"},
			http.StatusUnprocessableEntity, "pool nowhere", []string{pool}},
		{"pool of other namespaces", map[string]string{floatip.AnnotationPool: "closed"},
			http.StatusForbidden, "namespaceSelector", []string{pool}},
		{"drained pool", map[string]string{floatip.AnnotationPool: "drained"},
			http.StatusForbidden, "being drained", []string{pool}},
		{"namespace limit", map[string]string{floatip.AnnotationPool: "limited"},
			http.StatusForbidden, "holds 1 of the 1", []string{pool}},
		{"no name of a pool", map[string]string{floatip.AnnotationPool: "a b"},
			http.StatusUnprocessableEntity, `"a b" is not the name of a FloatingIPPool`, []string{pool}},
		{"no allow list", map[string]string{floatip.AnnotationAllow: "tcp/ssh"},
			http.StatusUnprocessableEntity, `entry 1 "tcp/ssh"`, []string{"metadata.annotations[floatip.io/allow]"}},
		{"everything at once", map[string]string{
			floatip.AnnotationRequest: "x", floatip.AnnotationPool: "a,b,c", floatip.LabelEnabled: "yes", floatip.AnnotationRequire: "1",
		}, http.StatusUnprocessableEntity, "Unsupported value", []string{
			"metadata.annotations[floatip.io/enabled]", pool, request, "metadata.annotations[floatip.io/require]",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			response := w.post(PathVMCreate, review{kind: vmGVK, object: vm("late", tc.annotations)})
			if len(response.Patch) > 0 {
				t.Errorf("a refusal with a patch: %s", response.Patch)
			}
			wantRefused(t, response.Result, tc.code, tc.text, tc.fields...)
			if response.AuditAnnotations["action"] != string(Refused) || response.AuditAnnotations["reason"] == "" {
				t.Errorf("audit annotations: %v", response.AuditAnnotations)
			}
		})
	}
}

func TestCreateVMWithoutAPool(t *testing.T) {
	manual := testPool(t, "192.168.100.50-192.168.100.59")
	manual.AutoAssign = false
	w := newWorld(t, manual)
	response := w.post(PathVMCreate, review{kind: vmGVK, object: vm("a", nil)})
	if !response.Allowed || len(response.Patch) > 0 || len(response.Warnings) != 1 {
		t.Errorf("a VM that asks for nothing where no pool gives by itself: %+v", response)
	}
	forged := vm("a", map[string]string{floatip.AnnotationAddress: "192.168.100.50", floatip.AnnotationClaim: floatip.NewClaim().String()})
	response = w.post(PathVMCreate, review{kind: vmGVK, object: forged})
	if after := apply(t, forged, response); annotation(t, after, floatip.AnnotationAddress)+annotation(t, after, floatip.AnnotationClaim) != "" {
		t.Errorf("forged keys stay: %s", after)
	}
	response = w.post(PathVMCreate, review{kind: vmGVK, object: vm("a", map[string]string{floatip.AnnotationPool: "provider"})})
	if response.AuditAnnotations["address"] != "192.168.100.50" {
		t.Errorf("a VM that names the pool: %+v", response)
	}
}

func TestCreateVMWarnsOfMisspeltKeys(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50/32"))
	response := w.post(PathVMCreate, review{kind: vmGVK, object: vm("a", map[string]string{"floatip.io/adress": "192.168.100.50"})})
	if len(response.Warnings) != 1 || !strings.Contains(response.Warnings[0], "floatip.io/adress is unknown") {
		t.Errorf("warnings: %q", response.Warnings)
	}
}

// Of two VMs that ask for one address at the same time, one gets it and the other is told who has it.
func TestConcurrentStaticRequests(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.99"))
	for round := range 20 {
		address := fmt.Sprintf("192.168.100.%d", 50+round)
		refused := make([]*metav1.Status, 2)
		var group sync.WaitGroup
		for i := range refused {
			group.Go(func() {
				name := fmt.Sprintf("racer%d-%d", round, i)
				_, refused[i] = w.createVM(vm(name, map[string]string{floatip.AnnotationRequest: address}), "uid-"+name)
			})
		}
		group.Wait()
		won := slices.Index(refused, nil)
		if won < 0 || refused[1-won] == nil {
			t.Fatalf("%s: want one winner, have %v and %v", address, refused[0], refused[1])
		}
		wantRefused(t, refused[1-won], http.StatusConflict, fmt.Sprintf("racer%d-%d", round, won), "metadata.annotations[floatip.io/request]")
	}
}

func TestReinvocationKeepsTheOffer(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	object := vm("a", map[string]string{"x": "y"})
	once := apply(t, object, w.post(PathVMCreate, review{kind: vmGVK, object: object}))
	again := w.post(PathVMCreate, review{kind: vmGVK, object: once})
	if !again.Allowed || len(again.Patch) > 0 || again.AuditAnnotations["action"] != string(Kept) {
		t.Errorf("second call: %s %v", again.Patch, again.AuditAnnotations)
	}
	// Between the calls another webhook wrote a request: the first offer is given back.
	changed := set(t, once, "metadata.name", "a")
	changed = strings.Replace(changed, `"x":"y"`, `"floatip.io/request":"192.168.100.55"`, 1)
	after := apply(t, changed, w.post(PathVMCreate, review{kind: vmGVK, object: changed}))
	if got := annotation(t, after, floatip.AnnotationAddress); got != "192.168.100.55" {
		t.Errorf("after a changed wish: %s", got)
	}
	if line, ok := w.ledger.Lookup(mustAddr("192.168.100.50")); ok {
		t.Errorf("first offer is still there: %+v", line)
	}
}

// The claim of a VM that exists can be read by others; a VM that carries a copy of it gets its own.
func TestCopiedClaim(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	source, refused := w.createVM(vm("source", nil), "uid-source")
	if refused != nil {
		t.Fatal(refused)
	}
	keys := map[string]string{
		floatip.AnnotationAddress: annotation(t, source, floatip.AnnotationAddress),
		floatip.AnnotationClaim:   annotation(t, source, floatip.AnnotationClaim),
	}
	for name, bind := range map[string]bool{"while the source is pending": false, "after it was bound": true} {
		t.Run(name, func(t *testing.T) {
			if bind {
				owner := floatip.Owner{Namespace: "vms", Name: "source", UID: "uid-source"}
				if _, err := w.ledger.Bind(t.Context(), floatip.Claim{}, owner, ipam.Cause{}); err != nil {
					t.Fatal(err)
				}
			}
			copied, refused := w.createVM(vm("copy", keys), "uid-copy-"+strings.ReplaceAll(name, " ", "-"))
			if refused != nil {
				t.Fatal(refused)
			}
			for key, value := range keys {
				if annotation(t, copied, key) == value {
					t.Errorf("%s was taken over: %s", key, value)
				}
			}
		})
	}
	// Somebody forges the result of the mutating phase: the ledger does not give it.
	forged := set(t, vm("thief", keys), "metadata.uid", "uid-thief")
	response := w.post(PathVMCommit, review{kind: vmGVK, object: forged})
	wantRefused(t, response.Result, http.StatusConflict, "vms/source", "metadata.annotations[floatip.io/address]")
}

// What is promised in one namespace is no promise in another, whoever knows the claim, and is not taken back there.
func TestPromiseOfAnotherNamespace(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	w.labels["tenant"] = map[string]string{floatip.LabelEnabled: "true"}
	object := vm("a", nil)
	promised := apply(t, object, w.post(PathVMCreate, review{kind: vmGVK, object: object}))
	for _, wish := range []string{"", `"floatip.io/request":"192.168.100.55",`} {
		stolen := strings.Replace(promised, `"annotations":{`, `"annotations":{`+wish, 1)
		response := w.post(PathVMCreate, review{kind: vmGVK, namespace: "tenant", object: stolen})
		if got := response.AuditAnnotations; !response.Allowed || got["action"] != string(Reserved) ||
			got["address"] == "192.168.100.50" || got["claim"] == annotation(t, promised, floatip.AnnotationClaim) {
			t.Errorf("%s: %+v", wish, response)
		}
	}
	if line, ok := w.ledger.Lookup(mustAddr("192.168.100.50")); !ok || line.Owner.Namespace != "vms" {
		t.Errorf("the promise is %+v", line)
	}
}

func TestCloneFallsBackToAnotherAddress(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	request := map[string]string{floatip.AnnotationRequest: "192.168.100.50"}
	if _, refused := w.createVM(vm("source", request), "uid-source"); refused != nil {
		t.Fatal(refused)
	}
	request["restore.kubevirt.io/lastRestoreUID"] = "r"
	response := w.post(PathVMCreate, review{kind: vmGVK, object: vm("clone", request)})
	wantRefused(t, response.Result, http.StatusConflict, "vms/source", "metadata.annotations[floatip.io/request]")
	response = w.post(PathVMCreate, review{
		kind: vmGVK, object: vm("clone", request), user: "system:serviceaccount:kubevirt:kubevirt-controller",
	})
	if !response.Allowed || response.AuditAnnotations["address"] != "192.168.100.51" || len(response.Warnings) != 1 {
		t.Errorf("by KubeVirt: %+v", response)
	}
	// All members of a VirtualMachinePool carry what its template asks for.
	delete(request, "restore.kubevirt.io/lastRestoreUID")
	member := strings.Replace(vm("pool-0", request), `"metadata":{`,
		`"metadata":{"ownerReferences":[{"apiVersion":"pool.kubevirt.io/v1beta1","kind":"VirtualMachinePool","name":"pool","uid":"p","controller":true}],`, 1)
	response = w.post(PathVMCreate, review{kind: vmGVK, object: member, user: "system:serviceaccount:kubevirt:kubevirt-controller"})
	if !response.Allowed || response.AuditAnnotations["address"] != "192.168.100.52" || len(response.Warnings) != 1 {
		t.Errorf("a member of a pool: %+v", response)
	}
	response = w.post(PathVMCreate, review{kind: vmGVK, object: vm("other", request), user: "system:serviceaccount:kubevirt:kubevirt-controller"})
	wantRefused(t, response.Result, http.StatusConflict, "vms/source", "metadata.annotations[floatip.io/request]")
}

// The API server tries new names for one generateName, each with a UID of its own; the last one counts.
func TestGenerateName(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	object := `{"metadata":{"generateName":"web-"}}`
	mutated := apply(t, object, w.post(PathVMCreate, review{kind: vmGVK, object: object}))
	for _, try := range []string{"a", "b", "c"} {
		named := set(t, set(t, mutated, "metadata.name", "web-"+try), "metadata.uid", "uid-"+try)
		if response := w.post(PathVMCommit, review{kind: vmGVK, object: named}); !response.Allowed {
			t.Fatal(response.Result)
		}
	}
	var lines []string
	for line := range w.ledger.All() {
		lines = append(lines, fmt.Sprintf("%s %s %s", line.Address, line.Owner.UID, line.State))
	}
	if diff := cmp.Diff([]string{"192.168.100.50 uid-c Pending"}, lines); diff != "" {
		t.Errorf("ledger (-want +got):\n%s", diff)
	}
}

// Whoever creates a VM that exists, over and over, binds no address with his tries.
func TestTakenNameBindsNothing(t *testing.T) {
	w := worldWithVM(t, nil) // holds .50
	for i := range 30 {
		_, refused := w.createVM(vm("a", nil), fmt.Sprintf("uid-try-%d", i))
		wantRefused(t, refused, http.StatusConflict, `virtualmachines.kubevirt.io "a" already exists`, "metadata.name")
		if refused.Reason != metav1.StatusReasonAlreadyExists {
			t.Fatalf("reason %s", refused.Reason)
		}
	}
	if n := len(slices.Collect(w.ledger.All())); n != 1 {
		t.Errorf("%d lines in the ledger, want that of the VM", n)
	}
	if len(w.events) > 0 {
		t.Errorf("a name that is taken is no matter of floatip's: %q", w.events)
	}
}

// A VM of that name is stored while another one is being created: the promise to that one ends with its refusal.
func TestStoredMeanwhile(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	object := vm("a", nil)
	mutated := set(t, apply(t, object, w.post(PathVMCreate, review{kind: vmGVK, object: object})), "metadata.uid", "uid-a")
	w.vms["vms/a/uid-first"] = nil
	response := w.post(PathVMCommit, review{kind: vmGVK, object: mutated})
	wantRefused(t, response.Result, http.StatusConflict, `virtualmachines.kubevirt.io "a" already exists`, "metadata.name")
	if line, promised := w.ledger.Lookup(mustAddr("192.168.100.50")); promised {
		t.Errorf("still promised: %+v", line)
	}
}

// The process dies between the two phases: the reservation in memory is gone, the address is still free and is given.
func TestRestartBetweenThePhases(t *testing.T) {
	pools := []ipam.Pool{testPool(t, "192.168.100.50-192.168.100.59")}
	w := newWorld(t, pools...)
	object := vm("a", nil)
	mutated := set(t, apply(t, object, w.post(PathVMCreate, review{kind: vmGVK, object: object})), "metadata.uid", "uid-a")
	w.restart(pools)
	if response := w.post(PathVMCommit, review{kind: vmGVK, object: mutated}); !response.Allowed {
		t.Fatal(response.Result)
	}
	// After another restart the answer still holds.
	w.restart(pools)
	if lines := w.ledger.ByOwner("uid-a"); len(lines) != 1 || lines[0].Address != mustAddr("192.168.100.50") {
		t.Errorf("after restart: %+v", lines)
	}
}

// What another webhook writes into floatip's keys, or somebody who asks in the API server's stead, is no more than a
// request: a pool that does not serve the namespace, or has given it enough, gives nothing.
func TestForgedPromise(t *testing.T) {
	closed, limited := namedPool(t, "closed", "192.168.101.0/24"), namedPool(t, "limited", "192.168.103.1-192.168.103.9")
	closed.Selects = func(labels map[string]string) bool { return labels["team"] == "treasury" }
	limited.PerNamespaceLimit, limited.AutoAssign = 1, false
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"), closed, limited)
	w.labels["treasury"] = map[string]string{floatip.LabelEnabled: "true", "team": "treasury"}
	if _, refused := w.createVM(vm("holder", map[string]string{floatip.AnnotationPool: "limited"}), "uid-holder"); refused != nil {
		t.Fatal(refused)
	}
	promised := w.post(PathVMCreate, review{kind: vmGVK, namespace: "treasury", object: vm("t", map[string]string{floatip.AnnotationPool: "closed"})})
	const request, pool, address = "metadata.annotations[floatip.io/request]", "metadata.annotations[floatip.io/pool]", "metadata.annotations[floatip.io/address]"
	for _, tc := range []struct {
		name, address, claim string
		code                 int32
		text, field          string
	}{
		{"free, of a pool of others", "192.168.101.7", floatip.NewClaim().String(), http.StatusForbidden, "namespaceSelector", pool},
		{"free, over the limit", "192.168.103.7", floatip.NewClaim().String(), http.StatusForbidden, "holds 1 of the 1", pool},
		{"of no pool", "10.9.9.9", floatip.NewClaim().String(), http.StatusUnprocessableEntity, "no pool has it", request},
		{"promised in another namespace", promised.AuditAnnotations["address"], promised.AuditAnnotations["claim"],
			http.StatusConflict, "the claim belongs to a VM of another namespace", address},
	} {
		t.Run(tc.name, func(t *testing.T) {
			keys := map[string]string{floatip.AnnotationAddress: tc.address, floatip.AnnotationClaim: tc.claim}
			response := w.post(PathVMCommit, review{kind: vmGVK, object: set(t, vm("thief", keys), "metadata.uid", "uid-thief")})
			wantRefused(t, response.Result, tc.code, tc.text, tc.field)
			if lines := w.ledger.ByOwner("uid-thief"); len(lines) > 0 {
				t.Errorf("the ledger has %v", lines)
			}
		})
	}
}

func TestDryRunWritesNothing(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	if _, refused := w.createVM(vm("holder", nil), "uid-holder"); refused != nil {
		t.Fatal(refused)
	}
	file := func() []byte {
		if err := w.ledger.Backup(io.Discard); err != nil { // what was acknowledged is in the file then
			t.Fatal(err)
		}
		raw, err := os.ReadFile(w.path) // while it is open: the ledger tidies its file up when it closes it
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	before := file()
	for range 3 {
		object := vm("a", nil)
		first := w.post(PathVMCreate, review{kind: vmGVK, object: object, dryRun: true})
		after := set(t, apply(t, object, first), "metadata.uid", "uid-a")
		if got := annotation(t, after, floatip.AnnotationAddress); got != "192.168.100.51" || len(first.Warnings) != 1 {
			t.Errorf("dry run shows %q with warnings %q", got, first.Warnings)
		}
		if second := w.post(PathVMCommit, review{kind: vmGVK, object: after, dryRun: true}); !second.Allowed {
			t.Error(second.Result)
		}
	}
	asked := w.post(PathVMCreate, review{
		kind: vmGVK, object: vm("a", map[string]string{floatip.AnnotationRequest: "192.168.100.55"}), dryRun: true,
	})
	if !asked.Allowed || len(asked.Warnings) > 0 {
		t.Errorf("an address that is asked for is the one that a create would get: %v with warnings %q", asked.Result, asked.Warnings)
	}
	taken := w.post(PathVMCreate, review{
		kind: vmGVK, object: vm("a", map[string]string{floatip.AnnotationRequest: "192.168.100.50"}), dryRun: true,
	})
	wantRefused(t, taken.Result, http.StatusConflict, "vms/holder", "metadata.annotations[floatip.io/request]")
	if !slices.Equal(before, file()) {
		t.Error("the ledger's file has changed")
	}
}

func TestUpdateVM(t *testing.T) {
	const kubevirtUser = "system:serviceaccount:kubevirt:kubevirt-controller"
	other := namedPool(t, "other", "192.168.101.0/24")
	other.AutoAssign = false
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"), other)
	stored, refused := w.createVM(vm("a", map[string]string{"x": "y"}), "uid-a")
	if refused != nil {
		t.Fatal(refused)
	}
	own := map[string]string{
		floatip.AnnotationAddress: annotation(t, stored, floatip.AnnotationAddress),
		floatip.AnnotationClaim:   annotation(t, stored, floatip.AnnotationClaim),
	}
	with := func(changes map[string]string) map[string]string {
		all := map[string]string{"x": "y", floatip.AnnotationAddress: own[floatip.AnnotationAddress], floatip.AnnotationClaim: own[floatip.AnnotationClaim]}
		for k, v := range changes {
			if v == "" {
				delete(all, k)
			} else {
				all[k] = v
			}
		}
		return all
	}
	for _, tc := range []struct {
		name   string
		change map[string]string
		user   string
		action Action
		code   int32
		text   string
		warns  int
	}{
		{"nothing of ours", map[string]string{"x": "z"}, "", Kept, 0, "", 0},
		{"address removed", map[string]string{floatip.AnnotationAddress: ""}, "", Restored, 0, "", 1},
		{"address changed", map[string]string{floatip.AnnotationAddress: "192.168.100.99"}, "", Restored, 0, "", 1},
		{"claim changed", map[string]string{floatip.AnnotationClaim: "00"}, "", Restored, 0, "", 1},
		{"both removed by a pool revision", map[string]string{floatip.AnnotationAddress: "", floatip.AnnotationClaim: ""}, kubevirtUser, Restored, 0, "", 1},
		{"asks for what it holds", map[string]string{floatip.AnnotationRequest: own[floatip.AnnotationAddress]}, "", Kept, 0, "", 0},
		{"asks for another address", map[string]string{floatip.AnnotationRequest: "192.168.100.55"}, "", Refused, http.StatusUnprocessableEntity, "the VM holds 192.168.100.50", 0},
		{"asks for another pool", map[string]string{floatip.AnnotationPool: "other"}, "", Refused, http.StatusUnprocessableEntity, "of pool provider", 0},
		{"asks for nonsense", map[string]string{floatip.AnnotationRequest: "x"}, "", Refused, http.StatusUnprocessableEntity, "not an IP address", 0},
		{"allows", map[string]string{floatip.AnnotationAllow: "tcp/22 from 192.0.2.0/24"}, "", Kept, 0, "", 0},
		{"allows nonsense", map[string]string{floatip.AnnotationAllow: "ssh"}, "", Refused, http.StatusUnprocessableEntity, `floatip.io/allow: entry 1 "ssh"`, 0},
		{"KubeVirt allows nonsense", map[string]string{floatip.AnnotationAllow: "ssh"}, kubevirtUser, Kept, 0, "", 0},
		{"KubeVirt asks for another address", map[string]string{floatip.AnnotationRequest: "192.168.100.55"}, kubevirtUser, Kept, 0, "", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			response := w.post(PathVMUpdate, review{
				operation: admissionv1.Update, kind: vmGVK, user: tc.user, old: stored,
				object: vm("a", with(tc.change)),
			})
			if got := response.AuditAnnotations["action"]; got != string(tc.action) {
				t.Errorf("action %s, want %s", got, tc.action)
			}
			if tc.code != 0 {
				wantRefusedText(t, response.Result, tc.code, tc.text)
				return
			}
			after := apply(t, vm("a", with(tc.change)), response)
			for key, value := range own {
				if got := annotation(t, after, key); got != value {
					t.Errorf("%s is %q, want %q", key, got, value)
				}
			}
			if len(response.Warnings) != tc.warns {
				t.Errorf("warnings %q, want %d", response.Warnings, tc.warns)
			}
			if owns := strings.Contains(after, `"f:floatip.io/address"`); owns != (tc.action == Restored) {
				t.Errorf("floatip is entered as the keys' manager: %t\n%s", owns, after)
			}
		})
	}
	asking := set(t, vm("a", with(map[string]string{floatip.AnnotationRequest: "192.168.100.50"})), "metadata.uid", "uid-a")
	response := w.post(PathVMUpdate, review{operation: admissionv1.Update, kind: vmGVK, old: asking, object: stored})
	if !response.Allowed || len(response.Warnings) != 1 || !strings.Contains(response.Warnings[0], "keeps 192.168.100.50 until it is deleted") {
		t.Errorf("a request that is removed: %+v", response)
	}
}

// What was stored while the webhook was away does not stand in the way of another change.
func TestUpdateReportsWhatItChanges(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	const allow = "metadata.annotations[floatip.io/allow]"
	for _, tc := range []struct {
		name       string
		old, after map[string]string
		fields     []string // of the refusal
	}{
		{"unreadable before and after", map[string]string{floatip.AnnotationAllow: "ssh"},
			map[string]string{floatip.AnnotationAllow: "ssh", floatip.AnnotationPool: "provider"}, nil},
		{"unreadable in another way", map[string]string{floatip.AnnotationAllow: "ssh"},
			map[string]string{floatip.AnnotationAllow: "tcp/ssh"}, []string{allow}},
		{"mended", map[string]string{floatip.AnnotationAllow: "ssh"}, map[string]string{floatip.AnnotationAllow: "tcp/22"}, nil},
		{"emptied", map[string]string{"x": "y"}, map[string]string{floatip.AnnotationAllow: ""}, []string{allow}},
		{"taken away", map[string]string{floatip.AnnotationAllow: "ssh"}, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			response := w.post(PathVMUpdate, review{
				operation: admissionv1.Update, kind: vmGVK, old: vm("a", tc.old), object: vm("a", tc.after),
			})
			if len(tc.fields) > 0 {
				wantRefused(t, response.Result, http.StatusUnprocessableEntity, "floatip.io/allow", tc.fields...)
			} else if !response.Allowed {
				t.Errorf("refused: %v", response.Result)
			}
		})
	}
}

func wantRefusedText(t *testing.T, got *metav1.Status, code int32, text string) {
	t.Helper()
	if got == nil || got.Code != code || !strings.Contains(got.Message, text) {
		t.Errorf("got %+v, want %d and %q", got, code, text)
	}
}

// A wish that comes after the VM was made has no effect, and says so.
func TestLateWish(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	for name, tc := range map[string]struct{ old, after map[string]string }{
		"a pool":     {nil, map[string]string{floatip.AnnotationPool: "provider"}},
		"opted in":   {map[string]string{floatip.LabelEnabled: "false"}, nil},
		"no request": {map[string]string{floatip.AnnotationRequest: "192.168.100.55"}, nil},
	} {
		response := w.post(PathVMUpdate, review{operation: admissionv1.Update, kind: vmGVK, old: vm("a", tc.old), object: vm("a", tc.after)})
		if !response.Allowed || len(response.Patch) > 0 || len(response.Warnings) != 1 || !strings.Contains(response.Warnings[0], "when it is created") {
			t.Errorf("%s: %+v", name, response)
		}
	}
}

// Of a VM that holds nothing, floatip's keys stay as they were: gone, or what an older floatip wrote.
func TestKeysOfAVMThatHoldsNothing(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	shown := map[string]string{floatip.AnnotationAddress: "192.168.100.50", floatip.AnnotationClaim: floatip.NewClaim().String()}
	for name, tc := range map[string]struct{ old, after map[string]string }{
		"forged":  {nil, shown},
		"removed": {shown, map[string]string{"x": "y"}},
		"changed": {shown, map[string]string{floatip.AnnotationAddress: "192.168.100.51", floatip.AnnotationClaim: shown[floatip.AnnotationClaim]}},
	} {
		object := vm("a", tc.after)
		response := w.post(PathVMUpdate, review{operation: admissionv1.Update, kind: vmGVK, old: vm("a", tc.old), object: object})
		after := apply(t, object, response)
		for _, key := range []string{floatip.AnnotationAddress, floatip.AnnotationClaim} {
			if got := annotation(t, after, key); got != tc.old[key] {
				t.Errorf("%s: %s is %q, was %q", name, key, got, tc.old[key])
			}
		}
		if response.AuditAnnotations["action"] != string(Restored) || len(response.Warnings) == 0 {
			t.Errorf("%s: %+v", name, response)
		}
	}
}

// A webhook must never hold up the finalizers of a VM that goes away.
func TestUpdateOfADyingVM(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	response := w.post(PathVMUpdate, review{
		operation: admissionv1.Update, kind: vmGVK,
		old:    `{"metadata":{"name":"a","uid":"u","annotations":{"floatip.io/address":"192.168.100.50"}}}`,
		object: `{"metadata":{"name":"a","uid":"u","deletionTimestamp":"2026-01-02T03:04:05Z","annotations":{"floatip.io/request":"nonsense"}}}`,
	})
	if !response.Allowed || len(response.Patch) > 0 {
		t.Errorf("%+v", response)
	}
}

func TestAuditAnnotations(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	object := vm("a", nil)
	first := w.post(PathVMCreate, review{kind: vmGVK, object: object})
	stored := set(t, apply(t, object, first), "metadata.uid", "uid-a")
	second := w.post(PathVMCommit, review{kind: vmGVK, object: stored})
	claim := annotation(t, stored, floatip.AnnotationClaim)
	for _, tc := range []struct {
		got  map[string]string
		want map[string]string
	}{
		{first.AuditAnnotations, map[string]string{"action": "reserved", "reason": "next free address", "address": "192.168.100.50", "pool": "provider", "claim": claim}},
		{second.AuditAnnotations, map[string]string{"action": "committed", "reason": "written to the ledger", "address": "192.168.100.50", "pool": "provider", "claim": claim}},
	} {
		if diff := cmp.Diff(tc.want, tc.got); diff != "" {
			t.Errorf("audit annotations (-want +got):\n%s", diff)
		}
	}
}

// What people wrote comes into audit annotations cut, and not in the middle of a letter.
func TestAuditAnnotationsAreCut(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	for shift := range 4 {
		long := strings.Repeat("x", shift) + strings.Repeat("\U0001F600", 2*auditLimit)
		response := w.post(PathVMCreate, review{kind: vmGVK, object: vm("a", map[string]string{floatip.AnnotationRequest: long})})
		got := response.AuditAnnotations["reason"]
		if response.Allowed || len(got) > auditLimit || len(got) < auditLimit-utf8.UTFMax || strings.ContainsRune(got, utf8.RuneError) {
			t.Errorf("%d bytes: %q", len(got), got)
		}
	}
}

func TestClosedGate(t *testing.T) {
	w := newWorld(t)
	w.gate.open.Store(false)
	if w.gate.Ready(nil) == nil {
		t.Error("ready although closed")
	}
	answer, err := w.server.Client().Post(w.server.URL+PathVMCreate, "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusServiceUnavailable || answer.Header.Get("Retry-After") != "1" {
		t.Errorf("%s, Retry-After %q", answer.Status, answer.Header.Get("Retry-After"))
	}
}
