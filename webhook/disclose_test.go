package webhook

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

// A refusal names the holder to people of its own namespace, and hides it from others, whose administrators find it in
// the audit log.
func TestRefusalHidesOtherTenants(t *testing.T) {
	for _, tc := range []struct {
		name         string
		prepare      func(w *world)
		own, another string
	}{
		{"held", func(w *world) { w.createVM(vm("holder", nil), "uid-holder") },
			"192.168.100.50 is held by VM vms/holder",
			"192.168.100.50 is held by a VM of another namespace; who may read FloatingIP 192.168.100.50 sees by which"},
		{"promised", func(w *world) { w.post(PathVMCreate, review{kind: vmGVK, object: vm("holder", nil)}) },
			"192.168.100.50 is promised to VM vms/holder, which is being created",
			"192.168.100.50 is promised to a VM of another namespace, which is being created"},
		{"resting", func(w *world) {
			w.createVM(vm("holder", nil), "uid-holder")
			if _, err := w.ledger.Bind(t.Context(), floatip.Claim{}, floatip.Owner{Namespace: "vms", Name: "holder", UID: "uid-holder"}, ipam.Cause{}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.ledger.Release(t.Context(), "uid-holder", ipam.Cause{}); err != nil {
				t.Fatal(err)
			}
		}, "after VM vms/holder gave it back", "after a VM of another namespace gave it back"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pool := testPool(t, "192.168.100.50-192.168.100.59")
			pool.Quarantine = time.Hour
			w := newWorld(t, pool)
			w.labels["tenant"] = map[string]string{floatip.LabelEnabled: "true"}
			tc.prepare(w)
			wish := vm("curious", map[string]string{floatip.AnnotationRequest: "192.168.100.50"})
			for namespace, want := range map[string]string{"vms": tc.own, "tenant": tc.another} {
				response := w.post(PathVMCreate, review{kind: vmGVK, namespace: namespace, object: wish})
				wantRefused(t, response.Result, http.StatusConflict, want, "metadata.annotations[floatip.io/request]")
				told := response.Result.Message + response.Result.Details.Causes[0].Message + strings.Join(response.Warnings, "")
				if named := strings.Contains(told, "holder"); named != (namespace == "vms") {
					t.Errorf("people of %s are told %q", namespace, told)
				}
				if reason := response.AuditAnnotations["reason"]; !strings.Contains(reason, "vms/holder") {
					t.Errorf("the audit log has %q, want the holder's name", reason)
				}
			}
		})
	}
}

// A copy by KubeVirt of a VM in another namespace gets its own address, and a warning without the other VM's name.
func TestWarningHidesOtherTenants(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	w.labels["tenant"] = map[string]string{floatip.LabelEnabled: "true"}
	w.createVM(vm("holder", nil), "uid-holder")
	response := w.post(PathVMCreate, review{kind: vmGVK, namespace: "tenant", user: kubevirtController, object: vm("restored", map[string]string{
		floatip.AnnotationRequest: "192.168.100.50", "restore.kubevirt.io/lastRestoreUID": "r",
	})})
	if !response.Allowed || len(response.Warnings) != 1 || strings.Contains(response.Warnings[0], "holder") ||
		!strings.Contains(response.AuditAnnotations["reason"], "vms/holder") {
		t.Errorf("%+v", response)
	}
}

// The claim of another tenant's VM, should it ever be known, gives neither the address nor the VM's name.
func TestStolenClaim(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	source, refused := w.createVM(vm("source", nil), "uid-source")
	if refused != nil {
		t.Fatal(refused)
	}
	stolen := set(t, strings.Replace(source, `"name":"source"`, `"name":"thief"`, 1), "metadata.uid", "uid-thief")
	response := w.post(PathVMCommit, review{kind: vmGVK, namespace: "tenant", object: stolen})
	wantRefused(t, response.Result, http.StatusConflict, "the claim belongs to a VM of another namespace", "metadata.annotations[floatip.io/address]")
	if !strings.Contains(response.AuditAnnotations["reason"], "vms/source") {
		t.Errorf("audit annotations: %v", response.AuditAnnotations)
	}
}

// Whoever makes instances writes their owner references: the UID of another tenant's VM, or of a VM of another name, is
// worth nothing.
func TestBorrowedOwner(t *testing.T) {
	for name, forge := range map[string]func(r *review){
		"VM of another namespace": func(r *review) { r.namespace = "tenant" },
		"VM of another name": func(r *review) {
			r.object = strings.Replace(r.object, `"metadata":{"name":"a"`, `"metadata":{"name":"b"`, 1)
		},
		"UID of a VM of another name": func(r *review) { r.object = strings.ReplaceAll(r.object, `"name":"a"`, `"name":"b"`) },
	} {
		t.Run(name, func(t *testing.T) {
			w := worldWithVM(t, nil)
			w.labels["tenant"] = map[string]string{floatip.LabelEnabled: "true"}
			forged := review{kind: vmiGVK, object: vmi(`{"floatip.io/address":"192.168.100.50"}`, masquerade)}
			forge(&forged)
			response := w.post(PathVMICreate, forged)
			if got := operations(t, response); !response.Allowed || len(got) != 1 || got[0] != "remove /metadata/annotations/floatip.io~1address" {
				t.Errorf("VMI: %+v: %q", response, got)
			}
			// KubeVirt makes a pod for such an instance too.
			w.addVMI(masquerade)
			instance := w.vmis["vms/a"]
			instance.Namespace = "vms"
			pod := review{kind: podGVK, user: kubevirtController, object: launcher(`{}`, podSpec)}
			if forged.namespace != "" {
				w.vmis["tenant/a"], pod.namespace = instance, "tenant"
			} else {
				instance.Name = "b"
				if name == "UID of a VM of another name" {
					instance.OwnerReferences[0].Name = "b"
				}
			}
			response = w.post(PathPodCreate, pod)
			if !response.Allowed || len(response.Patch) > 0 || response.AuditAnnotations["action"] != string(Ignored) {
				t.Errorf("pod: %+v", response)
			}
		})
	}
}
