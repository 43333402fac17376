package cluster

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip/test/rig/process"
)

// manifests are objects to create, in several steps.
type manifests struct {
	client  client.Client
	objects []unstructured.Unstructured
}

// kubeVirtManifests runs the command that generates KubeVirt's objects. It is a program of its own because KubeVirt's
// packages need another version of Kubernetes' libraries.
func (c *Cluster) kubeVirtManifests(ctx context.Context) (*manifests, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.opts.BinDir, "kubevirt-manifests"),
		"--namespace="+KubeVirtNamespace, "--address="+c.virtAPIAddress().String())
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := process.Run("", cmd); err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(errOut.String()))
	}
	var list struct{ Items []unstructured.Unstructured }
	if err := json.Unmarshal(out.Bytes(), &list); err != nil {
		return nil, err
	}
	direct, err := client.New(c.RESTConfig(), client.Options{})
	return &manifests{client: direct, objects: list.Items}, err
}

func (m *manifests) len() int { return len(m.objects) }

// selector is a condition on objects.
type selector func(*unstructured.Unstructured) bool

func isDefinition(o *unstructured.Unstructured) bool {
	return o.GetKind() == "CustomResourceDefinition"
}
func isNamespace(o *unstructured.Unstructured) bool { return o.GetKind() == "Namespace" }
func isWebhook(o *unstructured.Unstructured) bool {
	return strings.HasSuffix(o.GetKind(), "WebhookConfiguration") || o.GetKind() == "APIService"
}

func not(s selector) selector {
	return func(o *unstructured.Unstructured) bool { return !s(o) }
}

// inFlight is how many objects are created at once: enough to hide the round trips, few enough not to be throttled.
const inFlight = 8

// create creates the objects that any of the selectors wants and that have not been created yet.
func (m *manifests) create(ctx context.Context, wanted ...selector) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(inFlight)
	for i := range m.objects {
		object := &m.objects[i]
		if object.GetUID() != "" || !matches(object, wanted) {
			continue
		}
		group.Go(func() error {
			created := object.DeepCopy()
			if err := m.client.Create(ctx, created); err != nil {
				return fmt.Errorf("create %s %s: %w", object.GetKind(), object.GetName(), err)
			}
			// The rest stays as it was wanted: the answer has no status, for example.
			object.SetUID(created.GetUID())
			object.SetResourceVersion(created.GetResourceVersion())
			return nil
		})
	}
	return group.Wait()
}

func matches(o *unstructured.Unstructured, selectors []selector) bool {
	return slices.ContainsFunc(selectors, func(s selector) bool { return s(o) })
}

// established waits until the API server serves every definition.
func (m *manifests) established(ctx context.Context, progress process.Progress) error {
	for i := range m.objects {
		if !isDefinition(&m.objects[i]) {
			continue
		}
		definition := &m.objects[i]
		err := process.Wait(ctx, progress, "definition "+definition.GetName(), func(ctx context.Context) error {
			now := &unstructured.Unstructured{}
			now.SetGroupVersionKind(definition.GroupVersionKind())
			if err := m.client.Get(ctx, client.ObjectKeyFromObject(definition), now); err != nil {
				return err
			}
			if !conditionHolds(now, "Established") {
				return errors.New("not established yet")
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func conditionHolds(o *unstructured.Unstructured, name string) bool {
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, c := range conditions {
		if c, ok := c.(map[string]any); ok && c["type"] == name && c["status"] == string(metav1.ConditionTrue) {
			return true
		}
	}
	return false
}

// writeStatus writes the status of the objects of a kind, which creating an object leaves out.
func (m *manifests) writeStatus(ctx context.Context, kind string) error {
	for i := range m.objects {
		if m.objects[i].GetKind() != kind {
			continue
		}
		if err := m.client.Status().Update(ctx, m.objects[i].DeepCopy()); err != nil {
			return fmt.Errorf("write status of %s %s: %w", kind, m.objects[i].GetName(), err)
		}
	}
	return nil
}

// secretFiles writes the certificate and key of a TLS secret to files in dir, as the kubelet would mount them.
func (m *manifests) secretFiles(name, dir string) (pair, error) {
	for i := range m.objects {
		secret := &m.objects[i]
		if secret.GetKind() != "Secret" || secret.GetName() != name {
			continue
		}
		files := pair{cert: filepath.Join(dir, name+".crt"), key: filepath.Join(dir, name+".key")}
		return files, errors.Join(writeData(secret, "tls.crt", files.cert), writeData(secret, "tls.key", files.key))
	}
	return pair{}, fmt.Errorf("no Secret %s among the manifests", name)
}

func writeData(secret *unstructured.Unstructured, key, path string) error {
	text, _, err := unstructured.NestedString(secret.Object, "data", key)
	if err != nil {
		return err
	}
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return fmt.Errorf("secret %s, key %s: %w", secret.GetName(), key, err)
	}
	return os.WriteFile(path, data, 0o600)
}
