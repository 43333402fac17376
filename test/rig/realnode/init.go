package realnode

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Init is the first process of a node, in namespaces of its own (Command). It reads the configuration at path, makes the
// node's mounts, starts registry, containerd and kubelet, and returns when ctx is done or one of them has ended. Its own
// end ends everything in the node.
func Init(ctx context.Context, path string) error {
	if os.Getpid() != 1 {
		return errors.New("real-node is the first process of a PID namespace: start it by the rig")
	}
	c, err := read(path)
	if err != nil {
		return err
	}
	if err := c.mount(); err != nil {
		return err
	}
	images, err := openRegistry(c.path(imagesDir))
	if err != nil {
		return err
	}
	if err := images.serve(); err != nil {
		return err
	}
	// Containers are reaped here too: their shims are nobody else's children.
	children := newChildren()
	go children.reap()
	err = children.start(program{
		path: filepath.Join(c.Packages, containerdPrograms, "containerd"), args: []string{"--config", c.etc("containerd.toml")},
		log: c.path(runtimeLog), env: c.environment(),
	})
	if err != nil {
		return err
	}
	if err := awaitSocket(ctx, runtimeSock); err != nil {
		return err
	}
	err = children.start(program{
		path: c.Kubelet, args: c.kubeletFlags(), log: c.path(kubeletLog), env: c.environment(),
	})
	if err != nil {
		return err
	}
	log.Print("containerd and kubelet run")
	select {
	case <-ctx.Done():
		return nil
	case err := <-children.end:
		return err
	}
}

func (c Config) kubeletFlags() []string {
	return []string{
		"--config=" + c.etc("kubelet.yaml"), "--kubeconfig=" + c.Kubeconfig, "--root-dir=" + kubeletRoot,
		"--hostname-override=" + c.Name, "--node-ip=" + c.Address.String(), "--v=2",
	}
}

// environment lets containerd find its shim, and keeps temporary files in the node's folder.
func (c Config) environment() []string {
	return append(os.Environ(),
		"PATH="+filepath.Join(c.Packages, containerdPrograms)+":"+os.Getenv("PATH"), "TMPDIR="+c.path(tmpDir))
}

// globalSysctls are what kubelet writes that belongs to the whole machine (pkg/kubelet/cm/container_manager_linux.go,
// setupKernelTunables).
var globalSysctls = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

// mount makes the node's view of the machine's files. Nothing of it leaves the mount namespace.
func (c Config) mount() error {
	// The agent's and KubeVirt's pods want the mounts of the node to reach them (HostToContainer); that takes mounts
	// that are shared inside of the namespace.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	for from, to := range map[string]string{c.path(varLibDir): "/var/lib", c.path(varLogDir): "/var/log"} {
		if err := bind(from, to); err != nil {
			return err
		}
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	for _, name := range globalSysctls {
		if err := c.coverSysctl(name); err != nil {
			return err
		}
	}
	return nil
}

// coverSysctl puts a file with the value of a sysctl in its place, so that writing to it changes nothing.
func (c Config) coverSysctl(name string) error {
	sysctl := filepath.Join("/proc/sys", name)
	value, err := os.ReadFile(sysctl)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	cover := c.path(sysctlDir, name)
	if err := os.MkdirAll(filepath.Dir(cover), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(cover, value, 0o644); err != nil {
		return err
	}
	return bind(cover, sysctl)
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	// A bind mount of a shared mount belongs to its group; this one shall not.
	if err := unix.Mount("", to, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", to, err)
	}
	if err := unix.Mount("", to, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share %s: %w", to, err)
	}
	return nil
}

// socketPoll is how often to look for containerd's socket, which takes some tenths of a second.
const socketPoll = 20 * time.Millisecond

// awaitSocket waits until something accepts connections at path. The caller's context ends the wait.
func awaitSocket(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("containerd does not answer: %w", err)
		case <-time.After(socketPoll):
		}
	}
}
