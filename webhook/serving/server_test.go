package serving

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// serve starts a server with hook at "/hook". Stop ends it and returns when it has ended.
func serve(t *testing.T, hook http.HandlerFunc, change ...func(*Server)) (address string, client *tls.Config, stop func()) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"webhook"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	server := New("127.0.0.1:0", config)
	for _, c := range change {
		c(server)
	}
	server.Register("/hook", hook)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, listener) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return listener.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "webhook", NextProtos: []string{"http/1.1"}}, stop
}

// The API server closes an idle connection before this server does: a request that met the closing would be lost.
func TestAPIServerClosesFirst(t *testing.T) {
	if theirs := utilnet.SetTransportDefaults(&http.Transport{}).IdleConnTimeout; theirs <= 0 || idleTimeout <= theirs {
		t.Errorf("idle connections are kept for %s, by the API server for %s", idleTimeout, theirs)
	}
}

// A request that is being answered when the process is told to end is answered, and may still read and write.
func TestShutdownLetsRequestsEnd(t *testing.T) {
	begun, goOn := make(chan struct{}), make(chan struct{})
	var during error
	address, client, stop := serve(t, func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-goOn
		during = r.Context().Err()
		io.WriteString(w, "done")
	})
	answered := make(chan error, 1)
	var body []byte
	go func() {
		answer, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: client}}).Get("https://" + address + "/hook")
		if err == nil {
			body, err = io.ReadAll(answer.Body)
			answer.Body.Close()
		}
		answered <- err
	}()
	<-begun
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	for { // until nobody listens any more
		c, err := net.Dial("tcp", address)
		if err != nil {
			break
		}
		c.Close()
	}
	close(goOn)
	if err := <-answered; err != nil || string(body) != "done" || during != nil {
		t.Errorf("answer %q, %v; the request's context: %v", body, err, during)
	}
	<-stopped
}

// A connection that never had a request is kept as one that had some: the API server opens more in a burst than it needs, and
// takes them for the next one.
func TestConnectionThatWasNotUsed(t *testing.T) {
	const limit = 50 * time.Millisecond
	address, client, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			t.Error(err)
		}
	}, func(s *Server) { s.readTimeout = limit })
	c, err := tls.Dial("tcp", address, client)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answers := bufio.NewReader(c)
	for range 2 { // before the first request and after it
		if err := c.SetReadDeadline(time.Now().Add(4 * limit)); err != nil {
			t.Fatal(err)
		}
		if _, err := answers.Peek(1); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("it was closed: %v", err)
		}
		if err := c.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "POST /hook HTTP/1.1\r\nHost: webhook\r\nContent-Length: 2\r\n\r\n{}"); err != nil {
			t.Fatal(err)
		}
		answer, err := http.ReadResponse(answers, nil)
		if err != nil || answer.StatusCode != http.StatusOK {
			t.Fatalf("%+v, %v", answer, err)
		}
	}
}

// Who sends half of a handshake or of a request does not keep its connection for longer than a request may take, and who sends
// nothing not for longer than one without requests is kept.
func TestSlowRequestEnds(t *testing.T) {
	if server := New("", &tls.Config{}); server.readTimeout <= 30*time.Second {
		t.Errorf("a request may take %s, the API server gives a hook up to 30 s", server.readTimeout)
	}
	hook := func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err == nil {
			t.Error("the body was read to an end that did not come")
		}
	}
	const limit = 100 * time.Millisecond
	slow, client, _ := serve(t, hook, func(s *Server) { s.readTimeout = limit })
	idle, clientOfIdle, _ := serve(t, hook, func(s *Server) { s.idleTimeout = limit })
	secure := func(address string, config *tls.Config) func() (net.Conn, error) {
		return func() (net.Conn, error) { return tls.Dial("tcp", address, config) }
	}
	plain := func() (net.Conn, error) { return net.Dial("tcp", slow) }
	for _, tc := range []struct {
		dial func() (net.Conn, error)
		sent string
	}{
		{plain, ""},
		{plain, "\x16\x03\x01\x01"}, // a handshake's first bytes (RFC 8446 section 5.1)
		{secure(slow, client), "POST /hook HT"},
		{secure(slow, client), "POST /hook HTTP/1.1\r\nHost: webhook\r\nContent-Length: 9\r\n\r\n{"},
		{secure(idle, clientOfIdle), ""},
	} {
		c, err := tc.dial()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, tc.sent); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); err != nil { // until the server closes it
			t.Errorf("after %q: %v", tc.sent, err)
		}
		c.Close()
	}
}

// TLS 1.3 only, HTTP/1.1 only, and no tickets for sessions that nobody resumes.
func TestConnections(t *testing.T) {
	address, client, _ := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) })
	old := client.Clone()
	old.MaxVersion = tls.VersionTLS12
	if c, err := tls.Dial("tcp", address, old); err == nil {
		c.Close()
		t.Error("TLS 1.2 is served")
	}
	resuming := client.Clone()
	resuming.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	resuming.NextProtos = []string{"h2", "http/1.1"}
	for range 2 {
		transport := &http.Transport{TLSClientConfig: resuming, DisableKeepAlives: true, ForceAttemptHTTP2: true}
		answer, err := (&http.Client{Transport: transport}).Get("https://" + address + "/hook")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || string(body) != "HTTP/1.1" || answer.TLS.DidResume {
			t.Errorf("%s, resumed %v (%v)", body, answer.TLS.DidResume, err)
		}
	}
}
