package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// FieldManager is the owner of the caBundle fields and of the Secret.
const FieldManager = "floatip-certs"

// Source keeps authority, serving certificate and caBundles in step. Set the exported fields before use.
type Source struct {
	// Reader reads the API server itself, not a cache: decisions are made on what is stored now.
	Reader client.Reader
	// Writer writes the Secret and patches the webhook configurations.
	Writer client.Writer
	// Secret keeps the authority.
	Secret types.NamespacedName
	// Names are the DNS names of the webhook's Service.
	Names []string
	// Configurations are the names of the mutating and validating webhook configurations: both kinds, one name.
	Configurations string
	// Log tells what was renewed and why.
	Log logr.Logger

	mu     sync.Mutex // guards the fields below
	keys   keys
	leaf   *tls.Certificate
	issuer *x509.Certificate // of leaf
	health error
}

// errNoCertificate is what TLS clients and the health check meet before the first round.
var errNoCertificate = errors.New("there is no serving certificate yet")

// GetCertificate implements the callback of tls.Config. A certificate that aged between two rounds, as after a jump of
// the clock, is replaced here.
func (s *Source) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaf == nil {
		return nil, errNoCertificate
	}
	if err := s.renewLeaf(time.Now()); err != nil {
		return nil, err
	}
	return s.leaf, nil
}

// renewLeaf issues a serving certificate if the present one is old or of another authority. s.mu is held.
func (s *Source) renewLeaf(now time.Time) error {
	if s.leaf != nil {
		due, _ := needsRenewal(s.leaf.Leaf, now)
		if !due && s.issuer.Equal(s.keys.current.cert) {
			return nil
		}
	}
	leaf, err := s.keys.current.issue(s.Names, now)
	if err != nil {
		return err
	}
	s.leaf, s.issuer = leaf, s.keys.current.cert
	return nil
}

// Healthy is a health check: nil when a certificate is there and the API server was told whom to trust.
func (s *Source) Healthy(*http.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaf == nil {
		return errors.Join(errNoCertificate, s.health)
	}
	return s.health
}

// Sync is one round: read the Secret, issue, publish, and replace what is due. It is safe to call at any time.
func (s *Source) Sync(ctx context.Context) error {
	err := s.sync(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.health = err
	return err
}

func (s *Source) sync(ctx context.Context) error {
	stored, err := s.load(ctx)
	if err != nil {
		return err
	}
	k, err := s.step(ctx, stored, false)
	if err != nil {
		return err
	}
	if err := s.publish(ctx, k.bundle()); err != nil {
		return err
	}
	promoted, err := s.step(ctx, storedKeys{k, true}, true)
	if err != nil || promoted.equal(k) {
		return err
	}
	return s.publish(ctx, promoted.bundle())
}

// storedKeys are keys, and whether the Secret has them already.
type storedKeys struct {
	keys
	stored bool
}

// step writes the keys that are due into the Secret and then takes them into use: a certificate of an authority that
// a restart would not find again must not be served.
func (s *Source) step(ctx context.Context, have storedKeys, published bool) (keys, error) {
	now := time.Now()
	want, reason, err := have.advance(now, published)
	if err != nil {
		return keys{}, err
	}
	if reason != "" || !have.stored {
		if err := s.store(ctx, want); err != nil {
			return keys{}, err
		}
		s.Log.Info("wrote authority", "secret", s.Secret, "reason", reason, "expires", want.current.cert.NotAfter)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = want
	return want, s.renewLeaf(now)
}

// load returns the keys of the Secret. If it is gone or cannot be read, those in memory are taken, which the API
// servers trust already.
func (s *Source) load(ctx context.Context) (storedKeys, error) {
	s.mu.Lock()
	memory := s.keys
	s.mu.Unlock()

	secret := &corev1.Secret{}
	if err := s.Reader.Get(ctx, s.Secret, secret); client.IgnoreNotFound(err) != nil {
		return storedKeys{}, fmt.Errorf("read Secret %s: %w", s.Secret, err)
	}
	k, err := parseKeys(secret.Data)
	if err != nil {
		return storedKeys{memory, false}, nil
	}
	return storedKeys{k, true}, nil
}

// store creates or replaces the Secret. Whoever loses a race starts the next round with the winner's authority.
func (s *Source) store(ctx context.Context, k keys) error {
	data, err := k.encode()
	if err != nil {
		return err
	}
	secret := &corev1.Secret{}
	switch err := s.Reader.Get(ctx, s.Secret, secret); {
	case apierrors.IsNotFound(err):
		secret = &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: s.Secret.Namespace, Name: s.Secret.Name},
			Type:       corev1.SecretTypeOpaque,
			Data:       data,
		}
		err = s.Writer.Create(ctx, secret, client.FieldOwner(FieldManager))
		return wrap(err, "create Secret %s", s.Secret)
	case err != nil:
		return fmt.Errorf("read Secret %s: %w", s.Secret, err)
	}
	secret.Data = data
	return wrap(s.Writer.Update(ctx, secret, client.FieldOwner(FieldManager)), "update Secret %s", s.Secret)
}

func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}
