package main

import (
	"crypto/tls"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"kubevirt.io/kubevirt/pkg/certificates/triple/cert"
	"kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/components"
)

// validFor outlives any rig. virt-operator's own default is a week for authorities, a day for certificates.
var validFor = &metav1.Duration{Duration: 30 * 24 * time.Hour}

// authority is KubeVirt's own certificate authority.
type authority struct {
	secrets []*corev1.Secret // of this authority, and of those for exports and backups
	maps    []*corev1.ConfigMap
	pair    *tls.Certificate
	bundle  []byte // PEM
}

// newAuthority makes the authorities' secrets and the config maps in which KubeVirt's programs look for them.
func newAuthority(namespace string) (*authority, error) {
	a := &authority{secrets: components.NewCACertSecrets(namespace), maps: components.NewCAConfigMaps(namespace)}
	bundles := map[string][]byte{}
	for _, secret := range a.secrets {
		if err := components.PopulateSecretWithCertificate(secret, nil, validFor); err != nil {
			return nil, fmt.Errorf("make authority %s: %w", secret.Name, err)
		}
		pair, err := components.LoadCertificates(secret)
		if err != nil {
			return nil, err
		}
		bundles[secret.Name] = cert.EncodeCertPEM(pair.Leaf)
		if secret.Name == components.KubeVirtCASecretName {
			a.pair, a.bundle = pair, bundles[secret.Name]
		}
	}
	for _, m := range a.maps { // config maps are named after their authority's secret
		m.Data = map[string]string{components.CABundleKey: string(bundles[m.Name])}
	}
	return a, nil
}

func (a *authority) objects() []runtime.Object {
	var objects []runtime.Object
	for _, secret := range a.secrets {
		objects = append(objects, secret)
	}
	for _, m := range a.maps {
		objects = append(objects, m)
	}
	return objects
}

// certificates are the secrets that the programs of the rig mount: virt-api and virt-controller serve with theirs,
// virt-api calls virt-handler with virt-handler's.
func (a *authority) certificates(namespace string) ([]runtime.Object, error) {
	wanted := []string{
		components.VirtApiCertSecretName, components.VirtControllerCertSecretName, components.VirtHandlerCertSecretName,
		components.VirtHandlerServerCertSecretName,
	}
	var objects []runtime.Object
	for _, secret := range components.NewCertSecrets(namespace, namespace) {
		if !slices.Contains(wanted, secret.Name) {
			continue
		}
		if err := components.PopulateSecretWithCertificate(secret, a.pair, validFor); err != nil {
			return nil, fmt.Errorf("make certificate %s: %w", secret.Name, err)
		}
		objects = append(objects, secret)
	}
	return objects, nil
}
