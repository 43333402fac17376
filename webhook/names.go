package webhook

// Names of objects that the manifests install and the webhook binary works with.
const (
	// ServiceName is the Service through which the API server reaches the hooks; the serving certificate names it.
	ServiceName = "floatip-webhook"
	// SecretName is the Secret with the certificate authority.
	SecretName = "floatip-webhook-ca"
	// ConfigurationsName is the name of both webhook configurations. It sorts after KubeVirt's virt-api-mutator: the API
	// server calls configurations in the order of their names (k8s.io/apiserver
	// pkg/admission/configuration/mutating_webhook_manager.go).
	ConfigurationsName = "webhook.floatip.io"
)
