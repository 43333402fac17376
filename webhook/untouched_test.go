package webhook

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
)

// leaves returns the values of a JSON text by their paths (RFC 6901), each as its very bytes. Below depth 12 what is left
// is one value.
func leaves(t testing.TB, raw json.RawMessage, path string, depth int, into map[string]string) {
	t.Helper()
	var object map[string]json.RawMessage
	var list []json.RawMessage
	switch {
	case depth < 12 && json.Unmarshal(raw, &object) == nil && len(object) > 0:
		for key, value := range object {
			leaves(t, value, path+pointer(key), depth+1, into)
		}
	case depth < 12 && json.Unmarshal(raw, &list) == nil && len(list) > 0:
		for i, value := range list {
			leaves(t, value, fmt.Sprintf("%s/%d", path, i), depth+1, into)
		}
	default:
		var compact bytes.Buffer
		if err := json.Compact(&compact, raw); err != nil {
			t.Fatal(err)
		}
		into[path] = compact.String()
	}
}

// wantUntouched wants every value of object whose path own does not match to be there after the answer, byte for byte, and
// no other. Shift takes out of what was stored, by path, what was inserted into lists.
func wantUntouched(t testing.TB, object string, response *admissionv1.AdmissionResponse, own string,
	shift func(map[string]string) map[string]string,
) {
	t.Helper()
	stored := apply(t, object, response)
	before, after := map[string]string{}, map[string]string{}
	leaves(t, json.RawMessage(object), "", 0, before)
	leaves(t, json.RawMessage(stored), "", 0, after)
	if shift != nil {
		after = shift(after)
	}
	mine := regexp.MustCompile("^(" + own + ")")
	for _, all := range []map[string]string{before, after} {
		maps.DeleteFunc(all, func(path, _ string) bool { return mine.MatchString(path) })
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("what is not floatip's (-sent +stored):\n%s", diff)
	}
}

// strange are fields that no version of floatip knows, with numbers and letters that a decoder might write in another way.
const strange = `"novel":{"a":[1.50,1e3,12345678901234567890,-0.0],"n":null,"e":{},"l":[],"s":"\u00e9\/ö","/~":true}`

