package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/yaml"

	"floatip.io/floatip"
)

// BenchmarkAdmission times a whole review, from the bytes of the API server to the bytes of the answer, beside a hook that
// does nothing: decoding the review is most of it.
func BenchmarkAdmission(b *testing.B) {
	w := newWorld(b, testPool(b, "10.0.0.0/8"))
	nothing := &admission.Webhook{Handler: admission.HandlerFunc(func(context.Context, admission.Request) admission.Response {
		return admission.Allowed("")
	})}
	hook := &admission.Webhook{Handler: w.hooks.Handlers()[PathVMCreate]}
	object := largeVM(b)
	for _, bench := range []struct {
		name string
		hook http.Handler
	}{{"nothing", nothing}, {"vm-create", hook}} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				answer := serve(b, bench.hook, review{kind: vmGVK, object: object})
				b.StopTimer()
				release(b, w, answer)
				b.StartTimer()
			}
		})
	}
}

// BenchmarkCommit times the second phase with the flush to disk, for many VMs at once: they share flushes.
func BenchmarkCommit(b *testing.B) {
	w := newWorld(b, testPool(b, "10.0.0.0/8"))
	hooks := w.hooks.Handlers()
	var reviews []review
	for i := range b.N {
		object := vm(fmt.Sprintf("vm-%d", i), nil)
		first := serve(b, &admission.Webhook{Handler: hooks[PathVMCreate]}, review{kind: vmGVK, object: object})
		reviews = append(reviews, review{kind: vmGVK, object: set(b, apply(b, object, first), "metadata.uid", fmt.Sprint(i))})
	}
	commit := &admission.Webhook{Handler: hooks[PathVMCommit]}
	next := make(chan review, len(reviews))
	for _, r := range reviews {
		next <- r
	}
	b.ReportAllocs()
	b.SetParallelism(50)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if answer := serve(b, commit, <-next); !answer.Allowed {
				b.Error(answer.Result)
			}
		}
	})
}

func serve(b *testing.B, hook http.Handler, r review) *admissionv1.AdmissionResponse {
	b.Helper()
	body, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: r.request(),
	})
	if err != nil {
		b.Fatal(err)
	}
	request := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(string(body)))
	request.Header.Set("Content-Type", "application/json")
	recorder := httptest.NewRecorder()
	hook.ServeHTTP(recorder, request)
	var answer admissionv1.AdmissionReview
	if err := json.Unmarshal(recorder.Body.Bytes(), &answer); err != nil {
		b.Fatal(err)
	}
	return answer.Response
}

// release gives back what was promised, so that the ledger stays as small as it was.
func release(b *testing.B, w *world, answer *admissionv1.AdmissionResponse) {
	b.Helper()
	if text := answer.AuditAnnotations["claim"]; text != "" {
		claim, err := floatip.ParseClaim(text)
		if err != nil {
			b.Fatal(err)
		}
		w.ledger.Withdraw(claim)
	}
}

// largeVM is a VM as people write them, with twenty disks.
func largeVM(b *testing.B) string {
	b.Helper()
	raw, err := os.ReadFile("testdata/vm.yaml")
	if err != nil {
		b.Fatal(err)
	}
	object, err := yaml.YAMLToJSON(raw)
	if err != nil {
		b.Fatal(err)
	}
	return string(object)
}
