package main

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	virtv1 "kubevirt.io/api/core/v1"

	"kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/components"
)

var virtAPI = netip.MustParseAddrPort("201.0.0.1:8443")

func generated(t *testing.T) []runtime.Object {
	t.Helper()
	objects, err := manifests("kubevirt", virtAPI)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// of picks the objects of one type.
func of[T runtime.Object](objects []runtime.Object) []T {
	var found []T
	for _, o := range objects {
		if o, ok := o.(T); ok {
			found = append(found, o)
		}
	}
	return found
}

// The API server trusts virt-api, under the name by which it calls a Service, through every webhook and API that
// refers to it.
func TestVirtAPIIsTrusted(t *testing.T) {
	objects := generated(t)
	var leaf *x509.Certificate
	for _, secret := range of[*corev1.Secret](objects) {
		if secret.Name == components.VirtApiCertSecretName {
			loaded, err := components.LoadCertificates(secret)
			if err != nil {
				t.Fatal(err)
			}
			leaf = loaded.Leaf
		}
	}
	if leaf == nil {
		t.Fatalf("no secret %s", components.VirtApiCertSecretName)
	}
	bundles := map[string][]byte{}
	for _, config := range of[*admissionv1.MutatingWebhookConfiguration](objects) {
		for _, w := range config.Webhooks {
			bundles[w.Name] = w.ClientConfig.CABundle
		}
	}
	for _, config := range of[*admissionv1.ValidatingWebhookConfiguration](objects) {
		for _, w := range config.Webhooks {
			bundles[w.Name] = w.ClientConfig.CABundle
		}
	}
	for _, service := range of[*apiregistrationv1.APIService](objects) {
		bundles[service.Name] = service.Spec.CABundle
	}
	if len(bundles) < 10 {
		t.Errorf("only %d webhooks and APIs", len(bundles))
	}
	for name, bundle := range bundles {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(bundle)
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: "virt-api.kubevirt.svc", Roots: roots}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The Service leads to the one address where the rig runs virt-api: no selector, so that the endpoint slice controller
// keeps its hands off.
func TestServiceLeadsToVirtAPI(t *testing.T) {
	objects := generated(t)
	services, slices := of[*corev1.Service](objects), of[*discoveryv1.EndpointSlice](objects)
	if len(services) != 1 || len(slices) != 1 {
		t.Fatalf("%d services and %d slices, want one of each", len(services), len(slices))
	}
	if len(services[0].Spec.Selector) != 0 {
		t.Errorf("the service selects %v", services[0].Spec.Selector)
	}
	if got := slices[0].Labels[discoveryv1.LabelServiceName]; got != services[0].Name {
		t.Errorf("the slice belongs to service %q", got)
	}
	got := fmt.Sprintf("%s:%d", slices[0].Endpoints[0].Addresses[0], *slices[0].Ports[0].Port)
	if got != virtAPI.String() {
		t.Errorf("the slice leads to %s, want %s", got, virtAPI)
	}
}

// Both programs take KubeVirt for installed.
func TestKubeVirtIsDeployed(t *testing.T) {
	found := of[*virtv1.KubeVirt](generated(t))
	if len(found) != 1 {
		t.Fatalf("%d KubeVirt objects, want 1", len(found))
	}
	if status := found[0].Status; status.Phase != virtv1.KubeVirtPhaseDeployed || status.DefaultArchitecture != "amd64" {
		t.Errorf("status %+v", status)
	}
}
