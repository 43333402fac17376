package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/yaml"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

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
// kept connections, in a process of its own as the webhook is. Each round is one of the hook that does nothing, the mutating, and the validating one with its flush
// to disk; the figures are medians over the rounds, the ratios those of each round by itself. What a flush costs differs
// more between machines than all the rest, so the committing phase is also held against the hook that does nothing plus
// the two barriers of a bbolt transaction, as raw writes; for one client, also against a hook that does nothing but these
// two while its client waits: a processor that slept during a flush is slower after it.
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
				if clients > 1 {
					continue // they would flush one after the other
				}
				flushing := median(s.flushing(requests))
				note("flushing-µs", flushing)
				note("commit/flushing", commit/flushing)
			}
			b.ReportMetric(0, "ns/op")
			for name, values := range figures {
				b.ReportMetric(median(values), name)
			}
		})
	}
}

// BenchmarkHundred creates a hundred VMs at once, both phases one after the other, over connections as the API server keeps
// them, in a process of its own: 25 for each hook, so that most of a burst opens a connection. Beside it stand two hooks that do nothing, served in the
// same way, and two that do nothing else than that the second one has its client wait for the two barriers of a bbolt transaction,
// as raw writes that all share who have come: about what any hook adds whose answer is on the disk. Added is what floatip takes
// beyond those that do nothing, added-by-flush what the others take beyond them, and inside the time in floatip's handlers alone,
// for both phases of one VM. A burst begins when all connections of the one before are there.
func BenchmarkHundred(b *testing.B) {
	const burst = 100
	s := newStand(b, 25)
	object := largeVM(b)
	answer := s.post(PathVMCreate, s.creating(object).body)
	figures := map[string][]float64{}
	note := func(name string, took []float64) {
		for q, at := range map[string]float64{"p50": .5, "p99": .99} {
			figures[name+"-"+q+"-ms"] = append(figures[name+"-"+q+"-ms"], quantile(took, at))
		}
	}
	for b.Loop() {
		for _, do := range []struct {
			name string
			both func(vm creation)
		}{
			{"nothing", func(vm creation) {
				s.post(pathNothing, vm.body)
				s.post(pathNothing2, s.stored(vm, answer)) // what the client does in between is the same
			}},
			{"flush", func(vm creation) {
				s.post(pathNothing, vm.body)
				s.post(pathSharing, s.stored(vm, answer))
			}},
			{"both", func(vm creation) { s.commit(vm, s.post(PathVMCreate, vm.body)) }},
		} {
			vms := make([]creation, burst)
			for i := range vms {
				vms[i] = s.creating(object)
			}
			s.connected()
			runtime.GC()
			before := s.opened.Load()
			took := make([]float64, burst)
			var group sync.WaitGroup
			for i := range took {
				group.Go(func() {
					start := time.Now()
					do.both(vms[i])
					took[i] = time.Since(start).Seconds() * 1e3
				})
			}
			group.Wait()
			note(do.name, took)
			figures[do.name+"-connections"] = append(figures[do.name+"-connections"], float64(s.opened.Load()-before))
		}
		note("inside", s.phases(burst))
		for _, q := range []string{"p50", "p99"} {
			for name, of := range map[string]string{"added-": "both-", "added-by-flush-": "flush-"} {
				all, nothing := figures[of+q+"-ms"], figures["nothing-"+q+"-ms"]
				figures[name+q+"-ms"] = append(figures[name+q+"-ms"], all[len(all)-1]-nothing[len(nothing)-1])
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	for name, values := range figures {
		b.ReportMetric(median(values), name)
	}
}

// flushing times the hook that does nothing but the two barriers.
func (s *stand) flushing(requests int) []float64 {
	body := bodyOf(s.b, review{kind: vmGVK, object: largeVM(s.b)})
	took, _ := s.send(1, pathFlushing, slices.Repeat([][]byte{body}, requests))
	return took
}

// creation is a VM that is created, and the mutating request for it.
type creation struct {
	number int
	body   []byte
}

func (c creation) name() string { return fmt.Sprintf("vm-%d", c.number) }

// creating gives the object a name of its own: two tries to create one VM would share one promise.
func (s *stand) creating(object string) creation {
	s.created++
	c := creation{number: s.created}
	c.body = bodyOf(s.b, review{kind: vmGVK, object: set(s.b, object, "metadata.name", c.name())})
	return c
}

// stored returns the validating request that follows a mutating answer.
func (s *stand) stored(c creation, answer []byte) []byte {
	var first admissionv1.AdmissionReview
	if err := json.Unmarshal(answer, &first); err != nil || !first.Response.Allowed {
		s.b.Errorf("%v: %s", err, answer)
		return nil
	}
	keys := map[string]string{
		floatip.AnnotationAddress: first.Response.AuditAnnotations["address"], floatip.AnnotationClaim: first.Response.AuditAnnotations["claim"],
	}
	stored := strings.Replace(vm(c.name(), keys), `"name"`, fmt.Sprintf(`"uid":"uid-%d","name"`, c.number), 1)
	return bodyOf(s.b, review{kind: vmGVK, object: stored})
}

func (s *stand) commit(c creation, answer []byte) {
	second := s.post(PathVMCommit, s.stored(c, answer))
	if !bytes.Contains(second, []byte(`"allowed":true`)) {
		s.b.Errorf("%s", second)
	}
}

// rawFlush is a file of its own on the ledger's disk.
type rawFlush struct {
	b    *testing.B
	file *os.File
	page [4096]byte

	flushing sync.Mutex
	mu       sync.Mutex
	waiting  chan struct{} // closed when those are answered who wait for the next flush; nil if nobody does
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
		f.twice()
		took = append(took, float64(time.Since(start))/float64(time.Microsecond))
	}
	return median(took)
}

// shared returns when barriers have passed that began after the call. All who wait for the same ones share them.
func (f *rawFlush) shared() {
	f.mu.Lock()
	answered := f.waiting
	if answered != nil {
		f.mu.Unlock()
		<-answered
		return
	}
	answered = make(chan struct{})
	f.waiting = answered
	f.mu.Unlock()
	f.flushing.Lock()
	defer f.flushing.Unlock()
	f.mu.Lock()
	f.waiting = nil
	f.mu.Unlock()
	f.twice()
	close(answered)
}

func (f *rawFlush) twice() {
	for at := range int64(2) {
		_, err := f.file.WriteAt(f.page[:], at*int64(len(f.page)))
		if err == nil {
			err = syscall.Fdatasync(int(f.file.Fd()))
		}
		if err != nil {
			f.b.Error(err)
		}
	}
}

// timings of one round, in microseconds.
type timings struct{ nothing, mutate, commit []float64 }

func (s *stand) round(clients, requests int) timings {
	s.b.Helper()
	object := largeVM(s.b)
	vms, create := make([]creation, requests), make([][]byte, requests)
	for i := range create {
		vms[i] = s.creating(object)
		create[i] = vms[i].body
	}
	var t timings
	t.nothing, _ = s.send(clients, pathNothing, create)
	var answers []*admissionv1.AdmissionResponse
	t.mutate, answers = s.send(clients, PathVMCreate, create)
	first := answers[0].AuditAnnotations
	template := set(s.b, set(s.b, apply(s.b, object, answers[0]), "metadata.name", "vm-0"), "metadata.uid", "uid-0")
	commit := make([][]byte, requests)
	for i, answer := range answers {
		stored := strings.NewReplacer(
			first["address"], answer.AuditAnnotations["address"], first["claim"], answer.AuditAnnotations["claim"],
			"vm-0", vms[i].name(), "uid-0", fmt.Sprintf("uid-%d", vms[i].number),
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
	request, err := http.NewRequestWithContext(s.trace(), http.MethodPost, s.url+path, bytes.NewReader(body))
	if err != nil {
		s.b.Error(err)
		return nil
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := s.clients[path].Do(request)
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

// trace counts the connections that are opened, which go on when the request is answered on another.
func (s *stand) trace() context.Context {
	return httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
		ConnectStart:     func(string, string) { s.opening.Add(1); s.opened.Add(1) },
		TLSHandshakeDone: func(tls.ConnectionState, error) { s.opening.Add(-1) },
	})
}

// connected returns when no connection is being opened, also in the cleanup, when the benchmark's own context has ended.
func (s *stand) connected() {
	err := wait.PollUntilContextTimeout(context.Background(), time.Millisecond, time.Minute, true,
		func(context.Context) (bool, error) { return s.opening.Load() == 0, nil })
	if err != nil {
		s.b.Fatalf("%d connections are being opened: %v", s.opening.Load(), err)
	}
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
