package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// validFor outlives any rig and any clock that is off by hours.
const (
	validFor   = 30 * 24 * time.Hour
	validSince = time.Hour
)

// authority signs certificates. Its own stands in the file certFile.
type authority struct {
	cert     *x509.Certificate
	key      crypto.Signer
	certFile string
}

// pair is a certificate and its key, as files.
type pair struct{ cert, key string }

// pki holds the secrets of one cluster, as kubeadm lays them out: one authority for servers and clients, one for the
// API server's calls to aggregated APIs, one key pair for service account tokens.
type pki struct {
	dir            string
	cluster        *authority
	frontProxy     *authority
	apiServer      pair
	frontProxyCall pair
	kubeletCall    pair // the API server's calls to kubelets
	webhookCall    pair // the API server's calls to Options.WebhookHost
	webhooks       *authority
	serviceAccount pair // cert is the public key
}

func newPKI(dir string, opts Options) (p *pki, err error) {
	p = &pki{dir: dir}
	if p.cluster, err = newAuthority(dir, "ca", "kubernetes"); err != nil {
		return nil, err
	}
	if p.frontProxy, err = newAuthority(dir, "front-proxy-ca", "front-proxy-ca"); err != nil {
		return nil, err
	}
	p.apiServer, err = p.cluster.issue(dir, "apiserver", &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{
			"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc.cluster.local",
		},
		IPAddresses: []net.IP{
			net.IPv4(127, 0, 0, 1), opts.Advertise.AsSlice(),
			// The Service "kubernetes" has the first address of the range.
			opts.ServiceCIDR.Masked().Addr().Next().AsSlice(),
		},
	})
	if err != nil {
		return nil, err
	}
	p.frontProxyCall, err = p.frontProxy.issue(dir, "front-proxy-client", &x509.Certificate{
		Subject:     pkix.Name{CommonName: frontProxyName},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, err
	}
	if p.kubeletCall, err = p.client("kube-apiserver-kubelet-client", "system:masters"); err != nil {
		return nil, err
	}
	// An authority of its own: who has another certificate of the cluster may not call webhooks.
	if p.webhooks, err = newAuthority(dir, "webhook-client-ca", "webhook-client-ca"); err != nil {
		return nil, err
	}
	p.webhookCall, err = p.webhooks.issue(dir, "webhook-client", &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, err
	}
	p.serviceAccount, err = newKeyPair(dir, "sa")
	return p, err
}

// frontProxyName is the common name under which the API server calls aggregated APIs.
const frontProxyName = "front-proxy-client"

// client issues a client certificate for a user and the user's groups.
func (p *pki) client(user string, groups ...string) (pair, error) {
	return p.cluster.issue(p.dir, "client-"+fileName(user), &x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: groups},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

func newAuthority(dir, name, commonName string) (*authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: commonName},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	a := &authority{cert: template, key: key, certFile: filepath.Join(dir, name+".crt")}
	der, err := a.sign(template, key.Public())
	if err != nil {
		return nil, err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return a, writePEM(a.certFile, "CERTIFICATE", der)
}

// issue signs the template for a new key and writes both to files that begin with name.
func (a *authority) issue(dir, name string, template *x509.Certificate) (pair, error) {
	key, err := newKey()
	if err != nil {
		return pair{}, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := a.sign(template, key.Public())
	if err != nil {
		return pair{}, fmt.Errorf("issue certificate %s: %w", name, err)
	}
	files := pair{cert: filepath.Join(dir, name+".crt"), key: filepath.Join(dir, name+".key")}
	if err := writePEM(files.cert, "CERTIFICATE", der); err != nil {
		return pair{}, err
	}
	return files, writeKey(files.key, key)
}

func (a *authority) sign(template *x509.Certificate, public crypto.PublicKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-validSince)
	template.NotAfter = time.Now().Add(validFor)
	return x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
}

// newKeyPair writes a private and a public key; the public one takes the place of a certificate.
func newKeyPair(dir, name string) (pair, error) {
	key, err := newKey()
	if err != nil {
		return pair{}, err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return pair{}, err
	}
	files := pair{cert: filepath.Join(dir, name+".pub"), key: filepath.Join(dir, name+".key")}
	if err := writePEM(files.cert, "PUBLIC KEY", der); err != nil {
		return pair{}, err
	}
	return files, writeKey(files.key, key)
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(path, "EC PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
