package manifests_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook"
	"floatip.io/floatip/webhook/kubevirt"
)

// namespace is where floatip is installed.
const namespace = "floatip-system"

// webhookUser is the user that floatip's webhook acts as.
const webhookUser = "system:serviceaccount:" + namespace + ":floatip-webhook"

// object reads one object of `kubectl kustomize dir` into T. Unknown fields are errors, as with kubectl's strict
// validation.
func object[T any](t *testing.T, dir, kind, name string) T {
	t.Helper()
	var value T
	for _, r := range build(t, dir) {
		if r.kind != kind || r.name != name {
			continue
		}
		if err := yaml.UnmarshalStrict(r.yaml, &value); err != nil {
			t.Fatalf("%s %s: %v", kind, name, err)
		}
		return value
	}
	t.Fatalf("no %s %s in %s", kind, name, dir)
	return value
}

type resource struct {
	kind, name, namespace string
	yaml                  []byte
}

func build(t *testing.T, dir string) []resource {
	t.Helper()
	result, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []resource
	for _, r := range result.Resources() {
		raw, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, resource{r.GetKind(), r.GetName(), r.GetNamespace(), raw})
	}
	return all
}

// Every kind of object is read strictly, so that a misspelt field is found here and not on a cluster.
func TestEveryObjectIsReadStrictly(t *testing.T) {
	for _, r := range build(t, ".") {
		var into any
		switch r.kind {
		case "Namespace":
			into = &corev1.Namespace{}
		case "ConfigMap":
			into = &corev1.ConfigMap{}
		case "ServiceAccount":
			into = &corev1.ServiceAccount{}
		case "PersistentVolumeClaim":
			into = &corev1.PersistentVolumeClaim{}
		case "Service":
			into = &corev1.Service{}
		case "Deployment":
			into = &appsv1.Deployment{}
		case "DaemonSet":
			into = &appsv1.DaemonSet{}
		case "Role":
			into = &rbacv1.Role{}
		case "RoleBinding":
			into = &rbacv1.RoleBinding{}
		case "ClusterRole":
			into = &rbacv1.ClusterRole{}
		case "ClusterRoleBinding":
			into = &rbacv1.ClusterRoleBinding{}
		case "ValidatingAdmissionPolicy":
			into = &admissionregistrationv1.ValidatingAdmissionPolicy{}
		case "ValidatingAdmissionPolicyBinding":
			into = &admissionregistrationv1.ValidatingAdmissionPolicyBinding{}
		case "MutatingWebhookConfiguration":
			into = &admissionregistrationv1.MutatingWebhookConfiguration{}
		case "ValidatingWebhookConfiguration":
			into = &admissionregistrationv1.ValidatingWebhookConfiguration{}
		case "CustomResourceDefinition":
			continue // generated from the types
		default:
			t.Errorf("%s %s: a kind that this test does not know", r.kind, r.name)
			continue
		}
		if err := yaml.UnmarshalStrict(r.yaml, into); err != nil {
			t.Errorf("%s %s: %v", r.kind, r.name, err)
		}
	}
}

// hook is what both kinds of webhook have in common.
type hook struct {
	name           string
	client         admissionregistrationv1.WebhookClientConfig
	timeout        *int32
	failure        *admissionregistrationv1.FailurePolicyType
	sideEffects    *admissionregistrationv1.SideEffectClass
	conditions     []admissionregistrationv1.MatchCondition
	optIn          map[string]string
	operations     []admissionregistrationv1.OperationType
	resource       string
	excludedSpaces []string
}

