package admission

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"sync"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	registrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip/test/rig/process"
)

// extraPort is where the tests' own admission webhooks are served.
const extraPort = 9446

// extraWebhooks serves admission webhooks of the tests, each at a path of its own.
type extraWebhooks struct {
	bundle []byte // PEM

	mu    sync.Mutex
	hooks map[string]func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse
}

func (w *world) startExtra(context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "extra"}, IPAddresses: []net.IP{net.ParseIP(advertise)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	w.extra = &extraWebhooks{
		bundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		hooks:  map[string]func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse{},
	}
	var listener net.Listener
	err = process.InNetNS(w.netns, func() (err error) {
		listener, err = tls.Listen("tcp", fmt.Sprintf("%s:%d", advertise, extraPort), &tls.Config{
			Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		})
		return err
	})
	if err != nil {
		return err
	}
	go http.Serve(listener, w.extra)
	return nil
}

func (e *extraWebhooks) ServeHTTP(answer http.ResponseWriter, request *http.Request) {
	e.mu.Lock()
	hook := e.hooks[request.URL.Path]
	e.mu.Unlock()
	var review admissionv1.AdmissionReview
	if hook == nil || json.NewDecoder(request.Body).Decode(&review) != nil || review.Request == nil {
		http.Error(answer, "no such hook", http.StatusNotFound)
		return
	}
	review.Response = hook(review.Request)
	review.Response.UID = review.Request.UID
	review.Request = nil
	json.NewEncoder(answer).Encode(review)
}

func allowed() *admissionv1.AdmissionResponse { return &admissionv1.AdmissionResponse{Allowed: true} }

// patched allows with JSON patch operations.
func patched(operations string) *admissionv1.AdmissionResponse {
	kind := admissionv1.PatchTypeJSONPatch
	return &admissionv1.AdmissionResponse{Allowed: true, Patch: []byte(operations), PatchType: &kind}
}

func denied(message string) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: message,
	}}
}

// mutating has hook called for every new VM of the tenant's namespace, after floatip's webhooks, until the test ends.
func (n *tenant) mutating(hook func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse) {
	n.t.Helper()
	name := "zz-" + n.ns // configurations are called in the order of their names
	n.serve(name, hook, &registrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Webhooks: []registrationv1.MutatingWebhook{{
			Name: name + ".example.com", ClientConfig: n.extraConfig(name), Rules: newVMs, NamespaceSelector: n.only(),
			SideEffects: new(registrationv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
		}},
	})
}

// validating has hook called for every new VM of the tenant's namespace, in parallel with floatip's.
func (n *tenant) validating(hook func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse) {
	n.t.Helper()
	name := "zz-" + n.ns
	n.serve(name, hook, &registrationv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Webhooks: []registrationv1.ValidatingWebhook{{
			Name: name + ".example.com", ClientConfig: n.extraConfig(name), Rules: newVMs, NamespaceSelector: n.only(),
			SideEffects: new(registrationv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
		}},
	})
}

var newVMs = []registrationv1.RuleWithOperations{{
	Operations: []registrationv1.OperationType{registrationv1.Create},
	Rule:       registrationv1.Rule{APIGroups: []string{"kubevirt.io"}, APIVersions: []string{"v1"}, Resources: []string{"virtualmachines"}},
}}

func (n *tenant) only() *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": n.ns}}
}

func (n *tenant) extraConfig(name string) registrationv1.WebhookClientConfig {
	return registrationv1.WebhookClientConfig{
		URL: new(fmt.Sprintf("https://%s:%d/%s", advertise, extraPort, name)), CABundle: n.extra.bundle,
	}
}

// serve registers the hook and waits until the API server calls it. Until then, and for that call, it only allows.
func (n *tenant) serve(
	name string, hook func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse, configuration client.Object,
) {
	n.t.Helper()
	called := make(chan struct{})
	first := sync.OnceFunc(func() { close(called) })
	n.extra.set("/"+name, func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		first()
		return allowed()
	})
	if err := n.admin.Create(n.ctx, configuration); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := n.admin.Delete(context.Background(), configuration); err != nil {
			n.t.Error(err)
		}
	})
	n.wait("the API server to call "+name, func(ctx context.Context) error {
		probe := n.newVM("probe", map[string]string{"floatip.io/enabled": "false"})
		if err := n.admin.Create(ctx, probe, client.DryRunAll); err != nil {
			return err
		}
		select {
		case <-called:
			return nil
		default:
			return fmt.Errorf("it does not yet")
		}
	})
	n.extra.set("/"+name, hook)
}

func (e *extraWebhooks) set(path string, hook func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hooks[path] = hook
}
