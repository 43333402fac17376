package webhook

import (
	"net/http"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"floatip.io/floatip/ipam"
)

// FuzzHooks gives every hook any object: nothing panics, a refusal is a 4xx unless floatip's own reading of the cluster
// failed, and a patch can be applied.
func FuzzHooks(f *testing.F) {
	for _, object := range []string{
		vm("a", nil), vm("a", map[string]string{"floatip.io/request": "192.168.100.50", "floatip.io/pool": "provider"}),
		`{"metadata":{"name":"a","annotations":{"floatip.io/claim":"00000000000000000000000000000000","floatip.io/address":"::1"}}}`,
		vmiWith(source("cloudInitNoCloud", field64(mine))), vmiWith(source("cloudInitConfigDrive", `"userData":"#!/bin/sh"`)),
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
		if code < 400 || code >= 500 && path != PathPodCreate {
			t.Errorf("%s: refused with %d: %s", path, code, response.Result.Message)
		}
		if code >= 500 && code != http.StatusInternalServerError {
			t.Errorf("%s: %d", path, code)
		}
		return
	}
	if len(response.Patch) == 0 {
		return
	}
	patch, err := jsonpatch.DecodePatch(response.Patch)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := patch.Apply([]byte(object)); err != nil {
		t.Errorf("%s: %v: %s on %s", path, err, response.Patch, object)
	}
}