func hooks(t *testing.T) []hook {
	t.Helper()
	var all []hook
	mutating := object[admissionregistrationv1.MutatingWebhookConfiguration](t, ".", "MutatingWebhookConfiguration", webhook.ConfigurationsName)
	for _, w := range mutating.Webhooks {
		h := hook{name: w.Name, client: w.ClientConfig, timeout: w.TimeoutSeconds, failure: w.FailurePolicy, sideEffects: w.SideEffects, conditions: w.MatchConditions}
		if w.NamespaceSelector != nil {
			h.optIn, h.excludedSpaces = w.NamespaceSelector.MatchLabels, w.NamespaceSelector.MatchExpressions[0].Values
		}
		if len(w.Rules) != 1 || len(w.Rules[0].Resources) != 1 {
			t.Errorf("%s: rules %+v", w.Name, w.Rules)
		}
		h.operations, h.resource = w.Rules[0].Operations, w.Rules[0].Resources[0]
		if w.ReinvocationPolicy == nil || *w.ReinvocationPolicy != admissionregistrationv1.IfNeededReinvocationPolicy {
			t.Errorf("%s: reinvocationPolicy is not IfNeeded", w.Name)
		}
		all = append(all, h)
	}
	validating := object[admissionregistrationv1.ValidatingWebhookConfiguration](t, ".", "ValidatingWebhookConfiguration", webhook.ConfigurationsName)
	for _, w := range validating.Webhooks {
		h := hook{name: w.Name, client: w.ClientConfig, timeout: w.TimeoutSeconds, failure: w.FailurePolicy, sideEffects: w.SideEffects, conditions: w.MatchConditions}
		if w.NamespaceSelector != nil {
			h.optIn, h.excludedSpaces = w.NamespaceSelector.MatchLabels, w.NamespaceSelector.MatchExpressions[0].Values
		}
		if len(w.Rules) != 1 || len(w.Rules[0].Resources) != 1 {
			t.Errorf("%s: rules %+v", w.Name, w.Rules)
		}
		h.operations, h.resource = w.Rules[0].Operations, w.Rules[0].Resources[0]
		all = append(all, h)
	}
	return all
}

// limitsOf is what a hook may do to those that ask it, and to those that do not.
type limitsOf struct {
	Failure     admissionregistrationv1.FailurePolicyType
	SideEffects admissionregistrationv1.SideEffectClass
	Timeout     int32 // seconds
	OptIn       bool
}

// limits by path. Who did not opt in can be refused for a pool alone; a change of a VM never is, since a dead webhook would
// hold up finalizers. Hooks that write the ledger, or events, do not in a dry run.
var limits = map[string]limitsOf{
	webhook.PathVMCreate:   {"Fail", "NoneOnDryRun", 10, true},
	webhook.PathVMCommit:   {"Fail", "NoneOnDryRun", 10, true},
	webhook.PathVMUpdate:   {"Ignore", "NoneOnDryRun", 5, false},
	webhook.PathVMICreate:  {"Fail", "NoneOnDryRun", 10, true},
	webhook.PathPodCreate:  {"Fail", "NoneOnDryRun", 10, true},
	webhook.PathPoolChange: {"Fail", "None", 10, false},
}

// system are the namespaces whose VMs never ask, whatever their labels say.
var system = []string{namespace, kubevirt.DefaultNamespace, "kube-system", "kube-public", "kube-node-lease"}

func TestWebhookConfigurations(t *testing.T) {
	if webhook.ConfigurationsName <= "virt-api-mutator" {
		t.Errorf("%s is called before KubeVirt's webhooks", webhook.ConfigurationsName)
	}
	served := (&webhook.Hooks{Metrics: webhook.NewMetrics(prometheus.NewRegistry())}).Handlers()
	var paths []string
	asked := map[string]string{}
	for _, h := range hooks(t) {
		service := h.client.Service
		if service.Name != webhook.ServiceName || service.Namespace != namespace || *service.Port != 443 {
			t.Errorf("%s: service %+v", h.name, service)
		}
		if served[*service.Path] == nil {
			t.Errorf("%s: nothing is served at %s", h.name, *service.Path)
		}
		paths = append(paths, *service.Path)
		asked[*service.Path] = fmt.Sprint(h.resource, h.operations)
		if h.optIn != nil && !slices.Equal(h.excludedSpaces, system) {
			t.Errorf("%s: %q are left alone, want the namespaces of floatip, KubeVirt and the system", h.name, h.excludedSpaces)
		}
		if diff := cmp.Diff(limits[*service.Path], limitsOf{*h.failure, *h.sideEffects, *h.timeout, h.optIn[floatip.LabelEnabled] == "true"}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", h.name, diff)
		}
	}
	wantAsked := map[string]string{
		webhook.PathVMCreate: "virtualmachines[CREATE]", webhook.PathVMCommit: "virtualmachines[CREATE]",
		webhook.PathVMUpdate: "virtualmachines[UPDATE]", webhook.PathVMICreate: "virtualmachineinstances[CREATE]",
		webhook.PathPodCreate: "pods[CREATE]", webhook.PathPoolChange: "floatingippools[CREATE UPDATE DELETE]",
	}
	if diff := cmp.Diff(wantAsked, asked); diff != "" {
		t.Errorf("what is asked about (-want +got):\n%s", diff)
	}
	for path := range served {
		if n := len(slices.DeleteFunc(slices.Clone(paths), func(p string) bool { return p != path })); n != 1 {
			t.Errorf("%s is configured %d times", path, n)
		}
	}
}

