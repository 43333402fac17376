package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// certificate returns a self-signed one that serves and authenticates.
func certificate(t *testing.T) tls.Certificate {
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
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// handshake connects client to a server, and returns what either side says against it.
func handshake(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	here, there := net.Pipe()
	defer here.Close()
	served := make(chan error, 1)
	go func() {
		defer there.Close()
		c := tls.Server(there, server)
		err := c.HandshakeContext(t.Context())
		if err == nil {
			_, err = c.Write([]byte("x")) // with TLS 1.3 a client learns only now that its certificate was refused
		}
		served <- err
	}()
	c := tls.Client(here, client)
	_, err := c.Read(make([]byte, 1))
	return errors.Join(err, <-served)
}

func TestTLSConfig(t *testing.T) {
	serving, known, stranger := certificate(t), certificate(t), certificate(t)
	roots := x509.NewCertPool()
	roots.AddCert(serving.Leaf)
	clientCA := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(clientCA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: known.Certificate[0]}), 0o600); err != nil {
		t.Fatal(err)
	}
	source := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &serving, nil }
	for _, tc := range []struct {
		name     string
		clientCA string
		client   *tls.Config
		admitted bool
	}{
		{"TLS 1.3", "", &tls.Config{}, true},
		{"TLS 1.2", "", &tls.Config{MaxVersion: tls.VersionTLS12}, false},
		{"client certificate of the authority", clientCA, &tls.Config{Certificates: []tls.Certificate{known}}, true},
		{"client certificate of a stranger", clientCA, &tls.Config{Certificates: []tls.Certificate{stranger}}, false},
		{"no client certificate", clientCA, &tls.Config{}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server, err := tlsConfig(source, tc.clientCA)
			if err != nil {
				t.Fatal(err)
			}
			tc.client.RootCAs, tc.client.ServerName = roots, "webhook"
			if err := handshake(t, server, tc.client); (err == nil) != tc.admitted {
				t.Errorf("admitted: %v, want %v", err, tc.admitted)
			}
		})
	}
	for name, file := range map[string]string{"no file": "/nonexistent", "no certificate": os.DevNull} {
		if _, err := tlsConfig(source, file); err == nil {
			t.Errorf("--client-ca-file with %s is accepted", name)
		}
	}
}
