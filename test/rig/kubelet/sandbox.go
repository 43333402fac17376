package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// sandbox is what the containers of one pod share.
type sandbox struct {
	// Network, UTS and IPC are paths of namespaces.
	Network, UTS, IPC string
	// Etc is the folder of the files that a runtime puts into every container's /etc.
	Etc       string
	Addresses []netip.Addr
}

// netnsLink is the name of the link in a pod's folder that leads to its network namespace.
const netnsLink = "netns"

func hostname(pod *corev1.Pod) string {
	switch {
	case pod.Spec.HostNetwork:
		return pod.Spec.NodeName
	case pod.Spec.Hostname != "":
		return pod.Spec.Hostname
	}
	return pod.Name
}

// makeSandbox plugs the pod into the network and makes what its containers share. What exists already is kept.
func (k *Kubelet) makeSandbox(ctx context.Context, pod *corev1.Pod) (sandbox, error) {
	dir := k.paths.pod(pod.UID)
	s := sandbox{UTS: filepath.Join(dir, "uts"), IPC: filepath.Join(dir, "ipc"), Etc: filepath.Join(dir, "etc")}
	if err := os.MkdirAll(s.Etc, 0o755); err != nil {
		return s, err
	}
	if pod.Spec.HostNetwork {
		s.Network, s.Addresses = k.node.Namespace, []netip.Addr{k.node.Address, k.node.Address6}
	} else {
		plugged, err := k.lan.AddPod(k.node.Name, string(pod.UID))
		if err != nil {
			return s, err
		}
		s.Network, s.Addresses = plugged.Namespace, []netip.Addr{plugged.Address, plugged.Address6}
	}
	if err := symlink(s.Network, filepath.Join(dir, netnsLink)); err != nil {
		return s, err
	}
	if err := pinNamespaces(ctx, s, hostname(pod)); err != nil {
		return s, err
	}
	return s, writeEtc(s, hostname(pod))
}

// pinNamespaces makes UTS and IPC namespaces that live as long as the files they are mounted on.
func pinNamespaces(ctx context.Context, s sandbox, name string) error {
	if mounted(s.UTS) && mounted(s.IPC) {
		return nil
	}
	for _, path := range []string{s.UTS, s.IPC} {
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			return err
		}
	}
	out, err := exec.CommandContext(ctx, "unshare", "--uts="+s.UTS, "--ipc="+s.IPC, "hostname", name).CombinedOutput()
	if err != nil {
		return fmt.Errorf("make UTS and IPC namespaces: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func writeEtc(s sandbox, name string) error {
	hosts := fmt.Sprintf("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"+
		"::1\tlocalhost ip6-localhost ip6-loopback\n%s\t%s\n", s.Addresses[0], name)
	return errors.Join(
		os.WriteFile(filepath.Join(s.Etc, "hosts"), []byte(hosts), 0o644),
		os.WriteFile(filepath.Join(s.Etc, "hostname"), []byte(name+"\n"), 0o644),
		// The rig has no cluster DNS.
		os.WriteFile(filepath.Join(s.Etc, "resolv.conf"), nil, 0o644),
	)
}

// removeSandbox ends what makeSandbox made. It is fine if there is nothing.
func (k *Kubelet) removeSandbox(pod *corev1.Pod) error {
	dir := k.paths.pod(pod.UID)
	errs := []error{os.RemoveAll(filepath.Join(dir, netnsLink))}
	for _, name := range []string{"uts", "ipc"} {
		errs = append(errs, unmount(filepath.Join(dir, name)))
	}
	if !pod.Spec.HostNetwork {
		errs = append(errs, k.lan.DelPod(k.node.Name, string(pod.UID)))
	}
	return errors.Join(errs...)
}

func symlink(target, path string) error {
	if current, err := os.Readlink(path); err == nil && current == target {
		return nil
	}
	return errors.Join(os.RemoveAll(path), os.Symlink(target, path))
}

// mounted reports whether a namespace is mounted on the file.
func mounted(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// unmount takes whatever is mounted on path away. It is fine if nothing is.
func unmount(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("unmount %s: %w", path, err)
}