// All expressions that name floatip's keys or KubeVirt's accounts name those of the code.
func TestExpressions(t *testing.T) {
	expressions := map[string]string{}
	for _, h := range hooks(t) {
		for _, c := range h.conditions {
			expressions[h.name] += c.Expression + "\n"
		}
	}
	for _, name := range []string{
		"virtualmachines.floatip.io", "virtualmachineinstances.floatip.io", "pods.floatip.io", "pods-by-floatip.floatip.io", "agents.floatip.io",
	} {
		policy := object[admissionregistrationv1.ValidatingAdmissionPolicy](t, ".", "ValidatingAdmissionPolicy", name)
		if *policy.Spec.FailurePolicy != admissionregistrationv1.Fail {
			t.Errorf("%s: failurePolicy %s", name, *policy.Spec.FailurePolicy)
		}
		for _, c := range policy.Spec.MatchConditions {
			expressions[name] += c.Expression + "\n"
		}
		for _, v := range policy.Spec.Variables {
			expressions[name] += v.Expression + "\n"
		}
		for _, v := range policy.Spec.Validations {
			expressions[name] += v.Expression + "\n"
		}
		binding := object[admissionregistrationv1.ValidatingAdmissionPolicyBinding](t, ".", "ValidatingAdmissionPolicyBinding", name)
		if binding.Spec.PolicyName != name || !slices.Contains(binding.Spec.ValidationActions, admissionregistrationv1.Deny) {
			t.Errorf("binding %s does not deny", name)
		}
	}
	for _, h := range hooks(t) {
		for _, excluded := range h.excludedSpaces {
			for _, policy := range []string{"virtualmachines.floatip.io", "virtualmachineinstances.floatip.io"} {
				if !strings.Contains(expressions[policy], "'"+excluded+"'") {
					t.Errorf("%s trusts the webhook in %s, where %s is not called", policy, excluded, h.name)
				}
			}
		}
	}
	controller := kubevirt.ControllerUser(kubevirt.DefaultNamespace)
	for name, mentions := range map[string][]string{
		"vm-create.floatip.io":               {floatip.LabelEnabled, floatip.AnnotationAddress, floatip.AnnotationClaim},
		"vm-update.floatip.io":               {floatip.AnnotationAddress, floatip.AnnotationClaim, floatip.AnnotationRequest, floatip.AnnotationPool, floatip.AnnotationAllow, floatip.LabelEnabled, floatip.AnnotationRequire, floatip.AnnotationUserData, webhookUser, "deletionTimestamp"},
		"vm-commit.floatip.io":               {floatip.AnnotationAddress, floatip.AnnotationClaim},
		"vmi-create.floatip.io":              {floatip.LabelEnabled, floatip.AnnotationAddress, kubevirt.KindVM},
		"pod-create.floatip.io":              {controller, floatip.AnnotationAddress, floatip.AnnotationNAT, kubevirt.AnnotationTemporary},
		"virtualmachines.floatip.io":         append(kubevirt.Users(kubevirt.DefaultNamespace), webhookUser, floatip.AnnotationAddress, floatip.AnnotationClaim, floatip.LabelEnabled),
		"virtualmachineinstances.floatip.io": append(kubevirt.Users(kubevirt.DefaultNamespace), floatip.AnnotationAddress, floatip.AnnotationNAT, floatip.LabelEnabled),
		"pods-by-floatip.floatip.io":         {webhookUser, floatip.AnnotationNAT, kubevirt.LabelApp, kubevirt.AppLauncher},
		"pods.floatip.io":                    {controller, webhookUser, floatip.AnnotationNAT},
	} {
		for _, m := range mentions {
			if !strings.Contains(expressions[name], "'"+m+"'") && !strings.Contains(expressions[name], "."+m) {
				t.Errorf("%s does not mention %s", name, m)
			}
		}
	}
}

