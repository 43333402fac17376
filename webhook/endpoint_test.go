package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"floatip.io/floatip"
)

// send posts bytes to a hook, and returns the HTTP status and the body.
func (w *world) send(path, contentType string, body io.Reader) (int, string) {
	w.t.Helper()
	answer, err := w.server.Client().Post(w.server.URL+path, contentType, body)
	if err != nil {
		w.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

// chunked hides the length of a body, as a client may.
type chunked struct{ io.Reader }

// What is no review is refused with a sentence by every hook, and takes no more memory than a review may.
func TestNoReview(t *testing.T) {
	const apiVersion = `"apiVersion":"admission.k8s.io/v1"`
	large := strings.NewReader(strings.Repeat(" ", maxRequest+1))
	endless := chunked{io.LimitReader(zeros{}, 1<<40)}
	w := worldWithVM(t, nil)
	for path := range w.hooks.Handlers() {
		for _, tc := range []struct {
			name, contentType string
			body              io.Reader
			code              int
			text              string
		}{
			{"nothing", "application/json", strings.NewReader(""), http.StatusBadRequest, "unexpected end of JSON input"},
			{"no JSON", "application/json", strings.NewReader("hello"), http.StatusBadRequest, "invalid character 'h'"},
			{"cut off", "application/json", strings.NewReader(`{"kind":`), http.StatusBadRequest, "unexpected end of JSON input"},
			{"another kind", "application/json", strings.NewReader(`{` + apiVersion + `,"kind":"Status"}`), http.StatusBadRequest, "Kind=Status"},
			{"another version", "application/json", strings.NewReader(`{"apiVersion":"admission.k8s.io/v2","kind":"AdmissionReview","request":{}}`),
				http.StatusBadRequest, "admission.k8s.io/v2"},
			{"no request", "application/json", strings.NewReader(`{` + apiVersion + `,"kind":"AdmissionReview"}`), http.StatusBadRequest, "with a request"},
			{"another type", "text/plain", strings.NewReader(`{}`), http.StatusUnsupportedMediaType, `"text/plain"`},
			{"too large", "application/json", large, http.StatusRequestEntityTooLarge, "more than 7340032 bytes"},
			{"endless", "application/json", endless, http.StatusRequestEntityTooLarge, "more than 7340032 bytes"},
		} {
			if s, ok := tc.body.(*strings.Reader); ok {
				s.Seek(0, io.SeekStart)
			}
			code, text := w.send(path, tc.contentType, tc.body)
			if code != tc.code || !strings.Contains(text, tc.text) {
				t.Errorf("%s, %s: %d %q, want %d and %q", path, tc.name, code, text, tc.code, tc.text)
			}
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// Who announces a large review and sends little costs little.
func TestAnnouncedReview(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const requests = 8
	for range requests {
		request := httptest.NewRequest(http.MethodPost, PathVMCreate, strings.NewReader("{"))
		request.ContentLength = maxRequest
		if body, err := readBody(httptest.NewRecorder(), request); string(body) != "{" {
			t.Errorf("%d bytes, %v", len(body), err)
		}
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / requests; each > 1<<20 {
		t.Errorf("%d bytes are made room for, for one that came", each)
	}
}

// The largest review that an API server sends is answered: old and new object of a mebibyte each, twice.
func TestLargeReview(t *testing.T) {
	w := worldWithVM(t, nil)
	object := strings.Replace(vm("a", map[string]string{"x": "y"}), `"spec":{`, `"spec":{"x":"`+strings.Repeat("x", 3*mib)+`",`, 1)
	response := w.post(PathVMUpdate, review{operation: admissionv1.Update, kind: vmGVK, object: object, old: object})
	if !response.Allowed {
		t.Errorf("refused: %v", response.Result)
	}
}

// mistaken is a cluster that makes a hook panic.
type mistaken struct{ Cluster }

func (mistaken) NamespaceLabels(context.Context, string) (map[string]string, error) {
	panic("a mistake")
}

// A mistake of floatip's is answered under the request's UID, in words that tell the user what to do, and no more.
func TestPanicIsAnswered(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	w.hooks.Cluster = mistaken{w}
	response := w.post(PathVMCreate, review{kind: vmGVK, object: vm("a", nil)})
	wantRefusedText(t, response.Result, http.StatusInternalServerError, "floatip could not decide; its log has the cause under request "+string(response.UID))
	if strings.Contains(response.Result.Message, "mistake") || response.AuditAnnotations["action"] != string(Failed) {
		t.Errorf("%+v", response)
	}
	w.hooks.Cluster = w
	if response := w.post(PathVMCreate, review{kind: vmGVK, object: vm("a", nil)}); !response.Allowed {
		t.Errorf("after the mistake: %+v", response.Result)
	}
}

// A field that a later API server adds to the review itself does not disturb.
func TestReviewOfALaterVersion(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	body, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request:  review{kind: vmGVK, object: vm("a", nil)}.request(),
	})
	if err != nil {
		t.Fatal(err)
	}
	body = bytes.Replace(body, []byte(`"request":{`), []byte(`"novel":[1],"request":{"Object":{},"UID":"other","novel":{"a":1},`), 1)
	code, text := w.send(PathVMCreate, "application/json", bytes.NewReader(body))
	if code != http.StatusOK || !strings.Contains(text, `"allowed":true`) || !strings.Contains(text, `"address":"192.168.100.50"`) || strings.Contains(text, "other") {
		t.Errorf("%d %s", code, text)
	}
	if line, ok := w.ledger.Lookup(mustAddr("192.168.100.50")); !ok || line.Owner.Name != "a" {
		t.Errorf("%s: %+v", floatip.AnnotationAddress, line)
	}
}
