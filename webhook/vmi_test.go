package webhook

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

// vmi returns a VMI of the VM "a" with UID uid-a: annotations and spec are JSON.
func vmi(annotations, spec string) string {
	return fmt.Sprintf(`{"apiVersion":"kubevirt.io/v1","kind":"VirtualMachineInstance","metadata":{"name":"a","namespace":"vms",
		"annotations":%s,"ownerReferences":[%s]},"spec":%s}`, annotations, vmOwner, spec)
}

const (
	vmOwner    = `{"apiVersion":"kubevirt.io/v1","kind":"VirtualMachine","name":"a","uid":"uid-a","controller":true}`
	masquerade = `{"domain":{"devices":{"interfaces":[{"name":"default","masquerade":{}}]}},"networks":[{"name":"default","pod":{}}]}`
	bridge     = `{"domain":{"devices":{"interfaces":[{"name":"default","bridge":{}}]}},"networks":[{"name":"default","pod":{}}]}`
)

// worldWithVM has the VM "a" with 192.168.100.50, Bound.
func worldWithVM(t testing.TB, annotations map[string]string) *world {
	t.Helper()
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	if _, refused := w.createVM(vm("a", annotations), "uid-a"); refused != nil {
		t.Fatal(refused)
	}
	owner := floatip.Owner{Namespace: "vms", Name: "a", UID: "uid-a"}
	if _, err := w.ledger.Bind(t.Context(), floatip.Claim{}, owner, ipam.Cause{}); err != nil {
		t.Fatal(err)
	}
	w.vms["vms/a/uid-a"] = annotations
	return w
}

func TestCreateVMI(t *testing.T) {
	w := worldWithVM(t, nil)
	const asset = "floatip=192.168.100.50"
	for _, tc := range []struct {
		name, object string
		action       Action
		want         []string
	}{
		{"masquerade", vmi(`{"x":"y"}`, masquerade), Carried, []string{
			"add /metadata/annotations/floatip.io~1address 192.168.100.50", "add /spec/domain/chassis"}},
		{"without annotations", vmi(`null`, masquerade), Carried, []string{"add /metadata/annotations", "add /spec/domain/chassis"}},
		{"forged by the template", vmi(`{"floatip.io/address":"192.168.100.99","floatip.io/nat":"x","floatip.io/claim":"y"}`, masquerade), Carried, []string{
			"add /metadata/annotations/floatip.io~1address 192.168.100.50",
			"remove /metadata/annotations/floatip.io~1claim", "remove /metadata/annotations/floatip.io~1nat", "add /spec/domain/chassis"}},
		{"with a chassis", vmi(`{"x":"y"}`, strings.Replace(masquerade, `"devices"`, `"chassis":{"serial":"1"},"devices"`, 1)), Carried, []string{
			"add /metadata/annotations/floatip.io~1address 192.168.100.50", "add /spec/domain/chassis/asset " + asset}},
		{"with an asset tag of its own", vmi(`{"x":"y"}`, strings.Replace(masquerade, `"devices"`, `"chassis":{"asset":"mine"},"devices"`, 1)), Carried, []string{
			"add /metadata/annotations/floatip.io~1address 192.168.100.50"}},
		{"called again", vmi(`{"floatip.io/address":"192.168.100.50"}`, strings.Replace(masquerade, `"devices"`, `"chassis":{"asset":"floatip=192.168.100.50"},"devices"`, 1)), Carried, nil},
		{"with port ranges", vmi(`{"kubevirt.io/x":"y"}`, portRanges(`{"protocol":"TCP","start":8000,"end":8999}`)), Carried,
			[]string{"add /metadata/annotations/floatip.io~1address 192.168.100.50", "add /spec/domain/chassis"}},
		{"of another VM", strings.Replace(vmi(`{"floatip.io/address":"192.168.100.50"}`, masquerade), "uid-a", "uid-b", 1), Ignored,
			[]string{"remove /metadata/annotations/floatip.io~1address"}},
		{"without a VM", `{"metadata":{"name":"a","annotations":{"floatip.io/address":"192.168.100.50"}},"spec":` + masquerade + `}`, Ignored,
			[]string{"remove /metadata/annotations/floatip.io~1address"}},
		{"of a look-alike owner", strings.Replace(vmi(`{"floatip.io/address":"192.168.100.50"}`, masquerade), "kubevirt.io/v1\",\"kind\":\"VirtualMachine\",\"name\"", "evil.io/v1\",\"kind\":\"VirtualMachine\",\"name\"", 1), Ignored,
			[]string{"remove /metadata/annotations/floatip.io~1address"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			response := w.post(PathVMICreate, review{kind: vmiGVK, object: tc.object})
			if got := response.AuditAnnotations["action"]; got != string(tc.action) {
				t.Errorf("action %s, want %s: %s", got, tc.action, response.AuditAnnotations["reason"])
			}
			if diff := cmp.Diff(tc.want, operations(t, response)); diff != "" {
				t.Errorf("patch (-want +got):\n%s", diff)
			}
			apply(t, tc.object, response)
		})
	}
}

// portRanges is a VM that lists ranges on its interface, as JSON.
func portRanges(list string) string {
	return strings.Replace(masquerade, `"masquerade":{}`, `"masquerade":{},"portRanges":[`+list+`]`, 1)
}