func TestWebhookDeployment(t *testing.T) {
	deployment := object[appsv1.Deployment](t, ".", "Deployment", "floatip-webhook")
	if *deployment.Spec.Replicas != 1 || deployment.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType {
		t.Error("the ledger has one writer")
	}
	pod := deployment.Spec.Template.Spec
	c := pod.Containers[0]
	if !*pod.SecurityContext.RunAsNonRoot || !*c.SecurityContext.ReadOnlyRootFilesystem || *c.SecurityContext.AllowPrivilegeEscalation ||
		!slices.Contains(c.SecurityContext.Capabilities.Drop, "ALL") || len(c.SecurityContext.Capabilities.Add) > 0 ||
		pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("more rights than needed: %+v %+v", pod.SecurityContext, c.SecurityContext)
	}
	service := object[corev1.Service](t, ".", "Service", webhook.ServiceName)
	for key, value := range service.Spec.Selector {
		if deployment.Spec.Template.Labels[key] != value {
			t.Errorf("the Service selects %s=%s, which the pod has not", key, value)
		}
	}
	for _, p := range service.Spec.Ports {
		if !slices.ContainsFunc(c.Ports, func(cp corev1.ContainerPort) bool { return cp.Name == p.TargetPort.StrVal }) {
			t.Errorf("Service port %s points to %s, which the container has not", p.Name, p.TargetPort.StrVal)
		}
	}
	claim := object[corev1.PersistentVolumeClaim](t, ".", "PersistentVolumeClaim", pod.Volumes[0].PersistentVolumeClaim.ClaimName)
	if !slices.Equal(claim.Spec.AccessModes, []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}) {
		t.Errorf("access modes: %v", claim.Spec.AccessModes)
	}
}

// The agent works on the node's network, with the capabilities that this takes, and with nothing else of the node: not its
// processes, no file system to write to, no program but its own.
func TestAgentDaemonSet(t *testing.T) {
	pod := object[appsv1.DaemonSet](t, ".", "DaemonSet", "floatip-agent").Spec.Template.Spec
	if !pod.HostNetwork || pod.HostPID || pod.HostIPC || len(pod.InitContainers) > 0 || len(pod.Containers) != 1 {
		t.Errorf("host network %t, PID %t, IPC %t, with %d init containers and %d containers; want the network alone, for one",
			pod.HostNetwork, pod.HostPID, pod.HostIPC, len(pod.InitContainers), len(pod.Containers))
	}
	c := pod.Containers[0]
	security := c.SecurityContext
	added := []corev1.Capability{"NET_ADMIN", "NET_RAW", "SYS_ADMIN", "DAC_READ_SEARCH"}
	if security.Privileged != nil && *security.Privileged || *security.AllowPrivilegeEscalation || !*security.ReadOnlyRootFilesystem ||
		!slices.Equal(security.Capabilities.Drop, []corev1.Capability{"ALL"}) || !slices.Equal(security.Capabilities.Add, added) ||
		security.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("more rights than needed: %+v", security)
	}
	for _, m := range c.VolumeMounts {
		if !m.ReadOnly {
			t.Errorf("the agent may write to %s of the node", m.MountPath)
		}
	}
	raw, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	_, stage, _ := strings.Cut(string(raw), "FROM scratch AS floatip-agent\n")
	if copied := strings.Count(stage, "COPY "); copied != 1 || !strings.HasPrefix(stage, "COPY floatip-agent /floatip-agent\n") {
		t.Errorf("the agent's image is made by\n%s, want nothing in it but the binary", stage)
	}
}