// A field that floatip does not know survives every hook byte for byte, whatever else the object is like.
func TestUnknownFieldsSurvive(t *testing.T) {
	const keys = `/metadata/annotations/floatip\.io~1(address|claim|nat)|/metadata/managedFields`
	const vmPair, annotated = `"metadata":{"name":"b","namespace":"vms",` + strange + `%s}`, `,"annotations":{"x":"y"},"managedFields":[{"manager":"m","f":1.0}]`
	nested := strings.Repeat(`{"a":[`, 2000) + `1.50` + strings.Repeat(`]}`, 2000)
	bodies := map[string]string{
		"unknown fields":   `{"apiVersion":"kubevirt.io/v1",` + strange + `,` + fmt.Sprintf(vmPair, annotated) + `,"spec":{` + strange + `,"template":{` + strange + `,"spec":{` + strange + `}}}}`,
		"no annotations":   `{` + fmt.Sprintf(vmPair, "") + `,"spec":{` + strange + `,"template":{}}}`,
		"null annotations": `{` + fmt.Sprintf(vmPair, `,"annotations":null,"managedFields":null`) + `,"spec":null}`,
		"no template":      `{` + fmt.Sprintf(vmPair, annotated) + `,"spec":{` + strange + `}}`,
		"no spec":          `{` + fmt.Sprintf(vmPair, annotated) + `}`,
		"one MiB":          `{` + fmt.Sprintf(vmPair, annotated) + `,"spec":{"template":{"metadata":{"annotations":{"large":"` + strings.Repeat("x", mib) + `"}}}}}`,
		"deeply nested":    `{` + fmt.Sprintf(vmPair, annotated) + `,"spec":{"a":` + nested + `}}`,
		"keys twice":       `{"spec":{"a":1,"a":2.0},` + fmt.Sprintf(vmPair, annotated) + `,"spec":{"b":1.50,"b":2e0}}`,
		"metadata twice":   `{"metadata":{"name":"other"},` + fmt.Sprintf(vmPair, annotated) + `,"spec":{` + strange + `}}`,
	}
	for name, object := range bodies {
		t.Run("VM, "+name, func(t *testing.T) {
			w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
			// The names of annotations that were not there belong to the operation that makes the map.
			own := keys + `|/metadata/annotations$`
			created := w.post(PathVMCreate, review{kind: vmGVK, object: object})
			if created.AuditAnnotations["address"] == "" || len(created.Patch) == 0 {
				t.Fatalf("no address: %+v", created)
			}
			wantUntouched(t, object, created, own, nil)
			stored := set(t, apply(t, object, created), "metadata.uid", "uid-b")
			if commit := w.post(PathVMCommit, review{kind: vmGVK, object: stored}); !commit.Allowed {
				t.Fatal(commit.Result)
			}
			// An edit that drops floatip's keys: they come back, and nothing else changes.
			edited := strings.Replace(object, `"name":"b"`, `"name":"b","uid":"uid-b"`, 1)
			restored := w.post(PathVMUpdate, review{kind: vmGVK, operation: admissionv1.Update, object: edited, old: stored})
			if restored.AuditAnnotations["action"] != string(Restored) {
				t.Fatalf("%+v", restored)
			}
			wantUntouched(t, edited, restored, own, nil)
		})
	}
	hint := `/spec/domain/chassis|/spec/volumes/0/cloudInitNoCloud/userDataBase64$`
	spec := strings.Replace(masquerade, `"devices":{`, strange+`,"devices":{`+strange+`,`, 1)
	spec = strings.Replace(spec, `"masquerade":{}`, `"masquerade":{`+strange+`},`+strange, 1)
	spec = strings.Replace(spec, `"networks"`, strange+`,"large":"`+strings.Repeat("x", mib)+`","deep":`+nested+
		`,"volumes":[`+source("cloudInitNoCloud", field64(mine)+`,`+strange)+`],"networks"`, 1)
	for name, annotations := range map[string]string{"annotations": `{"x":"y"}`, "null annotations": `null`} {
		t.Run("VMI, "+name, func(t *testing.T) {
			w := worldWithVM(t, nil)
			object := strings.Replace(vmi(annotations, spec), `"metadata":{`, strange+`,"metadata":{`+strange+`,`, 1)
			response := w.post(PathVMICreate, review{kind: vmiGVK, object: object})
			if response.AuditAnnotations["hint"] != "user data extended" {
				t.Fatalf("%+v", response.AuditAnnotations)
			}
			wantUntouched(t, object, response, keys+`|/metadata/annotations$|`+hint, nil)
		})
		t.Run("pod, "+name, func(t *testing.T) {
			w := worldWithVM(t, nil)
			w.addVMI(masquerade)
			pod := strings.Replace(podSpec, `{"name":"compute"`, `{`+strange+`,"name":"compute"`, 1)
			pod = strings.Replace(pod, `"containers"`, strange+`,"large":"`+strings.Repeat("x", mib)+`","containers"`, 1)
			object := strings.Replace(launcher(annotations, pod), `"metadata":{`, strange+`,"metadata":{`+strange+`,`, 1)
			response := w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: object})
			if response.AuditAnnotations["action"] != string(Injected) {
				t.Fatalf("%+v", response)
			}
			own := keys + `|/metadata/annotations$|/spec/nodeSelector/pool\.floatip\.io~1provider$`
			wantUntouched(t, object, response, own, withoutSidecar)
		})
	}
}

