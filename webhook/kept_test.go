package webhook

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

// floatip ends after it has promised a VM its address, and before it sees the VM stored. The VM's instance, and its pod, may be
// created before the controller has seen the VM: they carry the address all the same.
func TestInstanceAndPodOfAKeptPromise(t *testing.T) {
	for name, tc := range map[string]struct {
		path string
		review
		carries Action
	}{
		"instance": {PathVMICreate, review{kind: vmiGVK, object: vmi(`{}`, masquerade)}, Carried},
		"pod":      {PathPodCreate, review{kind: podGVK, user: kubevirtController, object: launcher(`{}`, podSpec)}, Injected},
	} {
		t.Run(name, func(t *testing.T) { testKept(t, tc.path, tc.review, tc.carries) })
	}
}

func testKept(t *testing.T, path string, create review, carries Action) {
	pools := []ipam.Pool{testPool(t, "192.168.100.50-192.168.100.59")}
	w := newWorld(t, pools...)
	w.addVMI(masquerade)
	object := vm("a", nil)
	mutated := apply(t, object, w.post(PathVMCreate, review{kind: vmGVK, object: object}))
	w.restart(pools)
	claim := get(t, mutated, "metadata", "annotations", floatip.AnnotationClaim).(string)
	other, refused := w.createVM(vm("b", nil), "uid-b")
	if refused != nil {
		t.Fatal(refused)
	}
	action := func() Action { return Action(w.post(path, create).AuditAnnotations["action"]) }
	for name, annotations := range map[string]map[string]string{
		"not stored":      nil,
		"without a claim": {floatip.AnnotationAddress: "192.168.100.50"},
		"another claim":   {floatip.AnnotationAddress: "192.168.100.50", floatip.AnnotationClaim: floatip.NewClaim().String()},
		"another VM's":    {floatip.AnnotationClaim: annotation(t, other, floatip.AnnotationClaim)},
		"no claim at all": {floatip.AnnotationAddress: "192.168.100.50", floatip.AnnotationClaim: "x"},
	} {
		if w.vms = map[string]map[string]string{}; annotations != nil {
			w.vms["vms/a/uid-a"] = annotations
		}
		if got := action(); got != Ignored {
			t.Errorf("%s: %s", name, got)
		}
	}
	w.vms["vms/a/uid-a"] = map[string]string{floatip.AnnotationAddress: "192.168.100.50", floatip.AnnotationClaim: claim}
	w.unread = errors.New("no route to host")
	if response := w.post(path, create); response.Allowed {
		t.Error("it may be the VM's, nobody knows, and the answer is yes")
	}
	w.unread = nil
	create.dryRun = true
	if got := action(); got != Ignored || len(w.ledger.ByOwner("uid-a")) > 0 {
		t.Errorf("dry run: %s, the ledger has %v", got, w.ledger.ByOwner("uid-a"))
	}
	create.dryRun = false
	for range 2 {
		if got := action(); got != carries {
			t.Errorf("%s, want %s", got, carries)
		}
	}
	lines := w.ledger.ByOwner("uid-a")
	if len(lines) != 1 || lines[0].Owner != (floatip.Owner{Namespace: "vms", Name: "a", UID: "uid-a"}) || lines[0].State != ipam.Pending {
		t.Errorf("the ledger has %+v", lines)
	}
}

// Where nothing was kept the hooks do not ask what VMs without an address show: such a VM starts whoever answers.
func TestVMsWithoutAnAddressAreNotRead(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	w.addVMI(masquerade)
	w.unread = errors.New("no route to host")
	for path, r := range map[string]review{
		PathVMICreate: {kind: vmiGVK, object: vmi(`{}`, masquerade)},
		PathPodCreate: {kind: podGVK, user: kubevirtController, object: launcher(`{}`, podSpec)},
	} {
		if response := w.post(path, r); !response.Allowed || response.AuditAnnotations["action"] != string(Ignored) {
			t.Errorf("%s: %+v", path, response)
		}
	}
}

// The user and the request of the first phase are in the history of an address of which only the promise was left.
func TestKeptPromiseSaysWhoAsked(t *testing.T) {
	pools := []ipam.Pool{testPool(t, "192.168.100.50-192.168.100.59")}
	w := newWorld(t, pools...)
	object := vm("a", nil)
	mutated := apply(t, object, w.post(PathVMCreate, review{kind: vmGVK, object: object}))
	w.restart(pools)
	claim, err := floatip.ParseClaim(get(t, mutated, "metadata", "annotations", floatip.AnnotationClaim).(string))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ledger.Bind(t.Context(), claim, floatip.Owner{Namespace: "vms", Name: "a", UID: "uid-a"}, ipam.Cause{}); err != nil {
		t.Fatal(err)
	}
	events, err := w.ledger.History(ipam.Query{})
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, e := range events {
		said = append(said, e.Action.String()+" by "+e.Cause.User)
	}
	if diff := cmp.Diff([]string{"Committed by " + testUser, "Bound by "}, said); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A dry run promises nothing that could be kept.
func TestDryRunIsNotKept(t *testing.T) {
	pools := []ipam.Pool{testPool(t, "192.168.100.50-192.168.100.59")}
	w := newWorld(t, pools...)
	w.post(PathVMCreate, review{kind: vmGVK, object: vm("a", nil), dryRun: true})
	w.restart(pools)
	if kept := w.ledger.StalePending(0); len(kept) > 0 {
		t.Errorf("kept: %+v", kept)
	}
}
