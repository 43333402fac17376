package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"

	"floatip.io/floatip/certs"
	"floatip.io/floatip/webhook/serving"
)

// getCertificate is the callback of tls.Config.
type getCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)

// ownCertificates reports whether floatip makes its certificates itself.
func (c *config) ownCertificates() bool { return c.tlsDir == "" }

// webhookServer serves with floatip's own certificate, or with the one in the folder, which is read again when it changes
// (controller-runtime pkg/certwatcher).
func webhookServer(c config, own getCertificate) (ctrlwebhook.Server, error) {
	var watcher *certwatcher.CertWatcher
	if !c.ownCertificates() {
		var err error
		watcher, err = certwatcher.New(filepath.Join(c.tlsDir, "tls.crt"), filepath.Join(c.tlsDir, "tls.key"))
		if err != nil {
			return nil, fmt.Errorf("--tls-dir: %w", err)
		}
		own = watcher.GetCertificate
	}
	config, err := tlsConfig(own, c.clientCA)
	if err != nil {
		return nil, err
	}
	server := serving.New(net.JoinHostPort(c.webhookHost, strconv.Itoa(c.webhookPort)), config)
	if watcher == nil {
		return server, nil
	}
	return watchingServer{server, watcher}, nil
}

// watchingServer also watches the files of its certificate.
type watchingServer struct {
	*serving.Server
	watcher *certwatcher.CertWatcher
}

func (s watchingServer) Start(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.watcher.Start(ctx) })
	group.Go(func() error { return s.Server.Start(ctx) })
	return group.Wait()
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

// tlsConfig serves the certificate that source has at the time of the connection, and admits only clients with a
// certificate of the authority in the file clientCA, if there is one.
func tlsConfig(source getCertificate, clientCA string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: source}
	if clientCA == "" {
		return config, nil
	}
	pem, err := os.ReadFile(clientCA)
	if err != nil {
		return nil, fmt.Errorf("--client-ca-file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--client-ca-file %s: no certificate in it", clientCA)
	}
	config.ClientCAs, config.ClientAuth = pool, tls.RequireAndVerifyClientCert
	return config, nil
}
