package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Every name and address under which something calls the API server is in its certificate.
func TestAPIServerCertificate(t *testing.T) {
	opts := Options{
		Advertise: netip.MustParseAddr("201.0.0.1"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/12"),
	}
	p, err := newPKI(t.TempDir(), opts)
	if err != nil {
		t.Fatal(err)
	}
	leaf := loadPair(t, p.apiServer)
	for _, name := range []string{
		"127.0.0.1", "201.0.0.1", "10.96.0.1", "localhost", "kubernetes.default.svc",
	} {
		_, err := leaf.Verify(x509.VerifyOptions{
			DNSName: name, Roots: loadPool(t, p.cluster.certFile), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		})
		if err != nil {
			t.Errorf("called as %s: %v", name, err)
		}
	}
}

// A kubelet's certificate carries what the Node authorizer looks for, and only the cluster's authority vouches for it:
// the front proxy's would let its holder claim to be anybody.
func TestClientCertificate(t *testing.T) {
	p, err := newPKI(t.TempDir(), Options{
		Advertise: netip.MustParseAddr("201.0.0.1"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/12"),
	})
	if err != nil {
		t.Fatal(err)
	}
	files, err := p.client("system:node:a", "system:nodes")
	if err != nil {
		t.Fatal(err)
	}
	leaf := loadPair(t, files)
	if diff := cmp.Diff([]string{"system:nodes"}, leaf.Subject.Organization); diff != "" {
		t.Errorf("groups (-want +got):\n%s", diff)
	}
	if got, want := leaf.Subject.CommonName, "system:node:a"; got != want {
		t.Errorf("user %q, want %q", got, want)
	}
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: loadPool(t, p.cluster.certFile), KeyUsages: usage}); err != nil {
		t.Error(err)
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: loadPool(t, p.frontProxy.certFile), KeyUsages: usage})
	if err == nil {
		t.Error("the front proxy's authority vouches for a kubelet")
	}
}

func loadPair(t *testing.T, files pair) *x509.Certificate {
	t.Helper()
	loaded, err := tls.LoadX509KeyPair(files.cert, files.key)
	if err != nil {
		t.Fatal(err)
	}
	return loaded.Leaf
}

func loadPool(t *testing.T, path string) *x509.CertPool {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		t.Fatalf("%s holds no certificate", path)
	}
	return pool
}