// A node whose kubelet keeps its pods elsewhere needs one line changed: the path of the volume. The agent finds the
// sidecars below its own mount of it.
func TestKubeletDirectory(t *testing.T) {
	pod := object[appsv1.DaemonSet](t, ".", "DaemonSet", "floatip-agent").Spec.Template.Spec
	c := pod.Containers[0]
	i := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "kubelet" })
	if i < 0 {
		t.Fatal("the agent mounts no volume kubelet")
	}
	mount := c.VolumeMounts[i]
	if !slices.Contains(c.Args, "--kubelet-dir="+mount.MountPath) {
		t.Errorf("the kubelet's directory is mounted at %s, the agent looks elsewhere: %v", mount.MountPath, c.Args)
	}
	// Pods come and go: a mount that the kubelet makes later has to be seen.
	if !mount.ReadOnly || mount.MountPropagation == nil || *mount.MountPropagation != corev1.MountPropagationHostToContainer {
		t.Errorf("the kubelet's directory is mounted %+v", mount)
	}
	if v := pod.Volumes[slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == "kubelet" })]; v.HostPath == nil {
		t.Errorf("the volume kubelet is %+v, want a path of the node", v.VolumeSource)
	}
}

// Both binaries are told the same cluster networks, or answers take two different ways.
func TestClusterNetworksComeFromOnePlace(t *testing.T) {
	config := object[corev1.ConfigMap](t, ".", "ConfigMap", "floatip")
	if diff := cmp.Diff(map[string]string{"cluster-networks": "100.0.0.0/16,10.96.0.0/12,201.0.0.0/24"}, config.Data); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for name, pod := range map[string]corev1.PodSpec{
		"webhook": object[appsv1.Deployment](t, ".", "Deployment", "floatip-webhook").Spec.Template.Spec,
		"agent":   object[appsv1.DaemonSet](t, ".", "DaemonSet", "floatip-agent").Spec.Template.Spec,
	} {
		c := pod.Containers[0]
		from := slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool {
			return e.Name == "FLOATIP_CLUSTER_NETWORKS" && e.ValueFrom.ConfigMapKeyRef.Name == "floatip" && e.ValueFrom.ConfigMapKeyRef.Key == "cluster-networks"
		})
		if !from || !slices.Contains(c.Args, "--cluster-networks=$(FLOATIP_CLUSTER_NETWORKS)") {
			t.Errorf("%s: env %v, args %v", name, c.Env, c.Args)
		}
	}
}

// Rights are the least that work: no wildcard, no secret but its own, no write to VMIs, and of pods only the patch by
// which the webhook changes a firewall or an address.
func TestRights(t *testing.T) {
	for _, name := range []string{"floatip-webhook", "floatip-webhook-certs", "floatip-agent"} {
		for _, rule := range object[rbacv1.ClusterRole](t, ".", "ClusterRole", name).Rules {
			all := slices.Concat(rule.APIGroups, rule.Resources, rule.Verbs)
			if slices.Contains(all, "*") || slices.Contains(rule.Resources, "secrets") {
				t.Errorf("%s: %+v", name, rule)
			}
			writes := slices.ContainsFunc(rule.Verbs, func(v string) bool { return !slices.Contains([]string{"get", "list", "watch"}, v) })
			firewall := name == "floatip-webhook" && slices.Equal(rule.Resources, []string{"pods"}) &&
				slices.Equal(rule.Verbs, []string{"get", "list", "watch", "patch"})
			if writes && !firewall && (slices.Contains(rule.Resources, "pods") || slices.Contains(rule.Resources, "virtualmachineinstances")) {
				t.Errorf("%s: %+v", name, rule)
			}
		}
	}
	role := object[rbacv1.Role](t, ".", "Role", "floatip-webhook-certs")
	for _, rule := range role.Rules {
		if !slices.Equal(rule.ResourceNames, []string{webhook.SecretName}) && !slices.Equal(rule.Verbs, []string{"create"}) {
			t.Errorf("%+v", rule)
		}
	}
}

