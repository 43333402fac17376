package admission

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	registrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip/test/rig/process"
)

// certManager: a cluster with floatip goes over to cert-manager by the component manifests/cert-manager. Issuers,
// Certificates, Secret and caBundle come to life; the serving certificate and its authority are renewed while requests
// run, and none is lost. The test plays the kubelet, which brings the Secret into the pod.
func certManager(t *testing.T, w *world) {
	n := w.tenant(t, 20)
	kubeconfig := w.cluster.Kubeconfig()
	definitions := filepath.Join(w.root, "bin", "rig", "cert-manager-crds")
	for _, args := range [][]string{{"apply", "--server-side", "-f", definitions}, {"wait", "--for=condition=Established", "--timeout=1m", "-f", definitions}} {
		if _, err := w.cluster.Kubectl(n.ctx, nil, args...); err != nil {
			t.Fatal(err)
		}
	}
	_, err := w.group.Start(process.Spec{
		Name: "cert-manager", Path: filepath.Join(w.root, "bin", "rig", "cert-manager"), Args: []string{"--kubeconfig=" + kubeconfig},
		NetNS: w.netns, Log: w.cluster.Log("cert-manager"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.stopWebhook(n.ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := w.cluster.Kubectl(n.ctx, nil, "apply", "-k", w.withComponent(t, "cert-manager")); err != nil {
		t.Fatal(err)
	}
	n.wait("both Certificates", func(ctx context.Context) error {
		return errors.Join(w.certificateReady(ctx, "floatip-webhook-ca"), w.certificateReady(ctx, "floatip-webhook"))
	})
	mounted := &mountedSecret{dir: w.folder(t)}
	served := n.mount(mounted)
	n.awaitBundles()
	if err := w.startWebhook(n.ctx, "--tls-dir="+mounted.dir); err != nil {
		t.Fatal(err)
	}
	n.wait("the API server to see the caBundles", func(ctx context.Context) error {
		return n.admin.Create(ctx, n.newVM("asked", nil), client.DryRunAll)
	})
	n.bound(n.create("first", nil))

	asked := n.keepAsking()
	for _, name := range []string{"floatip-webhook", "floatip-webhook-ca", "floatip-webhook"} {
		n.renew(name)
		if name == "floatip-webhook-ca" {
			continue // the next serving certificate is of the renewed authority
		}
		n.awaitBundles()
		asked.more(n) // the kubelet takes its time
		before := served
		if served = n.mount(mounted); served == before {
			t.Fatalf("the certificate was renewed and is the same")
		}
		n.wait("the new certificate to be served", func(context.Context) error { return w.serves(t, served) })
		asked.more(n)
	}
	asked.end()
	t.Logf("%d requests during three renewals", asked.count.Load())
	n.bound(n.create("last", nil))
}

// withComponent returns a copy of the manifests with a component of theirs.
func (w *world) withComponent(t *testing.T, component string) string {
	t.Helper()
	dir := filepath.Join(w.folder(t), "manifests")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(w.root, "manifests"))); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(filepath.Join(dir, "kustomization.yaml"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = fmt.Fprintf(file, "components:\n- %s\n", component)
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

var certificateKind = schema.GroupVersionKind{Group: "cert-manager.io", Version: "v1", Kind: "Certificate"}

// certificate reads a Certificate, and its revision and whether it is Ready.
func (w *world) certificate(ctx context.Context, name string) (o *unstructured.Unstructured, revision int64, ready bool, err error) {
	o = &unstructured.Unstructured{}
	o.SetGroupVersionKind(certificateKind)
	if err := w.admin.Get(ctx, client.ObjectKey{Namespace: "floatip-system", Name: name}, o); err != nil {
		return nil, 0, false, err
	}
	revision, _, _ = unstructured.NestedInt64(o.Object, "status", "revision")
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, c := range conditions {
		c := c.(map[string]any)
		ready = ready || c["type"] == "Ready" && c["status"] == "True"
	}
	return o, revision, ready, nil
}

func (w *world) certificateReady(ctx context.Context, name string) error {
	o, _, ready, err := w.certificate(ctx, name)
	if err == nil && !ready {
		err = fmt.Errorf("Certificate %s is not Ready: %v", name, o.Object["status"])
	}
	return err
}

// renew has a Certificate issued anew, as `cmctl renew` does.
func (n *tenant) renew(name string) {
	n.t.Helper()
	var before int64
	n.wait("to ask for a renewal of "+name, func(ctx context.Context) error {
		o, revision, _, err := n.certificate(ctx, name)
		if err != nil {
			return err
		}
		before = revision
		conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
		conditions = append(conditions, map[string]any{
			"type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "message": "by the test", "lastTransitionTime": "2026-01-02T03:04:05Z",
		})
		if err := unstructured.SetNestedSlice(o.Object, conditions, "status", "conditions"); err != nil {
			return err
		}
		return n.admin.Status().Update(ctx, o) // again, if cert-manager wrote in between
	})
	n.wait("Certificate "+name+" to be issued anew", func(ctx context.Context) error {
		_, now, ready, err := n.certificate(ctx, name)
		if err == nil && (now == before || !ready) {
			err = fmt.Errorf("revision %d, ready %v", now, ready)
		}
		return err
	})
}

func (n *tenant) secret() *corev1.Secret {
	n.t.Helper()
	secret := &corev1.Secret{}
	if err := n.admin.Get(n.ctx, client.ObjectKey{Namespace: "floatip-system", Name: "floatip-webhook-tls"}, secret); err != nil {
		n.t.Fatal(err)
	}
	return secret
}

// mountedSecret is a Secret as the kubelet mounts it: files that link into a folder that is replaced as a whole.
type mountedSecret struct {
	dir     string
	version int
}

// mount brings the Secret into the folder, and returns the serving certificate.
func (n *tenant) mount(m *mountedSecret) (served string) {
	n.t.Helper()
	secret := n.secret()
	m.version++
	version := fmt.Sprintf("..%d", m.version)
	errs := []error{os.Mkdir(filepath.Join(m.dir, version), 0o755)}
	for name, data := range secret.Data {
		errs = append(errs, os.WriteFile(filepath.Join(m.dir, version, name), data, 0o600))
		if m.version == 1 {
			errs = append(errs, os.Symlink(filepath.Join("..data", name), filepath.Join(m.dir, name)))
		}
	}
	errs = append(errs, os.Symlink(version, filepath.Join(m.dir, "..tmp")), os.Rename(filepath.Join(m.dir, "..tmp"), filepath.Join(m.dir, "..data")))
	if err := errors.Join(errs...); err != nil {
		n.t.Fatal(err)
	}
	return string(secret.Data["tls.crt"])
}

// awaitBundles waits until every hook of floatip's trusts the authority in the Secret. It may trust others as well: cainjector
// adds the new one to what is there, until that has expired.
func (n *tenant) awaitBundles() {
	n.t.Helper()
	authority, _ := pem.Decode(n.secret().Data["ca.crt"])
	if authority == nil {
		n.t.Fatal("the Secret has no authority")
	}
	n.wait("cainjector to write the caBundles", func(ctx context.Context) error {
		var mutating registrationv1.MutatingWebhookConfiguration
		var validating registrationv1.ValidatingWebhookConfiguration
		key := client.ObjectKey{Name: "webhook.floatip.io"}
		if err := errors.Join(n.admin.Get(ctx, key, &mutating), n.admin.Get(ctx, key, &validating)); err != nil {
			return err
		}
		bundles := map[string][]byte{}
		for _, h := range mutating.Webhooks {
			bundles[h.Name] = h.ClientConfig.CABundle
		}
		for _, h := range validating.Webhooks {
			bundles[h.Name] = h.ClientConfig.CABundle
		}
		for name, bundle := range bundles {
			if !trusts(bundle, authority.Bytes) {
				return fmt.Errorf("%s trusts another authority", name)
			}
		}
		return nil
	})
}

// trusts reports whether a certificate is in a bundle.
func trusts(bundle, certificate []byte) bool {
	for {
		block, rest := pem.Decode(bundle)
		if block == nil || bytes.Equal(block.Bytes, certificate) {
			return block != nil
		}
		bundle = rest
	}
}

// serves reports whether a new connection gets the certificate.
func (w *world) serves(t *testing.T, certificate string) error {
	pair, err := tls.X509KeyPair([]byte(certificate), w.tlsKey(t))
	if err != nil {
		return err
	}
	_, cert, key := w.cluster.WebhookClient()
	answer, err := w.direct(t, cert, key).Post("https://floatip/mutate-vm-create", "application/json", bytes.NewReader([]byte("{}")))
	if err != nil {
		return err
	}
	answer.Body.Close()
	if !bytes.Equal(answer.TLS.PeerCertificates[0].Raw, pair.Certificate[0]) || answer.StatusCode != http.StatusBadRequest {
		return errors.New("another one is served")
	}
	return nil
}

func (w *world) tlsKey(t *testing.T) []byte {
	t.Helper()
	secret := &corev1.Secret{}
	if err := w.admin.Get(t.Context(), client.ObjectKey{Namespace: "floatip-system", Name: "floatip-webhook-tls"}, secret); err != nil {
		t.Fatal(err)
	}
	return secret.Data["tls.key"]
}

const askEvery = 20 * time.Millisecond

// asking is creates that floatip decides one after the other.
type asking struct {
	count atomic.Int64
	done  chan struct{}
	group sync.WaitGroup
}

// keepAsking has creates decided, without storing any, until the end: one every askEvery, since cert-manager needs the
// processor too. Each that is refused fails the test.
func (n *tenant) keepAsking() *asking {
	a := &asking{done: make(chan struct{})}
	a.group.Go(func() {
		again := time.NewTicker(askEvery)
		defer again.Stop()
		for {
			select {
			case <-a.done:
				return
			case <-again.C:
			}
			if err := n.admin.Create(n.ctx, n.newVM("asked", nil), client.DryRunAll); err != nil {
				n.t.Errorf("during a renewal: %v", err)
				return // whoever waits for more gives up in time
			}
			a.count.Add(1)
		}
	})
	return a
}

// more waits until some more have been answered.
func (a *asking) more(n *tenant) {
	n.t.Helper()
	from := a.count.Load()
	n.wait("requests to go on", func(context.Context) error {
		if now := a.count.Load(); now < from+5 {
			return fmt.Errorf("%d were answered", now-from)
		}
		return nil
	})
}

func (a *asking) end() {
	close(a.done)
	a.group.Wait()
}
