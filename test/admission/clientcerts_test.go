package admission

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"testing"

	"floatip.io/floatip/test/rig/process"
)

// direct returns a client that calls floatip-webhook itself, with the client certificate in the files; "" for none.
func (w *world) direct(t *testing.T, cert, key string) *http.Client {
	t.Helper()
	config := &tls.Config{InsecureSkipVerify: true}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil } // asked for or not
	}
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: config, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return process.Dialer(w.netns)(ctx, network, fmt.Sprintf("127.0.0.1:%d", webhookPort))
		},
	}}
}

// clientCertificates: with --client-ca-file the hooks answer the API server, and nobody else who reaches the port.
func clientCertificates(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	n.bound(n.create("vm", nil)) // the API server presents its certificate
	_, cert, key := w.cluster.WebhookClient()
	admin := w.cluster.RESTConfig()
	for _, tc := range []struct {
		name, cert, key string
		served          bool
	}{
		{"the API server's", cert, key, true},
		{"none", "", "", false},
		{"the administrator's, of the cluster's authority", admin.CertFile, admin.KeyFile, false},
	} {
		answer, err := w.direct(t, tc.cert, tc.key).Post("https://floatip/mutate-vm-create", "application/json", bytes.NewReader([]byte("{}")))
		if err == nil {
			answer.Body.Close()
		}
		if served := err == nil && answer.StatusCode == http.StatusBadRequest; served != tc.served { // {} is no review
			t.Errorf("client certificate %s: served %v (%v)", tc.name, served, err)
		}
	}
}
