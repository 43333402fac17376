package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"floatip.io/floatip/test/initramfs"
)

//go:embed rootfs
var rootfs embed.FS

// agentPackage is compiled for the guest; Build has to run inside floatip's module.
const agentPackage = "floatip.io/floatip/test/rig/guest/agent"

// guestModules is what the guest's devices need beyond the built-in drivers of Debian's cloud kernel.
var guestModules = []string{"virtio_pci", "virtio_net", "virtio_console", "virtio_blk", "virtio_rng", "evdev", "button"}

// Image is what a machine boots.
type Image struct {
	// Kernel and Initrd are paths of files that are never changed once they exist.
	Kernel, Initrd string
}

// Build makes the guest's image below cacheDir, or finds the one made earlier of the same parts. It needs the Debian
// packages busybox-static and dropbear-bin, and on its first call apt-get with a package source for the kernel.
func Build(ctx context.Context, cacheDir string) (Image, error) {
	cacheDir, err := filepath.Abs(cacheDir)
	if err != nil {
		return Image{}, fmt.Errorf("guest image: %w", err)
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return Image{}, fmt.Errorf("guest image: %w", err)
	}
	kernel, err := initramfs.FindKernel(ctx, filepath.Join(cacheDir, "kernel"))
	if err != nil {
		return Image{}, err
	}
	tree, err := userland(ctx, cacheDir, kernel)
	if err != nil {
		return Image{}, fmt.Errorf("guest image: %w", err)
	}
	// The host key differs at each making: it is no part of the name.
	sum := sha256.Sum256(tree.Bytes())
	image := Image{kernel.Image, filepath.Join(cacheDir, "initrd-"+hex.EncodeToString(sum[:8])+".cpio")}
	if _, err := os.Stat(image.Initrd); err == nil {
		return image, nil
	}
	if err := addHostKey(ctx, cacheDir, tree); err != nil {
		return Image{}, fmt.Errorf("guest image: %w", err)
	}
	return image, writeWhole(image.Initrd, tree.Bytes())
}

// userland is everything in the initramfs but the SSH host key.
func userland(ctx context.Context, cacheDir string, kernel initramfs.Kernel) (initramfs.Tree, error) {
	tree := initramfs.Tree{}
	for _, folder := range []string{"dev", "proc", "sys", "tmp", "root", "run", "etc/dropbear", "var/run"} {
		tree.Dir(folder)
	}
	tree.Link("sbin", "bin")
	tree.Link("usr", ".")
	steps := []error{
		addRootfs(tree),
		addModules(tree, kernel),
		tree.Busybox(ctx),
		tree.Program("dropbear", "dropbear-bin"),
		addAgent(ctx, cacheDir, tree),
	}
	for _, err := range steps {
		if err != nil {
			return nil, err
		}
	}
	return tree, nil
}

// addRootfs adds the guest's own files; scripts are executable.
func addRootfs(tree initramfs.Tree) error {
	return fs.WalkDir(rootfs, "rootfs", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := rootfs.ReadFile(path)
		mode := fs.FileMode(0o644)
		if bytes.HasPrefix(content, []byte("#!")) {
			mode = 0o755
		}
		tree.File(strings.TrimPrefix(path, "rootfs/"), mode, content)
		return err
	})
}

func addModules(tree initramfs.Tree, kernel initramfs.Kernel) error {
	var order strings.Builder
	files, err := kernel.Order(guestModules...)
	if err != nil {
		return err
	}
	for _, path := range files {
		name := filepath.Base(path)
		if err := tree.Copy("lib/modules/"+name, path, 0o644); err != nil {
			return err
		}
		order.WriteString(name + "\n")
	}
	tree.File("lib/modules/order", 0o644, []byte(order.String()))
	return nil
}

func addAgent(ctx context.Context, cacheDir string, tree initramfs.Tree) error {
	folder, err := os.MkdirTemp(cacheDir, "agent-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	path := filepath.Join(folder, "agent")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, agentPackage)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, text)
	}
	return tree.Copy("bin/agent", path, 0o755)
}

// addHostKey gives the guest an SSH identity, so that it need not make one at each boot.
func addHostKey(ctx context.Context, cacheDir string, tree initramfs.Tree) error {
	keygen, err := initramfs.Program("dropbearkey", "dropbear-bin")
	if err != nil {
		return err
	}
	folder, err := os.MkdirTemp(cacheDir, "hostkey-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	key := filepath.Join(folder, "host_key")
	if _, err := initramfs.Output(ctx, folder, keygen, "-t", "ed25519", "-f", key); err != nil {
		return err
	}
	return tree.Copy("etc/dropbear/host_key", key, 0o600)
}

// writeWhole makes the file appear complete or not at all.
func writeWhole(path string, content []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("guest image: %w", err)
	}
	_, err = file.Write(content)
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	return err
}