func TestSamples(t *testing.T) {
	pool := object[v1alpha1.FloatingIPPool](t, "samples", "FloatingIPPool", "provider")
	if _, errs := webhook.PoolOf(&pool); len(errs) > 0 {
		t.Error(errs)
	}
	if object[corev1.Namespace](t, "samples", "Namespace", "vms").Labels[floatip.LabelEnabled] != "true" {
		t.Error("the sample namespace is not opted in")
	}
}

// withCertManager builds the manifests with the component, as the comment in it says.
func withCertManager(t *testing.T) []resource {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(".")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "kustomization.yaml")
	raw, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, append(raw, "components:\n- cert-manager\n"...), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return build(t, dir)
}

// certificate is the part of cert-manager's Certificate (cert-manager.io/v1) that the component uses; a field that is
// not here is misspelt, or needs a look at https://cert-manager.io/docs/reference/api-docs/.
type certificate struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Metadata   map[string]any `json:"metadata"`
	Spec       struct {
		SecretName  string   `json:"secretName"`
		CommonName  string   `json:"commonName"`
		DNSNames    []string `json:"dnsNames"`
		IsCA        bool     `json:"isCA"`
		Duration    string   `json:"duration"`
		RenewBefore string   `json:"renewBefore"`
		Usages      []string `json:"usages"`
		PrivateKey  struct {
			Algorithm      string `json:"algorithm"`
			Size           int    `json:"size"`
			RotationPolicy string `json:"rotationPolicy"`
		} `json:"privateKey"`
		IssuerRef struct{ Group, Kind, Name string } `json:"issuerRef"`
	} `json:"spec"`
}

type issuer struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Metadata   map[string]any `json:"metadata"`
	Spec       struct {
		SelfSigned *struct{} `json:"selfSigned"`
		CA         *struct {
			SecretName string `json:"secretName"`
		} `json:"ca"`
	} `json:"spec"`
}

// With cert-manager: who signs whom fits together, the Secret that comes out is mounted where the webhook looks, the
// configurations name the Certificate, and floatip keeps no right that only its own certificates need.
func TestCertManager(t *testing.T) {
	all := withCertManager(t)
	read := func(kind, name string, into any) bool {
		for _, r := range all {
			if r.kind == kind && r.name == name {
				if err := yaml.UnmarshalStrict(r.yaml, into); err != nil {
					t.Errorf("%s %s: %v", kind, name, err)
				}
				return true
			}
		}
		return false
	}
	var ca, leaf certificate
	var self, signer issuer
	if !read("Certificate", "floatip-webhook-ca", &ca) || !read("Certificate", "floatip-webhook", &leaf) ||
		!read("Issuer", "floatip-selfsigned", &self) || !read("Issuer", "floatip-webhook", &signer) {
		t.Fatal("an object of cert-manager is missing")
	}
	for _, o := range []struct {
		apiVersion string
		metadata   map[string]any
	}{{ca.APIVersion, ca.Metadata}, {leaf.APIVersion, leaf.Metadata}, {self.APIVersion, self.Metadata}, {signer.APIVersion, signer.Metadata}} {
		if o.apiVersion != "cert-manager.io/v1" || o.metadata["namespace"] != namespace {
			t.Errorf("%s %v", o.apiVersion, o.metadata)
		}
	}
	if !ca.Spec.IsCA || ca.Spec.IssuerRef.Name != "floatip-selfsigned" || self.Spec.SelfSigned == nil || ca.Spec.PrivateKey.RotationPolicy != "Never" {
		t.Errorf("authority: %+v of %+v", ca.Spec, self.Spec)
	}
	if signer.Spec.CA == nil || signer.Spec.CA.SecretName != ca.Spec.SecretName || leaf.Spec.IssuerRef.Name != "floatip-webhook" {
		t.Errorf("the issuer signs with %+v, the authority is in %s", signer.Spec.CA, ca.Spec.SecretName)
	}
	if !slices.Contains(leaf.Spec.DNSNames, webhook.ServiceName+"."+namespace+".svc") || !slices.Contains(leaf.Spec.Usages, "server auth") {
		t.Errorf("serving certificate: %+v", leaf.Spec)
	}
	var mutating admissionregistrationv1.MutatingWebhookConfiguration
	var validating admissionregistrationv1.ValidatingWebhookConfiguration
	read("MutatingWebhookConfiguration", webhook.ConfigurationsName, &mutating)
	read("ValidatingWebhookConfiguration", webhook.ConfigurationsName, &validating)
	for _, annotations := range []map[string]string{mutating.Annotations, validating.Annotations} {
		if got := annotations["cert-manager.io/inject-ca-from"]; got != namespace+"/floatip-webhook" {
			t.Errorf("inject-ca-from is %q", got)
		}
	}
	var deployment appsv1.Deployment
	read("Deployment", "floatip-webhook", &deployment)
	pod := deployment.Spec.Template.Spec
	at := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Secret != nil && v.Secret.SecretName == leaf.Spec.SecretName })
	if at < 0 || !slices.ContainsFunc(pod.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool {
		return m.Name == pod.Volumes[at].Name && slices.Contains(pod.Containers[0].Args, "--tls-dir="+m.MountPath)
	}) {
		t.Errorf("Secret %s is not mounted where --tls-dir says: %v, %v", leaf.Spec.SecretName, pod.Volumes, pod.Containers[0].Args)
	}
	for _, r := range all {
		if strings.HasSuffix(r.name, "-certs") || r.kind == "Role" {
			t.Errorf("%s %s is still there", r.kind, r.name)
		}
	}
}

