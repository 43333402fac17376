package webhook

import (
	"net/http"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

// store is what the API server and floatip's controller do after the commit.
func (w *world) store(name, uid string) {
	w.t.Helper()
	owner := floatip.Owner{Namespace: "vms", Name: name, UID: uid}
	w.mu.Lock()
	w.vms[owner.String()+"/"+uid] = map[string]string{}
	w.mu.Unlock()
	if _, err := w.ledger.Bind(w.t.Context(), floatip.Claim{}, owner, ipam.Cause{}); err != nil {
		w.t.Fatal(err)
	}
}

// A VM that is created before the controller saw that the one of its name is gone gets that one's address, requested or
// not. As long as anything is left of it, the name is taken, which a request does not hide.
func TestCreatedAgainAtOnce(t *testing.T) {
	for name, annotations := range map[string]map[string]string{
		"next free": nil, "requested": {floatip.AnnotationRequest: "192.168.100.50"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
			object := vm("a", annotations)
			if _, refused := w.createVM(object, "uid-1"); refused != nil {
				t.Fatal(refused)
			}
			w.store("a", "uid-1")
			_, refused := w.createVM(object, "uid-2")
			wantRefused(t, refused, http.StatusConflict, `"a" already exists`, "metadata.name")
			if refused.Reason != metav1.StatusReasonAlreadyExists {
				t.Errorf("reason %s", refused.Reason)
			}
			w.mu.Lock()
			clear(w.vms)
			w.mu.Unlock()
			if dry := w.post(PathVMCreate, review{kind: vmGVK, object: vm("a", nil), dryRun: true}); !dry.Allowed {
				t.Errorf("dry run: %v", dry.Result)
			}
			if held := w.ledger.ByOwner("uid-1"); len(held) != 1 {
				t.Errorf("a dry run gave back the address: %v", held)
			}
			if _, refused := w.createVM(object, "uid-2"); refused != nil {
				t.Fatal(refused)
			}
			lines := w.ledger.ByOwner("uid-2")
			if len(lines) != 1 || lines[0].Address.String() != "192.168.100.50" || len(w.ledger.ByOwner("uid-1")) != 0 {
				t.Errorf("the VM of the same name holds %v", lines)
			}
		})
	}
}

// What the cluster did not show when floatip started, and what is disputed, is for the controller or a person to decide; and
// what is left of the old VM may still send. The new VM gets another address.
func TestCreatedAgainWhileTheOldOneCounts(t *testing.T) {
	for name, do := range map[string]func(*world){
		"missing": func(w *world) { w.adopt(true) },
		"disputed": func(w *world) {
			w.adopt(false, ipam.Sighting{Address: mustAddr("192.168.100.50"), Owner: floatip.Owner{Namespace: "vms", Name: "b", UID: "uid-b"}})
		},
		"its pod is there": func(w *world) { w.carrier = "pod" },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
			if _, refused := w.createVM(vm("a", nil), "uid-1"); refused != nil {
				t.Fatal(refused)
			}
			w.store("a", "uid-1")
			w.mu.Lock()
			clear(w.vms)
			w.mu.Unlock()
			do(w)
			if _, refused := w.createVM(vm("a", nil), "uid-2"); refused != nil {
				t.Fatal(refused)
			}
			if lines := w.ledger.ByOwner("uid-2"); len(lines) != 1 || lines[0].Address.String() != "192.168.100.51" {
				t.Errorf("the VM of the same name holds %v", lines)
			}
			if len(w.ledger.ByOwner("uid-1")) != 1 {
				t.Error("the address was taken from the VM that is gone")
			}
		})
	}
}

// adopt has the ledger compared with what the cluster shows.
func (w *world) adopt(complete bool, seen ...ipam.Sighting) {
	w.t.Helper()
	if _, err := w.ledger.Adopt(w.t.Context(), seen, complete); err != nil {
		w.t.Fatal(err)
	}
}

