package webhook

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/yaml"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

// pathNothing is a hook of controller-runtime that allows everything: the limit that the others are held against.
const pathNothing = "/nothing"

func nothing() http.Handler {
	return &admission.Webhook{Handler: admission.HandlerFunc(func(context.Context, admission.Request) admission.Response {
		return admission.Allowed("")
	})}
}

// BenchmarkGarbage counts what one request costs, from the bytes of the API server to the bytes of the answer, without
// the network. The limit is 150 allocations.
func BenchmarkGarbage(b *testing.B) {
	w := newWorld(b, testPool(b, "10.0.0.0/8"))
	object := largeVM(b)
	stored, refused := w.createVM(vm("a", nil), "uid-a")
	if refused != nil {
		b.Fatal(refused)
	}
	owner := holdingOf(w.ledger.ByOwner("uid-a"))
	if _, err := w.ledger.Bind(b.Context(), owner.claim, w.ledger.ByOwner("uid-a")[0].Owner, ipam.Cause{}); err != nil {
		b.Fatal(err)
	}
	w.vms["vms/a/uid-a"] = map[string]string{}
	w.addVMI(masquerade)
	handlers := w.hooks.Handlers()
	for _, bench := range []struct {
		name string
		hook http.Handler
		body []byte
	}{
		{"nothing", nothing(), bodyOf(b, review{kind: vmGVK, object: object})},
		{"vm-create", newEndpoint(handlers[PathVMCreate]), bodyOf(b, review{kind: vmGVK, object: object})},
		{"vm-update", newEndpoint(handlers[PathVMUpdate]), bodyOf(b, review{kind: vmGVK, operation: admissionv1.Update, object: stored, old: stored})},
		{"vmi-create", newEndpoint(handlers[PathVMICreate]), bodyOf(b, review{kind: vmiGVK, object: vmi(`{}`, masquerade)})},
		{"pod-create", newEndpoint(handlers[PathPodCreate]), bodyOf(b, review{kind: podGVK, user: kubevirtController, object: launcher(`{}`, podSpec)})},
	} {
		b.Run(bench.name, func(b *testing.B) {
			request := httptest.NewRequest(http.MethodPost, "/", nil)
			request.Header.Set("Content-Type", "application/json")
			body := bytes.NewReader(bench.body)
			request.Body, request.ContentLength = io.NopCloser(body), int64(len(bench.body))
			b.ReportAllocs()
			for b.Loop() {
				body.Reset(bench.body)
				bench.hook.ServeHTTP(discard{}, request)
			}
		})
	}
}

// discard is a ResponseWriter that keeps nothing.
type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}

// BenchmarkAdmission times both phases of creating a VM as the API server sees them: HTTP/1.1 over TLS on loopback, on
// kept connections. Each round is one of the hook that does nothing, the mutating, and the validating one with its flush
// to disk; the figures are medians over the rounds, the ratios those of each round by itself. What a flush costs differs
// more between machines than all the rest, so the committing phase is also held against the hook that does nothing plus
// the two barriers of a bbolt transaction, as raw writes.
func BenchmarkAdmission(b *testing.B) {
	for _, clients := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			s := newStand(b, clients)
			flush := newFlush(b)
			requests := clients * max(4, 64/clients)
			figures := map[string][]float64{}
			note := func(name string, value float64) { figures[name] = append(figures[name], value) }
			s.round(clients, requests) // connections
			for b.Loop() {
				r := s.round(clients, requests)
				nothing, mutate, commit, barriers := median(r.nothing), median(r.mutate), median(r.commit), flush.barriers()
				note("nothing-µs", nothing)
				note("mutate-µs", mutate)
				note("commit-µs", commit)
				note("barriers-µs", barriers)
				note("mutate/nothing", mutate/nothing)
				note("commit/nothing", commit/nothing)
				note("commit/(nothing+barriers)", commit/(nothing+barriers))
			}
			b.ReportMetric(0, "ns/op")
			for name, values := range figures {
				b.ReportMetric(median(values), name)
			}
		})
	}
}

