package kubelet

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"floatip.io/floatip/test/rig/lan"
)

// defaultPath is what container runtimes set when neither image nor pod does.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is an ordered list of variables, later values replacing earlier ones.
type environment struct {
	names  []string
	values map[string]string
}

func (e *environment) set(name, value string) {
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

func (e *environment) list() []string {
	var all []string
	for _, name := range e.names {
		all = append(all, name+"="+e.values[name])
	}
	return all
}

// environment resolves what a container of the pod finds in its environment: the image's, where the API server is, and
// the Pod object's own.
func (k *Kubelet) environment(
	ctx context.Context, pod *corev1.Pod, c *corev1.Container, image Image,
) (*environment, error) {
	env := &environment{values: map[string]string{}}
	for _, assignment := range append([]string{defaultPath, "HOSTNAME=" + hostname(pod)}, image.Env...) {
		name, value, _ := strings.Cut(assignment, "=")
		env.set(name, value)
	}
	env.set("KUBERNETES_SERVICE_HOST", lan.KubernetesService.Addr().String())
	env.set("KUBERNETES_SERVICE_PORT", fmt.Sprint(lan.KubernetesService.Port()))
	env.set("KUBERNETES_SERVICE_PORT_HTTPS", fmt.Sprint(lan.KubernetesService.Port()))
	for _, from := range c.EnvFrom {
		data, err := k.envFrom(ctx, pod.Namespace, from)
		if err != nil {
			return nil, err
		}
		for _, pair := range data {
			env.set(from.Prefix+pair[0], pair[1])
		}
	}
	for _, v := range c.Env {
		if v.ValueFrom == nil {
			env.set(v.Name, expand(v.Value, env.values))
			continue
		}
		value, found, err := k.envValue(ctx, pod, c.Name, v.ValueFrom)
		if err != nil {
			return nil, fmt.Errorf("environment variable %s: %w", v.Name, err)
		}
		if found {
			env.set(v.Name, value)
		}
	}
	return env, nil
}

// envFrom returns the pairs of a configMap or secret. The error is nil if an optional one is missing.
func (k *Kubelet) envFrom(ctx context.Context, namespace string, from corev1.EnvFromSource) ([][2]string, error) {
	var files map[string][]byte
	var err error
	switch {
	case from.ConfigMapRef != nil:
		files, err = k.configMap(ctx, namespace, from.ConfigMapRef.Name)
		err = ignoreMissing(err, from.ConfigMapRef.Optional)
	case from.SecretRef != nil:
		files, err = k.secret(ctx, namespace, from.SecretRef.Name)
		err = ignoreMissing(err, from.SecretRef.Optional)
	}
	var pairs [][2]string
	for _, name := range sortedKeys(files) {
		pairs = append(pairs, [2]string{name, string(files[name])})
	}
	return pairs, err
}

// envValue returns the value of one source; found is false where an optional source is missing.
func (k *Kubelet) envValue(
	ctx context.Context, pod *corev1.Pod, container string, from *corev1.EnvVarSource,
) (value string, found bool, err error) {
	var files map[string][]byte
	var key string
	var optional *bool
	switch {
	case from.FieldRef != nil:
		value, err = podField(pod, from.FieldRef.FieldPath)
		return value, err == nil, err
	case from.ResourceFieldRef != nil:
		value, err = containerField(pod, container, from.ResourceFieldRef)
		return value, err == nil, err
	case from.ConfigMapKeyRef != nil:
		key, optional = from.ConfigMapKeyRef.Key, from.ConfigMapKeyRef.Optional
		files, err = k.configMap(ctx, pod.Namespace, from.ConfigMapKeyRef.Name)
	case from.SecretKeyRef != nil:
		key, optional = from.SecretKeyRef.Key, from.SecretKeyRef.Optional
		files, err = k.secret(ctx, pod.Namespace, from.SecretKeyRef.Name)
	default:
		return "", false, fmt.Errorf("unknown source %v", from)
	}
	if err := ignoreMissing(err, optional); err != nil {
		return "", false, err
	}
	data, found := files[key]
	if !found && (optional == nil || !*optional) {
		return "", false, fmt.Errorf("no key %q", key)
	}
	return string(data), found, nil
}

func ignoreMissing(err error, optional *bool) error {
	if apierrors.IsNotFound(err) && optional != nil && *optional {
		return nil
	}
	return err
}

func (k *Kubelet) configMap(ctx context.Context, namespace, name string) (map[string][]byte, error) {
	cm, err := k.client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for key, value := range cm.Data {
		files[key] = []byte(value)
	}
	for key, value := range cm.BinaryData {
		files[key] = value
	}
	return files, nil
}

func (k *Kubelet) secret(ctx context.Context, namespace, name string) (map[string][]byte, error) {
	s, err := k.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return s.Data, nil
}

// expand replaces $(NAME) by the variable's value; an unknown name stays as it is, and $$ is a dollar sign
// (Kubernetes, "Define Dependent Environment Variables").
func expand(text string, values map[string]string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "$")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		text = rest
		if after, ok := strings.CutPrefix(rest, "$"); ok {
			b.WriteByte('$')
			text = after
			continue
		}
		name, after, closed := strings.Cut(strings.TrimPrefix(rest, "("), ")")
		if value, known := values[name]; known && closed && strings.HasPrefix(rest, "(") {
			b.WriteString(value)
			text = after
			continue
		}
		b.WriteByte('$')
	}
}

func expandAll(texts []string, values map[string]string) []string {
	var all []string
	for _, text := range texts {
		all = append(all, expand(text, values))
	}
	return all
}