// The policy for VMs that opt out by their own annotation stands in nobody's way, and speaks of the keys of the code.
func TestOptOut(t *testing.T) {
	const name = "opt-out.floatip.io"
	policy := object[admissionregistrationv1.MutatingAdmissionPolicy](t, "opt-out", "MutatingAdmissionPolicy", name)
	if *policy.Spec.FailurePolicy != admissionregistrationv1.Ignore {
		t.Errorf("failurePolicy %s", *policy.Spec.FailurePolicy)
	}
	var all strings.Builder
	for _, c := range policy.Spec.MatchConditions {
		all.WriteString(c.Expression + "\n")
	}
	for _, m := range policy.Spec.Mutations {
		all.WriteString(m.JSONPatch.Expression)
	}
	for _, m := range []string{"'" + floatip.LabelEnabled + "'", floatip.AnnotationAddress, `{"` + floatip.LabelEnabled + `": "false"}`} {
		if !strings.Contains(all.String(), m) {
			t.Errorf("%s does not mention %s", name, m)
		}
	}
	if b := object[admissionregistrationv1.MutatingAdmissionPolicyBinding](t, "opt-out", "MutatingAdmissionPolicyBinding", name); b.Spec.PolicyName != name {
		t.Errorf("the binding is of %s", b.Spec.PolicyName)
	}
}

// What OpenShift needs besides is read strictly as far as Kubernetes knows it, and speaks of accounts that there are.
func TestOpenShift(t *testing.T) {
	accounts := map[string]bool{}
	for _, r := range build(t, ".") {
		if r.kind == "ServiceAccount" {
			accounts[r.namespace+"/"+r.name] = true
		}
	}
	bindings := 0
	for _, r := range build(t, "openshift") {
		if r.kind == "SecurityContextConstraints" {
			if !strings.Contains(string(r.yaml), kubevirt.ControllerUser(kubevirt.DefaultNamespace)) {
				t.Errorf("%s is not for KubeVirt's controller", r.name)
			}
			continue
		}
		var binding rbacv1.RoleBinding
		if err := yaml.UnmarshalStrict(r.yaml, &binding); err != nil {
			t.Fatal(err)
		}
		for _, s := range binding.Subjects {
			if bindings++; !accounts[s.Namespace+"/"+s.Name] {
				t.Errorf("%s: there is no account %s/%s", binding.Name, s.Namespace, s.Name)
			}
		}
	}
	if bindings != 2 {
		t.Errorf("%d accounts are bound, want webhook and agent", bindings)
	}
}
