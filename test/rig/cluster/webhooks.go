package cluster

import "fmt"

// Files by which the API server knows its client certificate for a webhook.
const (
	admissionFile = "admission.yaml"
	webhooksFile  = "webhooks.yaml"
)

// admissionConfig names a kubeconfig for calls of webhooks (k8s.io/apiserver pkg/admission/plugin/webhook/config).
const admissionConfig = `apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: MutatingAdmissionWebhook
  configuration: &webhooks
    apiVersion: apiserver.config.k8s.io/v1
    kind: WebhookAdmissionConfiguration
    kubeConfigFile: %[1]s
- name: ValidatingAdmissionWebhook
  configuration: *webhooks
`

const webhooksConfig = `apiVersion: v1
kind: Config
users:
- name: %s
  user:
    client-certificate: %s
    client-key: %s
`

// webhookFlags has the API server present a client certificate to Options.WebhookHost.
func (c *Cluster) webhookFlags() ([]string, error) {
	if c.opts.WebhookHost == "" {
		return nil, nil
	}
	calls := fmt.Sprintf(webhooksConfig, c.opts.WebhookHost, c.pki.webhookCall.cert, c.pki.webhookCall.key)
	if err := writeFile(c.path(webhooksFile), calls); err != nil {
		return nil, err
	}
	if err := writeFile(c.path(admissionFile), fmt.Sprintf(admissionConfig, c.path(webhooksFile))); err != nil {
		return nil, err
	}
	return []string{"--admission-control-config-file=" + c.path(admissionFile)}, nil
}

// WebhookClient returns the files of the authority, the certificate and the key that the API server presents to webhooks.
func (c *Cluster) WebhookClient() (authority, cert, key string) {
	return c.pki.webhooks.certFile, c.pki.webhookCall.cert, c.pki.webhookCall.key
}
