package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// mounted is a Secret as the kubelet mounts it: files that link into a folder that is replaced as a whole
// (k8s.io/kubernetes pkg/volume/util/atomic_writer.go).
type mounted struct {
	t       *testing.T
	dir     string
	ca      *x509.Certificate
	key     *ecdsa.PrivateKey
	version int64
}

func mount(t *testing.T) *mounted {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m := &mounted{t: t, dir: t.TempDir(), key: key}
	m.renewAuthority()
	m.issue()
	for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(m.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// renewAuthority makes a new certificate for the same key, as cert-manager does with rotationPolicy Never.
func (m *mounted) renewAuthority() {
	m.t.Helper()
	m.ca = m.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "floatip webhook authority"}, SerialNumber: big.NewInt(time.Now().UnixNano()), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}, nil, &m.key.PublicKey)
}

func (m *mounted) sign(template, parent *x509.Certificate, public *ecdsa.PublicKey) *x509.Certificate {
	m.t.Helper()
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, m.key)
	if err == nil {
		var cert *x509.Certificate
		if cert, err = x509.ParseCertificate(der); err == nil {
			return cert
		}
	}
	m.t.Fatal(err)
	return nil
}

// issue writes a certificate with a fresh key: first a folder, then the link to it; then the folder before goes.
func (m *mounted) issue() {
	m.t.Helper()
	m.version++
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	leaf := m.sign(&x509.Certificate{
		SerialNumber: big.NewInt(m.version), DNSNames: []string{"floatip-webhook.floatip-system.svc"}, NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, m.ca, &key.PublicKey)
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		m.t.Fatal(err)
	}
	version := fmt.Sprintf("..%d", m.version)
	if err := os.Mkdir(filepath.Join(m.dir, version), 0o755); err != nil {
		m.t.Fatal(err)
	}
	for name, block := range map[string]pem.Block{
		"tls.crt": {Type: "CERTIFICATE", Bytes: leaf.Raw}, "tls.key": {Type: "EC PRIVATE KEY", Bytes: der},
		"ca.crt": {Type: "CERTIFICATE", Bytes: m.ca.Raw},
	} {
		if err := os.WriteFile(filepath.Join(m.dir, version, name), pem.EncodeToMemory(&block), 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
	link := filepath.Join(m.dir, "..data_tmp")
	if err := os.Symlink(version, link); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(link, filepath.Join(m.dir, "..data")); err != nil {
		m.t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(m.dir, fmt.Sprintf("..%d", m.version-1))); err != nil {
		m.t.Fatal(err)
	}
}

// call makes one request with a handshake of its own, as an API server with the authority as its caBundle does, and
// returns the serial number of the certificate that was served.
func (m *mounted) call(address string, ca *x509.Certificate) (int64, error) {
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots, ServerName: "floatip-webhook.floatip-system.svc"},
		DisableKeepAlives: true,
	}}
	answer, err := client.Get("https://" + address + "/hook")
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil || answer.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s, %v", answer.Status, err)
	}
	return answer.TLS.PeerCertificates[0].SerialNumber.Int64(), nil
}

// cert-manager's certificate is renewed again and again while requests run, and its authority too: none fails, and each
// new certificate is taken into use.
func TestCertificateOfCertManager(t *testing.T) {
	m := mount(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := defaults()
	c.webhookHost, c.webhookPort, c.tlsDir = "127.0.0.1", listener.Addr().(*net.TCPAddr).Port, m.dir
	address := listener.Addr().String()
	listener.Close()
	server, err := webhookServer(c, func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		t.Error("floatip's own certificate was asked for")
		return nil, os.ErrInvalid
	})
	if err != nil {
		t.Fatal(err)
	}
	server.Register("/hook", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- server.Start(ctx) }()
	for server.StartedChecker()(nil) != nil {
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	for round := range 4 {
		before := m.ca
		if round == 2 {
			m.renewAuthority()
		}
		m.issue()
		for {
			// Until cainjector has written the new caBundle the API server trusts the old one, and the other way round.
			for _, ca := range []*x509.Certificate{before, m.ca} {
				serial, err := m.call(address, ca)
				if err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				if serial == m.version {
					before = nil
				}
			}
			if before == nil {
				break
			}
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
