package webhook

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admission/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// maxRequest bounds a review in bytes: two objects of at most 3 MiB each, which the API server takes (k8s.io/apiserver
// pkg/server/config.go, MaxRequestBodyBytes), and what is said about them. controller-runtime has the same limit.
const maxRequest = 7 << 20

// endpoint serves one hook: it reads an AdmissionReview and writes one. Deciding, with the recovery from panics, is
// controller-runtime's; its own way from bytes to request reads each body twice, the first time for the kind alone, which
// is a quarter of the time that a hook takes which does nothing.
type endpoint struct {
	hook *admission.Webhook
}

// newEndpoint serves a handler. Its logger carries nothing of the request: a decision that is logged adds that itself,
// and most are not.
func newEndpoint(h admission.Handler) *endpoint {
	return &endpoint{&admission.Webhook{
		Handler:        h,
		LogConstructor: func(base logr.Logger, _ *admission.Request) logr.Logger { return base },
	}}
}

var reviewType = admissionv1.SchemeGroupVersion.WithKind("AdmissionReview")

// ServeHTTP answers what is no review with a 4xx and a sentence; the API server sends nothing of the kind.
func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if contentType := r.Header.Get("Content-Type"); contentType != "application/json" {
		http.Error(w, fmt.Sprintf("content type %q, want application/json", contentType), http.StatusUnsupportedMediaType)
		return
	}
	body, err := readBody(w, r)
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		http.Error(w, fmt.Sprintf("the request has more than %d bytes", tooLarge.Limit), http.StatusRequestEntityTooLarge)
		return
	}
	if err != nil {
		http.Error(w, "the request ended early", http.StatusBadRequest)
		return
	}
	var review admissionv1.AdmissionReview
	if err := decode(body, &review); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if review.GroupVersionKind() != reviewType || review.Request == nil {
		http.Error(w, fmt.Sprintf("want an %s with a request, have %s", reviewType, review.GroupVersionKind()), http.StatusBadRequest)
		return
	}
	response := e.hook.Handle(r.Context(), admission.Request{AdmissionRequest: *review.Request})
	w.Header().Set("Content-Type", "application/json")
	review.Request, review.Response = nil, &response.AdmissionResponse
	if err := json.NewEncoder(w).Encode(review); err != nil {
		logr.FromContextOrDiscard(r.Context()).V(1).Info("the API server did not take an answer", "error", err.Error())
	}
}

// atOnce is how many bytes of an announced length are made room for before they come: more than most reviews have. Who
// announces a long one and sends nothing shall not take memory from the others.
const atOnce = 64 << 10

// readBody reads at most maxRequest bytes.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	limited := http.MaxBytesReader(w, r.Body, maxRequest)
	defer limited.Close()
	if r.ContentLength > 0 && r.ContentLength <= atOnce {
		body := make([]byte, r.ContentLength)
		_, err := io.ReadFull(limited, body)
		return body, err
	}
	var body bytes.Buffer
	body.Grow(int(min(max(r.ContentLength, 0), atOnce)))
	_, err := body.ReadFrom(limited)
	return body.Bytes(), err
}
