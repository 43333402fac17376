package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// defaultMode is that of files whose volume names none (Kubernetes API, defaultMode).
const defaultMode = 0o644

// volumeFiles returns kubelet's name for the kind of a volume that holds data of the API, and its files.
func (k *Kubelet) volumeFiles(
	ctx context.Context, pod *corev1.Pod, v *corev1.Volume,
) (plugin string, files map[string]file, err error) {
	switch {
	case v.DownwardAPI != nil:
		files, err = downwardFiles(pod, v.DownwardAPI.Items, v.DownwardAPI.DefaultMode)
		plugin = "downward-api"
	case v.ConfigMap != nil:
		s := v.ConfigMap
		files, err = k.configMapFiles(ctx, pod, s.Name, s.Items, s.DefaultMode, s.Optional)
		plugin = "configmap"
	case v.Secret != nil:
		s := v.Secret
		files, err = k.secretFiles(ctx, pod, s.SecretName, s.Items, s.DefaultMode, s.Optional)
		plugin = "secret"
	case v.Projected != nil:
		files, err = k.projectedFiles(ctx, pod, v)
		plugin = "projected"
	default:
		return "", nil, errors.New("a kind of volume that the rig does not have")
	}
	return plugin, ownedBy(files, fsGroup(pod)), err
}

// ownedBy gives files to a group, which may then read them.
func ownedBy(files map[string]file, group *int64) map[string]file {
	if group == nil {
		return files
	}
	for name, f := range files {
		f.gid, f.mode = group, f.mode|0o440
		files[name] = f
	}
	return files
}

func downwardFiles(pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, mode *int32) (map[string]file, error) {
	files := map[string]file{}
	for _, item := range items {
		var value string
		var err error
		if item.FieldRef != nil {
			value, err = podField(pod, item.FieldRef.FieldPath)
		} else {
			value, err = containerField(pod, "", item.ResourceFieldRef)
		}
		if err != nil {
			return nil, err
		}
		files[item.Path] = file{data: []byte(value), mode: fileMode(item.Mode, mode)}
	}
	return files, nil
}

func fileMode(own, common *int32) fs.FileMode {
	return fs.FileMode(deref(own, deref(common, defaultMode)))
}

func (k *Kubelet) configMapFiles(
	ctx context.Context, pod *corev1.Pod, name string, items []corev1.KeyToPath, mode *int32, optional *bool,
) (map[string]file, error) {
	data, err := k.configMap(ctx, pod.Namespace, name)
	if err := ignoreMissing(err, optional); err != nil {
		return nil, err
	}
	return selectKeys(data, items, mode, deref(optional, false))
}

func (k *Kubelet) secretFiles(
	ctx context.Context, pod *corev1.Pod, name string, items []corev1.KeyToPath, mode *int32, optional *bool,
) (map[string]file, error) {
	data, err := k.secret(ctx, pod.Namespace, name)
	if err := ignoreMissing(err, optional); err != nil {
		return nil, err
	}
	return selectKeys(data, items, mode, deref(optional, false))
}

// selectKeys makes files of all keys, or of those that items name.
func selectKeys(data map[string][]byte, items []corev1.KeyToPath, mode *int32, optional bool) (map[string]file, error) {
	files := map[string]file{}
	if len(items) == 0 {
		for key, value := range data {
			files[key] = file{data: value, mode: fileMode(nil, mode)}
		}
	}
	for _, item := range items {
		value, ok := data[item.Key]
		if !ok && !optional {
			return nil, fmt.Errorf("no key %q", item.Key)
		}
		if ok {
			files[item.Path] = file{data: value, mode: fileMode(item.Mode, mode)}
		}
	}
	return files, nil
}

func (k *Kubelet) projectedFiles(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (map[string]file, error) {
	all := map[string]file{}
	mode := v.Projected.DefaultMode
	for _, source := range v.Projected.Sources {
		var files map[string]file
		var err error
		switch {
		case source.ServiceAccountToken != nil:
			files, err = k.tokenFile(ctx, pod, v.Name, source.ServiceAccountToken)
		case source.ConfigMap != nil:
			s := source.ConfigMap
			files, err = k.configMapFiles(ctx, pod, s.Name, s.Items, mode, s.Optional)
		case source.Secret != nil:
			s := source.Secret
			files, err = k.secretFiles(ctx, pod, s.Name, s.Items, mode, s.Optional)
		case source.DownwardAPI != nil:
			files, err = downwardFiles(pod, source.DownwardAPI.Items, mode)
		default:
			err = errors.New("a projected source that the rig does not have")
		}
		if err != nil {
			return nil, err
		}
		for name, f := range files {
			all[name] = f
		}
	}
	return all, nil
}

// issuedToken is a token that the API server issued for a volume.
type issuedToken struct {
	token string
	renew time.Time
}

// tokenFile returns the service account token for a volume: the one it has, or a new one after four fifths of its
// life, as kubelet does (k8s.io/kubernetes pkg/kubelet/token).
func (k *Kubelet) tokenFile(
	ctx context.Context, pod *corev1.Pod, volume string, source *corev1.ServiceAccountTokenProjection,
) (map[string]file, error) {
	key := string(pod.UID) + "/" + volume + "/" + source.Path
	k.tokensMu.Lock()
	defer k.tokensMu.Unlock()
	if old, ok := k.tokens[key]; ok && time.Now().Before(old.renew) {
		return map[string]file{source.Path: tokenFileOf(pod, old.token)}, nil
	}
	seconds := deref(source.ExpirationSeconds, int64(time.Hour/time.Second))
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef: &authenticationv1.BoundObjectReference{
			APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID,
		},
	}}
	if source.Audience != "" {
		request.Spec.Audiences = []string{source.Audience}
	}
	answer, err := k.client.CoreV1().ServiceAccounts(pod.Namespace).
		CreateToken(ctx, pod.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("token of service account %s: %w", pod.Spec.ServiceAccountName, err)
	}
	life := time.Until(answer.Status.ExpirationTimestamp.Time)
	k.tokens[key] = issuedToken{answer.Status.Token, time.Now().Add(life * 4 / 5)}
	return map[string]file{source.Path: tokenFileOf(pod, answer.Status.Token)}, nil
}

// tokenFileOf gives the token to the user of the pod's containers if they have one in common, and lets only that user
// read it; without one, everybody may, as kubelet decides it.
func tokenFileOf(pod *corev1.Pod, token string) file {
	f := file{data: []byte(token), mode: 0o644}
	if pod.Spec.SecurityContext != nil && pod.Spec.SecurityContext.FSGroup != nil {
		f.mode = 0o600
		return f
	}
	if user, ok := commonUser(pod); ok {
		f.mode, f.uid = 0o600, &user
	}
	return f
}

// commonUser returns the user that all containers of the pod run as, if the Pod object says so.
func commonUser(pod *corev1.Pod) (int64, bool) {
	var common *int64
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			user := securityOf(pod, &list[i]).RunAsUser
			if user == nil || common != nil && *common != *user {
				return 0, false
			}
			common = user
		}
	}
	return deref(common, 0), common != nil
}
