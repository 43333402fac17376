package webhook

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

func TestTemplateAnnotations(t *testing.T) {
	for _, tc := range []struct {
		raw  string
		want map[string]string
	}{
		{`{"spec":{"template":{"spec":{},"metadata":{"labels":{},"annotations":{"a":"b"}}}},"metadata":{"annotations":{"c":"d"}}}`, map[string]string{"a": "b"}},
		{`{"spec":{"template":{"metadata":{"\u0061nnotations":{"a":"b"}}}}}`, map[string]string{"a": "b"}},
		{`{"spec":{"template":{"metadata":{"annotations":{"a":"b"}}},"template":{"metadata":{"annotations":{"a":"c"}}}}}`, map[string]string{"a": "c"}},
		{`{"spec":{"template":{"metadata":{"annotations":{"a":1}}}}}`, nil},
		{`{"spec":{"template":{"metadata":{"annotations":null}}}}`, nil},
		{`{"spec":{"template":{"metadata":null}}}`, nil}, {`{"spec":{"template":null}}`, nil}, {`{"spec":null}`, nil}, {`{"spec":[]}`, nil}, {`{}`, nil},
	} {
		if diff := cmp.Diff(tc.want, templateAnnotations([]byte(tc.raw))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.raw, diff)
		}
	}
}

// templated is a VM with one annotation in its template.
func templated(name string, annotations map[string]string, key, value string) string {
	object := decoded(vm(name, annotations))
	object["spec"].(map[string]any)["template"] = map[string]any{"metadata": map[string]any{"annotations": map[string]string{key: value}}}
	raw, _ := json.Marshal(object)
	return string(raw)
}

func decoded(object string) (v map[string]any) {
	if err := json.Unmarshal([]byte(object), &v); err != nil {
		panic(err)
	}
	return v
}

// The template's floatip.io/enabled counts as the VM's own: either opts out, and what cannot be read is refused.
func TestTemplateOptsOut(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	forged := map[string]string{floatip.AnnotationAddress: "192.168.100.50", floatip.AnnotationClaim: "x"}
	for _, tc := range []struct {
		name   string
		object string
		action Action
		warns  int
	}{
		{"template", templated("a", nil, floatip.LabelEnabled, "false"), OptedOut, 0},
		{"template, with forged keys", templated("a", forged, floatip.LabelEnabled, "false"), OptedOut, 0},
		{"template, against the VM", templated("a", map[string]string{floatip.LabelEnabled: "true"}, floatip.LabelEnabled, "false"), OptedOut, 0},
		{"VM, against the template", templated("a", map[string]string{floatip.LabelEnabled: "false"}, floatip.LabelEnabled, "true"), OptedOut, 0},
		{"neither", templated("a", nil, floatip.LabelEnabled, "true"), Reserved, 0},
		{"a wish at the wrong place", templated("b", nil, floatip.AnnotationPool, "provider"), Reserved, 1},
	} {
		response := w.post(PathVMCreate, review{kind: vmGVK, object: tc.object})
		if got := response.AuditAnnotations["action"]; got != string(tc.action) || len(response.Warnings) != tc.warns {
			t.Errorf("%s: %s with warnings %q, want %s", tc.name, got, response.Warnings, tc.action)
		}
		if after := apply(t, tc.object, response); tc.action == OptedOut && annotation(t, after, floatip.AnnotationAddress)+annotation(t, after, floatip.AnnotationClaim) != "" {
			t.Errorf("%s: %s", tc.name, after)
		}
	}
	response := w.post(PathVMCreate, review{kind: vmGVK, object: templated("a", nil, floatip.LabelEnabled, "no")})
	wantRefused(t, response.Result, http.StatusUnprocessableEntity, `supported values: "true", "false"`, "spec.template.metadata.annotations[floatip.io/enabled]")
}

// A VM that holds an address and opts out later keeps it, and is told what that means. Its instances and pods carry
// nothing, whatever is forged.
func TestOptedOutLater(t *testing.T) {
	w := worldWithVM(t, nil)
	held := func(o string) string { return set(t, o, "metadata.uid", "uid-a") }
	for _, tc := range []struct {
		name, old, after, text string
	}{
		{"by the template", vm("a", nil), templated("a", nil, floatip.LabelEnabled, "false"), "runs without 192.168.100.50 from its next start on"},
		{"by the VM", vm("a", nil), vm("a", map[string]string{floatip.LabelEnabled: "false"}), "the VM keeps 192.168.100.50 until it is deleted"},
		{"back again", templated("a", nil, floatip.LabelEnabled, "false"), vm("a", nil), ""},
	} {
		response := w.post(PathVMUpdate, review{operation: admissionv1.Update, kind: vmGVK, old: held(tc.old), object: held(tc.after)})
		told := strings.Join(response.Warnings, "; ")
		if !response.Allowed || !strings.Contains(told, tc.text) {
			t.Errorf("%s: allowed %v, warnings %q, want %q", tc.name, response.Allowed, told, tc.text)
		}
	}
	forged := fmt.Sprintf(`{%q:"false",%q:"192.168.100.50",%q:"{}"}`, floatip.LabelEnabled, floatip.AnnotationAddress, floatip.AnnotationNAT)
	response := w.post(PathVMICreate, review{kind: vmiGVK, object: vmi(forged, masquerade)})
	if after := apply(t, vmi(forged, masquerade), response); annotation(t, after, floatip.AnnotationAddress)+annotation(t, after, floatip.AnnotationNAT) != "" {
		t.Errorf("the instance: %s", after)
	}
	w.addVMI(masquerade)
	w.vmis["vms/a"].Annotations = map[string]string{floatip.LabelEnabled: "false"}
	pod := launcher(forged, podSpec)
	response = w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: pod})
	if got := operations(t, response); len(got) != 1 || got[0] != "remove /metadata/annotations/floatip.io~1nat" {
		t.Errorf("the pod: %q", got)
	}
	// An edit of the instance that runs takes nothing from the pod that it migrates to.
	w.vmis["vms/a"].Annotations[floatip.AnnotationAddress] = "192.168.100.50"
	response = w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: pod})
	if got := response.AuditAnnotations["action"]; got != string(Injected) {
		t.Errorf("the target of a migration: %s", got)
	}
	if lines := w.ledger.ByOwner("uid-a"); len(lines) != 1 || lines[0].State != ipam.Bound {
		t.Errorf("the ledger has %+v", lines)
	}
}
