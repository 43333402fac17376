package webhook

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"floatip.io/floatip"
	"floatip.io/floatip/webhook/kubevirt"
)

// What KubeVirt 1.8.4 says about an instance whose launcher the API server refused.
const (
	refusedForSidecar = `failed to create pod for vmi vms/a, it needs a privileged namespace to run: pods "virt-launcher-a-x" is forbidden: ` +
		`violates PodSecurity "baseline:latest": non-default capabilities (container "floatip-sidecar" must not include "NET_ADMIN" in ` +
		`securityContext.capabilities.add)`
	refusedForOther = `violates PodSecurity "baseline:latest": hostPath volumes (volume "x"), privileged (container "compute" must not set ` +
		`securityContext.privileged=true)`
)

// A level that no label shows is learned when the API server refuses a launcher: the next one is made without the sidecar.
func TestRefusedByTheAPIServer(t *testing.T) {
	for _, tc := range []struct {
		name, kind, message string // of the instance's condition
		marked              string // level on the pod in which the guest runs
		label               string
		require             bool
		level               string // of the pod that is made without the sidecar; it has one if this is empty
	}{
		{"refused", "Synchronized", refusedForSidecar, "", "", false, "baseline"},
		{"refused by a level of another version", "Synchronized", strings.Replace(refusedForSidecar, "baseline:latest", "restricted:v1.36", 1), "", "", false, "restricted"},
		{"refused for something else", "Synchronized", refusedForOther, "", "", false, ""},
		{"another condition", "Ready", refusedForSidecar, "", "", false, ""},
		{"privileged now", "Synchronized", refusedForSidecar, "", "privileged", false, ""},
		{"required", "Synchronized", refusedForSidecar, "", "", true, ""},
		{"the target of a migration", "", "", "baseline", "", false, "baseline"},
		{"the target of a migration, privileged now", "", "", "baseline", "privileged", false, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			annotations := map[string]string{}
			if tc.require {
				annotations[floatip.AnnotationRequire] = "true"
			}
			w := worldWithVM(t, annotations)
			w.addVMI(masquerade)
			w.vmis["vms/a"].Name = "a"
			w.vmis["vms/a"].Status.Conditions = []kubevirt.Condition{{Type: tc.kind, Status: metav1.ConditionFalse, Message: tc.message}}
			if tc.marked != "" {
				w.refused = map[string]string{"a": tc.marked}
			}
			if tc.label != "" {
				w.labels["vms"][labelEnforce] = tc.label
			}
			pod := launcher(`{"floatip.io/address":"192.168.100.50","floatip.io/pod-security":"forged"}`, podSpec)
			dry := w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: pod, dryRun: true})
			if !dry.Allowed || len(w.events) > 0 {
				t.Errorf("dry run: %+v, events %q", dry, w.events)
			}
			response := w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: pod})
			after := apply(t, pod, response)
			if got := annotation(t, after, floatip.AnnotationPodSecurity); got != tc.level {
				t.Errorf("the pod says %q, want %q", got, tc.level)
			}
			if injected := strings.Contains(after, floatip.SidecarContainer); injected != (tc.level == "") {
				t.Errorf("the pod has the sidecar: %t", injected)
			}
			if told := len(w.events) == 1 && strings.Contains(w.events[0], "vms/a "+EventForbidden) && strings.Contains(w.events[0], "level "+tc.level); told != (tc.level != "") {
				t.Errorf("events: %q", w.events)
			}
		})
	}
}

// Where a launcher has no sidecar for such a level, people are told when they create another VM.
func TestNewVMWhereALauncherWasRefused(t *testing.T) {
	for label, want := range map[string]string{"": "level baseline in namespaces without a label", "privileged": ""} {
		w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
		w.refused = map[string]string{"a": "baseline"}
		if label != "" {
			w.labels["vms"][labelEnforce] = label
		}
		response := w.post(PathVMCreate, review{kind: vmGVK, object: vm("b", nil)})
		if told := strings.Join(response.Warnings, "; "); !response.Allowed || (told != "") != (want != "") || !strings.Contains(told, want) {
			t.Errorf("label %q: warnings %q, want %q", label, told, want)
		}
	}
}
