package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"github.com/go-logr/logr"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"

	"floatip.io/floatip/certs"
)

// getCertificate is the callback of tls.Config.
type getCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)

// ownCertificates reports whether floatip makes its certificates itself.
func (c *config) ownCertificates() bool { return c.tlsDir == "" }

// webhookServer serves with floatip's own certificate, or with the one in the folder, which the server reads again when it
// changes (controller-runtime pkg/certwatcher).
func webhookServer(c config, own getCertificate) (ctrlwebhook.Server, error) {
	if !c.ownCertificates() {
		own = nil
	}
	options, err := tlsOptions(own, c.clientCA)
	if err != nil {
		return nil, err
	}
	return ctrlwebhook.NewServer(ctrlwebhook.Options{
		Host: c.webhookHost, Port: c.webhookPort, TLSOpts: options, CertDir: c.tlsDir,
	}), nil
}

// syncEarly makes the certificate before the server listens, so that its first clients meet the gate's "try again" and
// no broken handshake. If the API server does not answer now, the certs controller will try again.
func syncEarly(ctx context.Context, source *certs.Source, log logr.Logger) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := source.Sync(ctx); err != nil {
		log.Error(err, "certificate is not published yet, trying again")
	}
}

// tlsOptions admit TLS 1.3 only, with the certificate that source has at the time of the connection; a nil source leaves
// the choice to the server.
func tlsOptions(source getCertificate, clientCA string) ([]func(*tls.Config), error) {
	options := []func(*tls.Config){func(t *tls.Config) {
		t.MinVersion = tls.VersionTLS13
		t.GetCertificate = source
	}}
	if clientCA == "" {
		return options, nil
	}
	pem, err := os.ReadFile(clientCA)
	if err != nil {
		return nil, fmt.Errorf("--client-ca-file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--client-ca-file %s: no certificate in it", clientCA)
	}
	return append(options, func(t *tls.Config) {
		t.ClientCAs, t.ClientAuth = pool, tls.RequireAndVerifyClientCert
	}), nil
}
