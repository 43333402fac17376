package webhook

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"floatip.io/floatip/ipam"
)

// FuzzHooks gives every hook any object: nothing panics, a refusal is a 4xx unless floatip's own reading of the cluster
// failed, and a patch can be applied.
func FuzzHooks(f *testing.F) {
	for _, object := range []string{
		`{` + strange + `,"metadata":{"name":"b",` + strange + `,"annotations":{"x":"y"},"annotations":{"z":"y"}},"spec":{` + strange + `}}`,
		`{"metadata":{"name":"b","annotations":null,"managedFields":[]},"spec":{"template":null}}`,
		`{"metadata":{"name":"b","annotations":{"floatip.io/address":null,"floatip.io/claim":""}},"spec":{"template":{"metadata":null}}}`,
		`{"metadata":{"name":"b"},"spec":{"template":{"metadata":{"annotations":{"floatip.io/enabled":false}}}}}`,
		`{"metadata":{"name":"b"},"spec":` + strings.Repeat(`{"a":[`, 200) + `1` + strings.Repeat(`]}`, 200) + `}`,
		aLauncher,
		vm("a", nil), vm("a", map[string]string{"floatip.io/request": "192.168.100.50", "floatip.io/pool": "provider"}),
		`{"metadata":{"name":"a","annotations":{"floatip.io/claim":"00000000000000000000000000000000","floatip.io/address":"::1"}}}`,
		vmiWith(source("cloudInitNoCloud", field64(mine))), vmiWith(source("cloudInitConfigDrive", `"userData":"#!/bin/sh"`)),
		vmi(`{"x":"y"}`, portRanges(`{"protocol":"UDP","start":1,"end":65535},{"protocol":"TCP","start":9,"end":8}`)),
		vmi(`{"x":"y"}`, masquerade), vmi(`null`, bridge), launcher(`{"floatip.io/nat":"{}"}`, podSpec),
		poolJSON("a", `{"addresses":["192.168.100.0/24","2001:db8::/64","192.168.100.0/33"],"exclude":["192.168.100.7"]}`),
		`{}`, `null`, `[]`, `"x"`, `{"metadata":null,"spec":null}`, `{"metadata":{"annotations":[]}}`, `{`,
	} {
		f.Add(object, object, false)
	}
	w := worldWithVM(f, nil)
	w.ledger.SetPools([]ipam.Pool{testPool(f, "192.168.100.50-192.168.100.59", "10.0.0.0/8")})
	w.addVMI(masquerade)
	f.Fuzz(func(t *testing.T, object, old string, dryRun bool) {
		for path, handler := range w.hooks.Handlers() {
			for _, operation := range []admissionv1.Operation{admissionv1.Create, admissionv1.Update} {
				r := review{kind: vmGVK, operation: operation, user: kubevirtController, dryRun: dryRun}.request()
				r.Object, r.OldObject = runtime.RawExtension{Raw: []byte(object)}, runtime.RawExtension{Raw: []byte(old)}
				response := handler.Handle(t.Context(), admission.Request{AdmissionRequest: *r})
				checkAnswer(t, path, object, response)
			}
		}
	})
}

func checkAnswer(t *testing.T, path, object string, response admission.Response) {
	t.Helper()
	if !response.Allowed {
		code := response.Result.Code
		if code < 400 || code >= 500 {
			t.Errorf("%s: refused with %d: %s", path, code, response.Result.Message)
		}
		return
	}
	if response.AuditAnnotations["action"] == "" || response.AuditAnnotations["reason"] == "" {
		t.Errorf("%s: the audit log would not say what was decided, and why: %v", path, response.AuditAnnotations)
	}
	// An object that is no JSON comes with no review: the skimming of what is not needed relies on it.
	if len(response.Patch) == 0 || !json.Valid([]byte(object)) {
		return
	}
	patch, err := jsonpatch.DecodePatch(response.Patch)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := patch.Apply([]byte(object)); err != nil {
		t.Errorf("%s: %v: %s on %s", path, err, response.Patch, object)
	}
	for _, op := range patch {
		at, err := op.Path()
		if err != nil || !ownPaths[path].MatchString(at) {
			t.Errorf("%s: touches %q (%v), which is not floatip's", path, at, err)
		}
		if makesMap.MatchString(at) && !absent(t, object, strings.Split(at[1:], "/")) {
			t.Errorf("%s: replaces %s, which is there: %s", path, at, object)
		}
	}
}

