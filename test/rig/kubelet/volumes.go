package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// mountVolumes makes every volume of the pod available on this machine and returns where: volume name -> path. It may
// be called again, which refreshes the volumes that hold data of the API.
func (k *Kubelet) mountVolumes(ctx context.Context, pod *corev1.Pod) (map[string]string, error) {
	mounted := map[string]string{}
	var errs []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		path, err := k.mountVolume(ctx, pod, v)
		if err != nil {
			errs = append(errs, fmt.Errorf("mount volume %s: %w", v.Name, err))
			continue
		}
		mounted[v.Name] = path
	}
	return mounted, errors.Join(errs...)
}

func (k *Kubelet) mountVolume(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (string, error) {
	switch {
	case v.EmptyDir != nil:
		path := k.paths.volume(pod.UID, "empty-dir", v.Name)
		return path, makeEmptyDir(path, fsGroup(pod))
	case v.HostPath != nil:
		path := k.paths.host(v.HostPath.Path)
		return path, prepareHostPath(path, deref(v.HostPath.Type, corev1.HostPathUnset))
	case v.PersistentVolumeClaim != nil:
		return k.claimedHostPath(ctx, pod.Namespace, v.PersistentVolumeClaim.ClaimName)
	}
	plugin, files, err := k.volumeFiles(ctx, pod, v)
	if err != nil {
		return "", err
	}
	path := k.paths.volume(pod.UID, plugin, v.Name)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return "", err
	}
	return path, writeAtomically(path, files)
}

// makeEmptyDir makes a folder that everybody may write to. With an fsGroup, what is made in it belongs to that group
// (k8s.io/kubernetes pkg/volume/volume_linux.go).
func makeEmptyDir(path string, group *int64) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	mode := os.FileMode(0o777)
	if group != nil {
		if err := os.Chown(path, -1, int(*group)); err != nil {
			return err
		}
		mode |= fs.ModeSetgid
	}
	return os.Chmod(path, mode)
}

// prepareHostPath makes what a hostPath type asks for. On a real node most of these paths exist already; the rig's
// nodes begin empty, so a folder is made for the unset type as well.
func prepareHostPath(path string, kind corev1.HostPathType) error {
	switch kind {
	case corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate, corev1.HostPathDirectory:
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		return os.MkdirAll(path, 0o755)
	case corev1.HostPathFileOrCreate:
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	}
	_, err := os.Stat(path)
	return err
}

// claimedHostPath follows a claim to its volume, which must be a hostPath.
func (k *Kubelet) claimedHostPath(ctx context.Context, namespace, claim string) (string, error) {
	pvc, err := k.client.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, claim, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	if pvc.Status.Phase != corev1.ClaimBound {
		return "", fmt.Errorf("claim %s/%s is %s, not bound", namespace, claim, pvc.Status.Phase)
	}
	pv, err := k.client.CoreV1().PersistentVolumes().Get(ctx, pvc.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	if pv.Spec.HostPath == nil {
		return "", fmt.Errorf("claim %s/%s: volume %s is no hostPath, which is all that the rig has", namespace, claim, pv.Name)
	}
	path := k.paths.host(pv.Spec.HostPath.Path)
	return path, os.MkdirAll(path, 0o755)
}

func fsGroup(pod *corev1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}
