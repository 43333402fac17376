package webhook

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"floatip.io/floatip/webhook/serving"
)

// pathNothing is a hook of controller-runtime that allows everything: the limit that the others are held against. The
// second one has connections of its own.
const (
	pathNothing  = "/nothing"
	pathNothing2 = "/nothing-else"
	pathFlushing = "/flushing"
	pathSharing  = "/sharing"
	pathInside   = "/inside" // answers with the time in the hooks
)

func nothing() http.Handler {
	return &admission.Webhook{Handler: admission.HandlerFunc(func(context.Context, admission.Request) admission.Response {
		return admission.Allowed("")
	})}
}

// serverEnv makes the test binary the webhook server of a benchmark, until its standard input ends.
const serverEnv = "FLOATIP_WEBHOOK_TEST_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(serverEnv) == "" {
		os.Exit(m.Run())
	}
	flag.Parse()
	var once sync.Once
	var err error
	result := testing.Benchmark(func(b *testing.B) {
		once.Do(func() { err = serveStand(b) })
	})
	if err == nil && result.N == 0 { // as testing.Benchmark says that b has failed
		err = errors.New("a flush failed, or the ledger is not right at the end")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// greeting is the line that the server prints when it serves.
type greeting struct {
	URL         string
	Certificate []byte // DER
}

// gcPercent is the garbage collector's as manifests/webhook/deployment.yaml sets it.
const gcPercent = 400

// serveStand is the server: a process of its own, as the webhook is to the API server. In one process a flush would hold one of
// the runtime's processors, and take it from the client too.
func serveStand(b *testing.B) error {
	log.SetLogger(logr.Discard())
	debug.SetGCPercent(gcPercent)
	w := newWorld(b, testPool(b, "10.0.0.0/8"))
	pair := servingPair(b)
	server := serving.New("127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	flush, inside, allow := newFlush(b), &stopwatch{}, nothing()
	server.Register(pathNothing, nothing())
	server.Register(pathNothing2, nothing())
	server.Register(pathFlushing, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		flush.twice()
		allow.ServeHTTP(w, r)
	}))
	server.Register(pathSharing, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		flush.shared()
		allow.ServeHTTP(w, r)
	}))
	server.Register(pathInside, inside)
	w.hooks.Register(timed{server, inside}, w.gate)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, listener) }()
	err = json.NewEncoder(os.Stdout).Encode(greeting{"https://" + listener.Addr().String(), pair.Certificate[0]})
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	cancel()
	return errors.Join(err, <-ended)
}

// stand is a webhook server and its client, the API server, which keeps connections for each hook by itself
// (k8s.io/apiserver pkg/util/webhook/client.go, HookClient).
type stand struct {
	b       *testing.B
	url     string
	clients map[string]*http.Client // by path
	created int
	opening atomic.Int64 // connections that are being opened
	opened  atomic.Int64 // and all that were begun
}

// newStand starts the server, and has the client's garbage collected as the server's.
func newStand(b *testing.B, clients int) *stand {
	before := debug.SetGCPercent(gcPercent)
	b.Cleanup(func() { debug.SetGCPercent(before) })
	server := exec.Command(os.Args[0])
	server.Env = append(os.Environ(), serverEnv+"=1")
	server.Stderr = os.Stderr
	in, err := server.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := server.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := server.Start(); err != nil {
		b.Fatal(err)
	}
	s := &stand{b: b, clients: map[string]*http.Client{}}
	b.Cleanup(func() {
		s.connected()
		for _, c := range s.clients {
			c.CloseIdleConnections()
		}
		in.Close()
		if err := server.Wait(); err != nil {
			b.Errorf("the server: %v", err)
		}
	})
	line, err := bufio.NewReader(out).ReadBytes('\n')
	var hello greeting
	if err := errors.Join(err, json.Unmarshal(line, &hello)); err != nil {
		b.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(hello.Certificate)
	if err != nil {
		b.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	s.url = hello.URL
	for _, path := range []string{pathNothing, pathNothing2, pathFlushing, pathSharing, PathVMCreate, PathVMCommit, pathInside} {
		// As the API server calls webhooks: HTTP/1.1 (same file).
		s.clients[path] = &http.Client{Transport: &http.Transport{
			MaxIdleConnsPerHost: clients,
			TLSClientConfig:     &tls.Config{RootCAs: roots, ServerName: "webhook", NextProtos: []string{"http/1.1"}},
		}}
	}
	return s
}

// phases asks the server for the time in the hooks, of both phases of the last count creates.
func (s *stand) phases(count int) []float64 {
	var sums []float64
	if err := json.Unmarshal(s.post(pathInside, fmt.Append(nil, count)), &sums); err != nil {
		s.b.Fatal(err)
	}
	return sums
}

// stopwatch has the time in the hooks, from the first byte of the body that is read to the last of the answer that is
// written, in milliseconds and in the order of the answers.
type stopwatch struct {
	mu    sync.Mutex
	times map[string][]float64 // by path
}

// timed registers hooks with a stopwatch.
type timed struct {
	Server
	watch *stopwatch
}

func (t timed) Register(path string, hook http.Handler) {
	t.Server.Register(path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		hook.ServeHTTP(w, r)
		took := time.Since(start).Seconds() * 1e3
		t.watch.mu.Lock()
		defer t.watch.mu.Unlock()
		if t.watch.times == nil {
			t.watch.times = map[string][]float64{}
		}
		t.watch.times[path] = append(t.watch.times[path], took)
	}))
}

// ServeHTTP answers with what phases returns for the number in the request.
func (s *stopwatch) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	count, err := strconv.Atoi(string(text))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_ = json.NewEncoder(w).Encode(s.phases(count))
}

// phases returns the sums of both phases of the last count creates: the slowest of one phase with the slowest of the other,
// which no create can exceed.
func (s *stopwatch) phases(count int) []float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	sums := make([]float64, count)
	for _, path := range []string{PathVMCreate, PathVMCommit} {
		times := s.times[path]
		for i, t := range slices.Sorted(slices.Values(times[len(times)-count:])) {
			sums[i] += t
		}
	}
	return sums
}

// servingPair is a certificate as package certs makes it; httptest's own has an RSA key.
func servingPair(b *testing.B) tls.Certificate {
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
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