// withoutSidecar takes out the first init container and all volumes but the first.
func withoutSidecar(stored map[string]string) map[string]string {
	kept := map[string]string{}
	for path, value := range stored {
		switch {
		case strings.HasPrefix(path, "/spec/initContainers/0/"):
		case strings.HasPrefix(path, "/spec/volumes/") && !strings.HasPrefix(path, "/spec/volumes/0/"):
		default:
			kept[strings.Replace(path, "/spec/initContainers/1/", "/spec/initContainers/0/", 1)] = value
		}
	}
	return kept
}

// Whose namespace has gone in the meantime is told that by every hook, and not that floatip is broken.
func TestNamespaceIsGone(t *testing.T) {
	w := worldWithVM(t, nil)
	w.addVMI(masquerade)
	delete(w.labels, "vms")
	for path, r := range map[string]review{
		PathVMCreate:  {kind: vmGVK, object: vm("b", nil)},
		PathVMICreate: {kind: vmiGVK, object: vmi("null", masquerade)},
		PathPodCreate: {kind: podGVK, user: kubevirtController, object: launcher("{}", podSpec)},
	} {
		if response := w.post(path, r); response.Allowed || response.Result.Code != http.StatusNotFound ||
			!strings.Contains(response.Result.Message, `namespaces "vms" not found`) {
			t.Errorf("%s: %+v", path, response.Result)
		}
	}
}

// What is of another type than it should be is refused by every hook with a 4xx that names the field.
func TestMistypedFields(t *testing.T) {
	w := worldWithVM(t, nil)
	for _, tc := range []struct {
		path, object, field string
		review              review
	}{
		{PathVMCreate, `{"metadata":{"annotations":["x"]}}`, "metadata.annotations", review{kind: vmGVK}},
		{PathVMCreate, `{"metadata":{"annotations":{"x":7}}}`, "metadata.annotations", review{kind: vmGVK}},
		{PathVMCreate, `{"metadata":{"name":{}}}`, "metadata.name", review{kind: vmGVK}},
		{PathVMCommit, `{"metadata":{"uid":[]}}`, "metadata.uid", review{kind: vmGVK}},
		{PathVMUpdate, `{"metadata":"x"}`, "metadata", review{kind: vmGVK, operation: admissionv1.Update, old: vm("a", nil)}},
		{PathVMICreate, `{"spec":{"domain":{"devices":{"interfaces":{}}}}}`, "spec.domain.devices.interfaces", review{kind: vmiGVK}},
		{PathVMICreate, vmi(`null`, portRanges(`{"protocol":"TCP","start":"8000","end":8999}`)),
			"spec.domain.devices.interfaces.portRanges.start", review{kind: vmiGVK}},
		{PathVMICreate, vmi(`null`, portRanges(`{"protocol":"TCP","start":1,"end":4294967297}`)),
			"spec.domain.devices.interfaces.portRanges.end", review{kind: vmiGVK}},
		{PathVMICreate, `{"metadata":{"ownerReferences":[{"controller":"yes"}]}}`, "metadata.ownerReferences.controller", review{kind: vmiGVK}},
		{PathPodCreate, `{"metadata":{"labels":7},"spec":{}}`, "metadata.labels", review{kind: podGVK, user: kubevirtController}},
		{PathPodCreate, `{"metadata":{"annotations":7},"spec":{}}`, "metadata.annotations", review{kind: podGVK, user: kubevirtController}},
		{PathPodCreate, `{"spec":{"nodeSelector":["x"]}}`, "spec.nodeSelector", review{kind: podGVK, user: kubevirtController}},
		{PathPoolChange, `{"spec":{"addresses":"x"}}`, "spec.addresses", review{kind: poolGVK}},
	} {
		tc.review.object = tc.object
		response := w.post(tc.path, tc.review)
		if response.Allowed || len(response.Patch) > 0 {
			t.Errorf("%s: %s: allowed", tc.path, tc.object)
			continue
		}
		wantRefused(t, response.Result, http.StatusBadRequest, "floatip: decode object: ", tc.field)
	}
}