// The node agent says that an address has left a moment after the VM's pod has: that moment is waited for. A node that says
// nothing may run a pod that was deleted by force, and the new VM gets another address.
func TestCreatedAgainWhileANodeAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		answers int // how often the node is still said to answer
		want    string
	}{
		"it stops in a moment": {3, "192.168.100.50"}, "it does not stop": {1 << 30, "192.168.100.51"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
			if _, refused := w.createVM(vm("a", nil), "uid-1"); refused != nil {
				t.Fatal(refused)
			}
			w.store("a", "uid-1")
			w.mu.Lock()
			clear(w.vms)
			w.announced = tc.answers
			w.mu.Unlock()
			if tc.answers > 1000 {
				w.hooks.patience = 1 // nanosecond
			}
			if _, refused := w.createVM(vm("a", nil), "uid-2"); refused != nil {
				t.Fatal(refused)
			}
			if lines := w.ledger.ByOwner("uid-2"); len(lines) != 1 || lines[0].Address.String() != tc.want {
				t.Errorf("the VM of the same name holds %v, want %s", lines, tc.want)
			}
			if held := len(w.ledger.ByOwner("uid-1")) == 1; held != (tc.want != "192.168.100.50") {
				t.Errorf("the VM that is gone holds its address: %t", held)
			}
		})
	}
}

// Whoever is refused later, and tries again under the same name, is promised the same address under the same claim.
func TestTriedAgain(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	first, refused := w.createVM(vm("a", nil), "uid-1")
	if refused != nil {
		t.Fatal(refused)
	}
	for _, uid := range []string{"uid-2", "uid-3"} {
		again, refused := w.createVM(vm("a", map[string]string{floatip.AnnotationRequest: "192.168.100.50"}), uid)
		if refused != nil {
			t.Fatal(refused)
		}
		for _, key := range []string{"floatip.io/claim", "floatip.io/address"} {
			if one, two := annotationOf(t, first, key), annotationOf(t, again, key); one != two || one == "" {
				t.Errorf("%s was %q, is %q", key, one, two)
			}
		}
	}
	if lines := w.ledger.ByName("vms", "a"); len(lines) != 1 || lines[0].Owner.UID != "uid-3" || lines[0].State != ipam.Pending {
		t.Errorf("the ledger has %v", lines)
	}
	if _, refused := w.createVM(vm("b", map[string]string{floatip.AnnotationRequest: "192.168.100.50"}), "uid-b"); refused == nil {
		t.Error("a VM of another name got the address")
	}
}

func annotationOf(t *testing.T, object, key string) string {
	t.Helper()
	m, err := decodeMetadata([]byte(object))
	if err != nil {
		t.Fatal(err)
	}
	return m.Annotations[key]
}

// A refused create is told in the namespace, a dry run and a name that is taken are not.
func TestRefusalIsTold(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	nonsense := map[string]string{floatip.AnnotationRequest: "nonsense"}
	w.post(PathVMCreate, review{kind: vmGVK, object: vm("a", nonsense), dryRun: true})
	if len(w.events) != 0 {
		t.Errorf("a dry run is told: %q", w.events)
	}
	w.post(PathVMCreate, review{kind: vmGVK, object: vm("a", nonsense), name: "a"})
	w.post(PathVMCreate, review{kind: vmGVK, object: strings.Replace(vm("web-", nonsense), `"name"`, `"generateName"`, 1)})
	stored := set(t, vm("a", nil), "metadata.uid", "uid-a")
	changed := set(t, vm("a", nonsense), "metadata.uid", "uid-a")
	w.post(PathVMUpdate, review{operation: admissionv1.Update, kind: vmGVK, name: "a", old: stored, object: changed}) // on the VM
	for i, want := range []string{
		"vms FloatingIPRefused: VM a: floatip: ", "vms FloatingIPRefused: VM web-*: floatip: ", "vms/a FloatingIPRefused: floatip: ",
	} {
		if len(w.events) != 3 || !strings.HasPrefix(w.events[i], want) {
			t.Errorf("events %q, want one that begins with %q", w.events, want)
		}
	}
}