// BenchmarkHundred creates a hundred VMs at once, both phases one after the other, over connections as the API server keeps
// them: 25, so that most of a burst begins with a handshake. Beside it stand two calls of the hook that does nothing.
func BenchmarkHundred(b *testing.B) {
	const burst = 100
	s := newStand(b, 25)
	object := largeVM(b)
	create := bodyOf(b, review{kind: vmGVK, object: object})
	figures := map[string][]float64{}
	for b.Loop() {
		for _, do := range []struct {
			name string
			both func()
		}{
			{"nothing", func() { s.post(pathNothing, create); s.post(pathNothing, create) }},
			{"both", func() { s.commitAfter(s.post(PathVMCreate, create)) }},
		} {
			runtime.GC()
			took := make([]float64, burst)
			var group sync.WaitGroup
			for i := range took {
				group.Go(func() {
					start := time.Now()
					do.both()
					took[i] = time.Since(start).Seconds() * 1e3
				})
			}
			group.Wait()
			for name, q := range map[string]float64{"p50": .5, "p99": .99} {
				key := do.name + "-" + name + "-ms"
				figures[key] = append(figures[key], quantile(took, q))
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	for name, values := range figures {
		b.ReportMetric(median(values), name)
	}
}

// commitAfter sends the validating request that follows a mutating answer.
func (s *stand) commitAfter(answer []byte) {
	var first admissionv1.AdmissionReview
	if err := json.Unmarshal(answer, &first); err != nil || !first.Response.Allowed {
		s.b.Errorf("%v: %s", err, answer)
		return
	}
	i := s.names.Add(1)
	keys := map[string]string{
		floatip.AnnotationAddress: first.Response.AuditAnnotations["address"], floatip.AnnotationClaim: first.Response.AuditAnnotations["claim"],
	}
	stored := strings.Replace(vm(fmt.Sprintf("vm-%d", i), keys), `"name"`, fmt.Sprintf(`"uid":"uid-%d","name"`, i), 1)
	second := s.post(PathVMCommit, bodyOf(s.b, review{kind: vmGVK, object: stored}))
	if !bytes.Contains(second, []byte(`"allowed":true`)) {
		s.b.Errorf("%s", second)
	}
}

// rawFlush is a file of its own on the ledger's disk.
type rawFlush struct {
	b    *testing.B
	file *os.File
	page [4096]byte
}

func newFlush(b *testing.B) *rawFlush {
	file, err := os.Create(filepath.Join(b.TempDir(), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { file.Close() })
	return &rawFlush{b: b, file: file}
}

// barriers returns the median time in microseconds of what a bbolt transaction does at least: data, flush, meta page, flush.
func (f *rawFlush) barriers() float64 {
	var took []float64
	for range 9 {
		start := time.Now()
		for at := range int64(2) {
			_, err := f.file.WriteAt(f.page[:], at*int64(len(f.page)))
			if err == nil {
				err = syscall.Fdatasync(int(f.file.Fd()))
			}
			if err != nil {
				f.b.Fatal(err)
			}
		}
		took = append(took, float64(time.Since(start))/float64(time.Microsecond))
	}
	return median(took)
}

// stand is a webhook server and its client.
type stand struct {
	*world
	b       *testing.B
	server  *httptest.Server
	client  *http.Client
	created int
	names   atomic.Int64
}

func newStand(b *testing.B, clients int) *stand {
	w := newWorld(b, testPool(b, "10.0.0.0/8"))
	mux := http.NewServeMux()
	mux.Handle(pathNothing, nothing())
	w.hooks.Register(muxServer{mux}, w.gate)
	server := httptest.NewUnstartedServer(mux)
	pair, roots := servingPair(b)
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}}
	server.StartTLS()
	b.Cleanup(server.Close)
	transport := server.Client().Transport.(*http.Transport).Clone()
	// As the API server calls webhooks (k8s.io/apiserver pkg/util/webhook/client.go).
	transport.ForceAttemptHTTP2 = false
	transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	transport.MaxIdleConnsPerHost = clients
	transport.TLSClientConfig = &tls.Config{RootCAs: roots, ServerName: "webhook"}
	return &stand{world: w, b: b, server: server, client: &http.Client{Transport: transport}}
}

// servingPair is a certificate as package certs makes it; httptest's own has an RSA key.
func servingPair(b *testing.B) (tls.Certificate, *x509.CertPool) {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{
		DNSNames: []string{"webhook"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		SerialNumber: big.NewInt(1), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		b.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		b.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, roots
}

// timings of one round, in microseconds.
type timings struct{ nothing, mutate, commit []float64 }

func (s *stand) round(clients, requests int) timings {
	s.b.Helper()
	object := largeVM(s.b)
	create := make([][]byte, requests)
	for i := range create {
		create[i] = bodyOf(s.b, review{kind: vmGVK, object: object})
	}
	var t timings
	t.nothing, _ = s.send(clients, pathNothing, create)
	var answers []*admissionv1.AdmissionResponse
	t.mutate, answers = s.send(clients, PathVMCreate, create)
	first := answers[0].AuditAnnotations
	template := set(s.b, set(s.b, apply(s.b, object, answers[0]), "metadata.name", "vm-0"), "metadata.uid", "uid-0")
	commit := make([][]byte, requests)
	for i, answer := range answers {
		s.created++
		stored := strings.NewReplacer(
			first["address"], answer.AuditAnnotations["address"], first["claim"], answer.AuditAnnotations["claim"],
			"vm-0", fmt.Sprintf("vm-%d", s.created), "uid-0", fmt.Sprintf("uid-%d", s.created),
		).Replace(template)
		commit[i] = bodyOf(s.b, review{kind: vmGVK, object: stored})
	}
	t.commit, _ = s.send(clients, PathVMCommit, commit)
	return t
}

// send posts bodies, so many at a time.
func (s *stand) send(clients int, path string, bodies [][]byte) ([]float64, []*admissionv1.AdmissionResponse) {
	took, answers := make([]float64, len(bodies)), make([][]byte, len(bodies))
	next := make(chan int, len(bodies))
	for i := range bodies {
		next <- i
	}
	close(next)
	runtime.GC() // what was made before is not this path's to collect
	var group sync.WaitGroup
	for range clients {
		group.Go(func() {
			for i := range next {
				start := time.Now()
				answers[i] = s.post(path, bodies[i])
				took[i] = float64(time.Since(start)) / float64(time.Microsecond)
			}
		})
	}
	group.Wait()
	decoded := make([]*admissionv1.AdmissionResponse, len(bodies))
	for i, raw := range answers {
		var answer admissionv1.AdmissionReview
		if err := json.Unmarshal(raw, &answer); err != nil || !answer.Response.Allowed {
			s.b.Fatalf("%s: %v: %s", path, err, raw)
		}
		decoded[i] = answer.Response
	}
	return took, decoded
}

func (s *stand) post(path string, body []byte) []byte {
	answer, err := s.client.Post(s.server.URL+path, "application/json", bytes.NewReader(body))
	if err != nil {
		s.b.Error(err)
		return nil
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err != nil {
		s.b.Error(err)
	}
	return raw
}

func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func median(values []float64) float64 { return quantile(values, .5) }

func bodyOf(b *testing.B, r review) []byte {
	b.Helper()
	body, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: r.request(),
	})
	if err != nil {
		b.Fatal(err)
	}
	return body
}

// largeVM is a VM as people write them, with twenty disks: 3 KiB.
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
