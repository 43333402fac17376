package cluster

import "fmt"

// Files by which the API server knows its client certificate for a webhook.
const (
	admissionFile = "admission.yaml"
	webhooksFile  = "webhooks.yaml"
)

// The file of the API server's plugins begins so.
const admissionConfig = `apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
`

// webhookPlugins names a kubeconfig for calls of webhooks (k8s.io/apiserver pkg/admission/plugin/webhook/config).
const webhookPlugins = `- name: MutatingAdmissionWebhook
  configuration: &webhooks
    apiVersion: apiserver.config.k8s.io/v1
    kind: WebhookAdmissionConfiguration
    kubeConfigFile: %[1]s
- name: ValidatingAdmissionWebhook
  configuration: *webhooks
`

// podSecurityPlugin sets a level for namespaces that have none (k8s.io/pod-security-admission admission/api/v1).
const podSecurityPlugin = `- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    defaults: {enforce: %s}
`

const webhooksConfig = `apiVersion: v1
kind: Config
users:
- name: %s
  user:
    client-certificate: %s
    client-key: %s
`

// admissionFlags has the API server present a client certificate to Options.WebhookHost, and enforce Options.PodSecurity.
func (c *Cluster) admissionFlags() ([]string, error) {
	config := admissionConfig
	if c.opts.WebhookHost != "" {
		calls := fmt.Sprintf(webhooksConfig, c.opts.WebhookHost, c.pki.webhookCall.cert, c.pki.webhookCall.key)
		if err := writeFile(c.path(webhooksFile), calls); err != nil {
			return nil, err
		}
		config += fmt.Sprintf(webhookPlugins, c.path(webhooksFile))
	}
	if c.opts.PodSecurity != "" {
		config += fmt.Sprintf(podSecurityPlugin, c.opts.PodSecurity)
	}
	if config == admissionConfig {
		return nil, nil
	}
	if err := writeFile(c.path(admissionFile), config); err != nil {
		return nil, err
	}
	return []string{"--admission-control-config-file=" + c.path(admissionFile)}, nil
}

// WebhookClient returns the files of the authority, the certificate and the key that the API server presents to webhooks.
func (c *Cluster) WebhookClient() (authority, cert, key string) {
	return c.pki.webhooks.certFile, c.pki.webhookCall.cert, c.pki.webhookCall.key
}