// ownPaths is what the patch of a hook may touch: all else survives by the meaning of a JSON patch.
var ownPaths = map[string]*regexp.Regexp{
	PathVMCreate:   regexp.MustCompile(`^/metadata/(annotations(/floatip\.io~1(address|claim))?|managedFields(/-)?)$`),
	PathVMUpdate:   regexp.MustCompile(`^/metadata/(annotations(/floatip\.io~1(address|claim))?|managedFields(/-)?)$`),
	PathVMCommit:   regexp.MustCompile(`^$`),
	PathPoolChange: regexp.MustCompile(`^$`),
	PathVMICreate: regexp.MustCompile(`^/metadata/annotations(/floatip\.io~1(address|claim|nat))?$` +
		`|^/spec/domain/chassis(/asset)?$|^/spec/volumes/\d+/cloudInit(NoCloud|ConfigDrive)/userData(Base64)?$`),
	PathPodCreate: regexp.MustCompile(`^/metadata/annotations(/floatip\.io~1(address|nat))?$` +
		`|^/spec/(initContainers(/0)?|volumes(/-)?|nodeSelector(/pool\.floatip\.io~1provider)?)$`),
}

// makesMap are paths of maps and lists, which may be made and never replaced.
var makesMap = regexp.MustCompile(`/(annotations|managedFields|chassis|initContainers|volumes|nodeSelector)$`)

// absent reports whether there is nothing at the path, or nothing in it.
func absent(t *testing.T, object string, path []string) bool {
	t.Helper()
	switch v := get(t, object, path...).(type) {
	case nil:
		return true
	case map[string]any:
		return len(v) == 0
	case []any:
		return len(v) == 0
	}
	return false
}

// FuzzReviews gives the endpoint of every hook any bytes: what is a review is answered under its UID, what is none with a
// 4xx and a sentence, and the connection never just ends.
func FuzzReviews(f *testing.F) {
	bodies := []string{``, `{`, `null`, `[]`, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`,
		`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","object":null}}`,
		`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","uid":"v","dryRun":1}}`,
		`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","operation":"DELETE","name":"provider"}}`}
	for _, r := range []review{
		{kind: vmGVK, object: vm("a", nil)}, {kind: vmGVK, object: vm("b", map[string]string{"floatip.io/request": "192.168.100.55"})},
		{kind: vmGVK, operation: admissionv1.Update, object: vm("a", map[string]string{"floatip.io/pool": "x"}), old: vm("a", nil)},
		{kind: vmiGVK, object: vmi(`{"x":"y"}`, masquerade)}, {kind: podGVK, user: kubevirtController, object: launcher(`{}`, podSpec)},
		{kind: vmGVK, object: `{"metadata":{"name":"a"},"metadata":{"annotations":{"floatip.io/enabled":"no"}}}`},
		{kind: vmGVK, object: `{"metadata":{"annotations":{"floatip.io/request":"x"}}}`, dryRun: true},
	} {
		raw, err := json.Marshal(admissionv1.AdmissionReview{
			TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: r.request(),
		})
		if err != nil {
			f.Fatal(err)
		}
		bodies = append(bodies, string(raw))
	}
	for _, body := range bodies {
		f.Add(body)
	}
	w := worldWithVM(f, nil)
	w.addVMI(masquerade)
	f.Fuzz(func(t *testing.T, body string) {
		for path, handler := range w.hooks.Handlers() {
			request := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
			request.Header.Set("Content-Type", "application/json")
			recorder := httptest.NewRecorder()
			newEndpoint(handler).ServeHTTP(recorder, request)
			if code := recorder.Code; code != http.StatusOK {
				if code < 400 || code >= 500 || recorder.Body.Len() == 0 {
					t.Errorf("%s: %d %q", path, code, recorder.Body)
				}
				continue
			}
			var asked, answered admissionv1.AdmissionReview
			if err := json.Unmarshal([]byte(body), &asked); err != nil {
				t.Fatalf("%s: answered what is no review: %v", path, err)
			}
			if err := json.Unmarshal(recorder.Body.Bytes(), &answered); err != nil {
				t.Fatalf("%s: %v: %s", path, err, recorder.Body)
			}
			if answered.Response == nil || answered.Request != nil || answered.Kind != "AdmissionReview" {
				t.Fatalf("%s: %s", path, recorder.Body)
			}
			if !answered.Response.Allowed && answered.Response.Result.Message == "" {
				t.Errorf("%s: refused without a word: %s", path, recorder.Body)
			}
		}
	})
}
