package peer

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// Identity is the key of one agent. It is made anew with each start, and never leaves the process.
type Identity struct {
	certificate tls.Certificate
	fingerprint string
}

// NewIdentity makes a key.
func NewIdentity() (*Identity, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key for other agents: %w", err)
	}
	// TLS carries a key in a certificate. Nothing in this one is ever looked at but the key.
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().AddDate(100, 0, 0)}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return nil, fmt.Errorf("make a key for other agents: %w", err)
	}
	leaf, err := x509.ParseCertificate(raw)
	if err != nil {
		return nil, fmt.Errorf("make a key for other agents: %w", err)
	}
	return &Identity{
		certificate: tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: private, Leaf: leaf}, fingerprint: fingerprint(leaf),
	}, nil
}

// Fingerprint is what the agent publishes: the SHA-256 of its public key, in Base64 (RFC 7469 section 2.4).
func (i *Identity) Fingerprint() string { return i.fingerprint }

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// ErrUnknownKey: the other end is not the agent of the node that it should be.
var ErrUnknownKey = errors.New("the other end shows a key that the agent of that node has not published")

// config demands a key of the other end for which expected holds. Names and authorities mean nothing here: the key is
// compared with the published one, and TLS proves that the other end has it.
func (i *Identity) config(expected func(fingerprint string) bool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{i.certificate},
		ClientAuth: tls.RequireAnyClientCert, InsecureSkipVerify: true, SessionTicketsDisabled: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) != 1 || !expected(fingerprint(s.PeerCertificates[0])) {
				return ErrUnknownKey
			}
			return nil
		},
	}
}
