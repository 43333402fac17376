package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

const testName = "floatip-webhook.floatip-system.svc"

// cluster is an API server's store with the two configurations.
type cluster struct {
	client.WithWatch
	refusePatch bool
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, admissionregistrationv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c := &cluster{}
	c.WithWatch = fake.NewClientBuilder().WithScheme(scheme).WithObjects(
		&admissionregistrationv1.MutatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: "webhook.floatip.io"},
			Webhooks:   []admissionregistrationv1.MutatingWebhook{{Name: "a.floatip.io"}, {Name: "b.floatip.io"}},
		},
		&admissionregistrationv1.ValidatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: "webhook.floatip.io"},
			Webhooks:   []admissionregistrationv1.ValidatingWebhook{{Name: "c.floatip.io"}},
		},
	).WithInterceptorFuncs(interceptor.Funcs{
		Patch: func(ctx context.Context, w client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			if c.refusePatch {
				return errors.New("the API server is away")
			}
			return w.Patch(ctx, o, p, opts...)
		},
	}).Build()
	return c
}

func newSource(c *cluster) *Source {
	return &Source{
		Reader: c, Writer: c, Names: []string{testName}, Configurations: "webhook.floatip.io", Log: logr.Discard(),
		Secret: types.NamespacedName{Namespace: "floatip-system", Name: "floatip-webhook-ca"},
	}
}

// bundles returns the caBundle of every webhook.
func (c *cluster) bundles(t *testing.T) [][]byte {
	t.Helper()
	var mutating admissionregistrationv1.MutatingWebhookConfiguration
	var validating admissionregistrationv1.ValidatingWebhookConfiguration
	key := types.NamespacedName{Name: "webhook.floatip.io"}
	if err := errors.Join(c.Get(t.Context(), key, &mutating), c.Get(t.Context(), key, &validating)); err != nil {
		t.Fatal(err)
	}
	var all [][]byte
	for _, h := range append(mutatingHooks(&mutating), validatingHooks(&validating)...) {
		all = append(all, h.caBundle)
	}
	return all
}

// trusts makes a real TLS handshake for every webhook, as an API server with its caBundle does.
func (c *cluster) trusts(t *testing.T, s *Source) {
	t.Helper()
	for i, bundle := range c.bundles(t) {
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(bundle) {
			t.Fatalf("webhook %d has no caBundle", i)
		}
		here, there := net.Pipe()
		served := make(chan error, 1)
		go func() {
			served <- tls.Server(there, &tls.Config{GetCertificate: s.GetCertificate, MinVersion: tls.VersionTLS13}).HandshakeContext(t.Context())
		}()
		dialed := tls.Client(here, &tls.Config{RootCAs: roots, ServerName: testName, Time: time.Now}).HandshakeContext(t.Context())
		here.Close()
		if err := errors.Join(dialed, <-served); err != nil {
			t.Fatalf("webhook %d: %v", i, err)
		}
		there.Close()
	}
}

func (c *cluster) secret(t *testing.T) *corev1.Secret {
	t.Helper()
	var s corev1.Secret
	if err := c.Get(t.Context(), types.NamespacedName{Namespace: "floatip-system", Name: "floatip-webhook-ca"}, &s); err != nil {
		t.Fatal(err)
	}
	return &s
}

func mustSync(t *testing.T, s *Source) {
	t.Helper()
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestFirstSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		s := newSource(c)
		if _, err := s.GetCertificate(nil); err == nil || s.Healthy(nil) == nil {
			t.Error("healthy before the first round")
		}
		mustSync(t, s)
		c.trusts(t, s)
		if err := s.Healthy(nil); err != nil {
			t.Error(err)
		}
		before := c.secret(t).ResourceVersion
		mustSync(t, s)
		if got := c.secret(t).ResourceVersion; got != before {
			t.Error("a round without need wrote the Secret")
		}
		// A new process takes the same authority.
		again := newSource(c)
		mustSync(t, again)
		c.trusts(t, again)
		if !again.keys.equal(s.keys) {
			t.Error("a restart changed the authority")
		}
	})
}

// Two years pass, one round a day: at no time is there a certificate that the API server cannot check.
func TestRotationRefusesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		s := newSource(c)
		mustSync(t, s)
		authorities := map[string]bool{}
		for range 2 * 365 {
			c.trusts(t, s) // before the round: what was published a day ago still holds
			mustSync(t, s)
			c.trusts(t, s)
			authorities[s.keys.current.cert.SerialNumber.String()] = true
			time.Sleep(day)
		}
		if len(authorities) < 3 {
			t.Errorf("%d authorities in two years", len(authorities))
		}
	})
}

func TestHealing(t *testing.T) {
	for _, tc := range []struct {
		name string
		harm func(t *testing.T, c *cluster)
		// same says that the authority must not change.
		same bool
	}{
		{"Secret deleted", func(t *testing.T, c *cluster) {
			if err := c.Delete(t.Context(), c.secret(t)); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"Secret emptied", func(t *testing.T, c *cluster) {
			s := c.secret(t)
			s.Data = nil
			if err := c.Update(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"caBundle emptied", func(t *testing.T, c *cluster) {
			var m admissionregistrationv1.MutatingWebhookConfiguration
			if err := c.Get(t.Context(), types.NamespacedName{Name: "webhook.floatip.io"}, &m); err != nil {
				t.Fatal(err)
			}
			m.Webhooks[1].ClientConfig.CABundle = nil
			if err := c.Update(t.Context(), &m); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"clock jumps by 40 days", func(*testing.T, *cluster) { time.Sleep(40 * day) }, true},
		{"clock jumps by ten years", func(*testing.T, *cluster) { time.Sleep(3650 * day) }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t)
				s := newSource(c)
				mustSync(t, s)
				before := s.keys
				tc.harm(t, c)
				mustSync(t, s)
				c.trusts(t, s)
				if s.keys.equal(before) != tc.same {
					t.Errorf("authority kept: %v, want %v", s.keys.equal(before), tc.same)
				}
				if !bytes.Equal(c.secret(t).Data[keyCA], certPEM(s.keys.current.cert)) {
					t.Error("the Secret has another authority than is used")
				}
			})
		})
	}
}

// A serving certificate that aged while no round was made is renewed by the connection that needs it.
func TestConnectionRenewsTheCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		s := newSource(c)
		mustSync(t, s)
		time.Sleep(35 * day)
		c.trusts(t, s)
	})
}

// While the configurations cannot be written, the successor does not issue, and readiness says why.
func TestUnpublishedSuccessorWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		s := newSource(c)
		mustSync(t, s)
		first := s.keys.current.cert
		c.refusePatch = true
		time.Sleep(250 * day)
		for range 3 {
			if err := s.Sync(t.Context()); err == nil {
				t.Fatal("the round succeeded")
			}
			time.Sleep(time.Hour)
		}
		if s.Healthy(nil) == nil {
			t.Error("healthy although nothing could be published")
		}
		if !s.keys.current.cert.Equal(first) {
			t.Error("the successor issues although nobody trusts it")
		}
		c.trusts(t, s)
		c.refusePatch = false
		mustSync(t, s)
		c.trusts(t, s)
		if s.keys.current.cert.Equal(first) {
			t.Error("the successor does not issue")
		}
	})
}