// What floatip cannot translate starts all the same, with a warning and an event; a VM that needs its address says so.
func TestCreateVMIUnnatable(t *testing.T) {
	for _, tc := range []struct{ name, spec, text string }{
		{"bridge", bridge, "no interface with masquerade binding"},
		{"no interface", `{"domain":{"devices":{}}}`, "no interface with masquerade binding"},
		{"no pod interface at all", `{"domain":{"devices":{"autoattachPodInterface":false}},"networks":[]}`, "no interface with masquerade binding"},
		{"passt", strings.Replace(masquerade, `"masquerade":{}`, `"passtBinding":{}`, 1), "no interface with masquerade binding"},
		{"passt as a plugin", strings.Replace(masquerade, `"masquerade":{}`, `"binding":{"name":"passt"}`, 1), "no interface with masquerade binding"},
		{"SR-IOV only", `{"domain":{"devices":{"interfaces":[{"name":"nic","sriov":{}}]}},"networks":[{"name":"nic","multus":{"networkName":"vf"}}]}`,
			"no interface with masquerade binding"},
		{"masquerade on another network", strings.Replace(masquerade, `"pod":{}`, `"multus":{}`, 1), "no interface with masquerade binding"},
		{"port range in other words", portRanges(`{"protocol":"TCP","from":1,"to":9}`), "portRanges[0].start: 0 is no port"},
		{"port range without an end", portRanges(`{"protocol":"TCP","start":1}`), "portRanges[0].end: 0 is no port"},
		{"port range without a protocol", portRanges(`{"start":1,"end":9}`), `portRanges[0].protocol: "" cannot be forwarded`},
		{"port range of SCTP", portRanges(`{"protocol":"UDP","start":1,"end":9},{"protocol":"SCTP","start":1,"end":9}`),
			`portRanges[1].protocol: "SCTP" cannot be forwarded`},
		{"port range backwards", portRanges(`{"protocol":"TCP","start":90,"end":80}`), "portRanges[0].start: 90 is greater than end 80"},
		{"port range below zero", portRanges(`{"protocol":"TCP","start":-1,"end":80}`), "portRanges[0].start: -1 is no port"},
		{"port range too long", portRanges(`{"protocol":"TCP","start":1,"end":65536}`), "portRanges[0].end: 65536 is no port"},
		{"guest network around the address", strings.Replace(masquerade, `"pod":{}`, `"pod":{"vmNetworkCIDR":"192.168.100.0/24"}`, 1), "outside 192.168.100.0/24"},
		{"guest network too small", strings.Replace(masquerade, `"pod":{}`, `"pod":{"vmNetworkCIDR":"10.0.2.0/31"}`, 1), "no room"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := worldWithVM(t, nil)
			response := w.post(PathVMICreate, review{kind: vmiGVK, object: vmi(`{"x":"y"}`, tc.spec)})
			if !response.Allowed || len(response.Patch) > 0 || len(response.Warnings) != 1 || !strings.Contains(response.Warnings[0], tc.text) {
				t.Errorf("%+v, want a warning with %q", response, tc.text)
			}
			if len(w.events) != 1 || !strings.Contains(w.events[0], "vms/a "+EventUnnatable) {
				t.Errorf("events: %q", w.events)
			}
			dry := w.post(PathVMICreate, review{kind: vmiGVK, object: vmi(`{"x":"y"}`, tc.spec), dryRun: true})
			if !dry.Allowed || len(dry.Warnings) != 1 || len(w.events) != 1 {
				t.Errorf("dry run: %+v, events %q", dry, w.events)
			}
			strict := worldWithVM(t, map[string]string{floatip.AnnotationRequire: "true"})
			response = strict.post(PathVMICreate, review{kind: vmiGVK, object: vmi(`{"x":"y"}`, tc.spec)})
			wantRefused(t, response.Result, http.StatusUnprocessableEntity, tc.text, "spec.domain.devices.interfaces")
		})
	}
}

// A namespace that forbids the sidecar: warned of at VM create, told by an event at start, and the pod is not broken.
func TestForbiddenSidecar(t *testing.T) {
	for level, forbidden := range map[string]bool{"": false, "privileged": false, "baseline": true, "restricted": true, "novel": true} {
		t.Run(level, func(t *testing.T) {
			w := worldWithVM(t, nil)
			w.addVMI(masquerade)
			w.labels["vms"]["pod-security.kubernetes.io/enforce"] = level
			forVM := w.post(PathVMCreate, review{kind: vmGVK, object: vm("b", nil)})
			forVMI := w.post(PathVMICreate, review{kind: vmiGVK, object: vmi(`{}`, masquerade)})
			forPod := w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: launcher(`{}`, podSpec)})
			for name, response := range map[string]*admissionv1.AdmissionResponse{"VM": forVM, "VMI": forVMI} {
				if got := len(response.Warnings) == 1 && strings.Contains(response.Warnings[0], "Pod Security level "+level); !response.Allowed || got != forbidden {
					t.Errorf("%s: allowed %v, warnings %q", name, response.Allowed, response.Warnings)
				}
			}
			if got := len(w.events) == 1 && strings.Contains(w.events[0], EventForbidden); got != forbidden {
				t.Errorf("events: %q", w.events)
			}
			if got := len(forPod.Patch) == 0; !forPod.Allowed || got != forbidden {
				t.Errorf("pod: allowed %v, patch %s", forPod.Allowed, forPod.Patch)
			}
		})
	}
}

func TestCreateVMIReservedVolumeName(t *testing.T) {
	w := worldWithVM(t, nil)
	spec := strings.Replace(masquerade, `"networks"`, `"volumes":[{"name":"ok"},{"name":"floatip-nat"}],"networks"`, 1)
	response := w.post(PathVMICreate, review{kind: vmiGVK, object: vmi(`{}`, spec)})
	wantRefused(t, response.Result, http.StatusUnprocessableEntity, "taken by a volume of floatip's sidecar", "spec.volumes[1].name")
}
