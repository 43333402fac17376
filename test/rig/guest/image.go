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
)

//go:embed rootfs
var rootfs embed.FS

// agentPackage is compiled for the guest; Build has to run inside floatip's module.
const agentPackage = "floatip.io/floatip/test/rig/guest/agent"

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
	kernel, err := findKernel(ctx, filepath.Join(cacheDir, "kernel"))
	if err != nil {
		return Image{}, err
	}
	tree, err := userland(ctx, cacheDir, kernel)
	if err != nil {
		return Image{}, fmt.Errorf("guest image: %w", err)
	}
	// The host key differs at each making: it is no part of the name.
	sum := sha256.Sum256(tree.bytes())
	image := Image{kernel.image, filepath.Join(cacheDir, "initrd-"+hex.EncodeToString(sum[:8])+".cpio")}
	if _, err := os.Stat(image.Initrd); err == nil {
		return image, nil
	}
	if err := addHostKey(ctx, cacheDir, tree); err != nil {
		return Image{}, fmt.Errorf("guest image: %w", err)
	}
	return image, writeWhole(image.Initrd, tree.bytes())
}

// userland is everything in the initramfs but the SSH host key.
func userland(ctx context.Context, cacheDir string, kernel kernel) (archive, error) {
	tree := archive{}
	for _, folder := range []string{"dev", "proc", "sys", "tmp", "root", "run", "etc/dropbear", "var/run"} {
		tree.dir(folder)
	}
	tree.link("sbin", "bin")
	tree.link("usr", ".")
	steps := []error{
		tree.addRootfs(),
		tree.addModules(kernel),
		tree.addBusybox(ctx),
		tree.addProgram("dropbear", "dropbear-bin"),
		tree.addAgent(ctx, cacheDir),
	}
	for _, err := range steps {
		if err != nil {
			return nil, err
		}
	}
	return tree, nil
}

// addRootfs adds the guest's own files; scripts are executable.
func (a archive) addRootfs() error {
	return fs.WalkDir(rootfs, "rootfs", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := rootfs.ReadFile(path)
		mode := fs.FileMode(0o644)
		if bytes.HasPrefix(content, []byte("#!")) {
			mode = 0o755
		}
		a.file(strings.TrimPrefix(path, "rootfs/"), mode, content)
		return err
	})
}

func (a archive) addModules(kernel kernel) error {
	var order strings.Builder
	for _, path := range kernel.modules {
		name := filepath.Base(path)
		if err := a.copy("lib/modules/"+name, path, 0o644); err != nil {
			return err
		}
		order.WriteString(name + "\n")
	}
	a.file("lib/modules/order", 0o644, []byte(order.String()))
	return nil
}

// addBusybox adds the static busybox under each of its names.
func (a archive) addBusybox(ctx context.Context) error {
	busybox, err := program("busybox", "busybox-static")
	if err != nil {
		return err
	}
	applets, err := output(ctx, "", busybox, "--list")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(applets)) {
		a.link("bin/"+name, "busybox")
	}
	return a.copy("bin/busybox", busybox, 0o755)
}

// addProgram adds a program of this machine with the shared libraries it needs.
func (a archive) addProgram(name, debianPackage string) error {
	path, err := program(name, debianPackage)
	if err != nil {
		return err
	}
	needed, err := libraries(path)
	if err != nil {
		return err
	}
	for _, library := range needed {
		if err := a.copy(strings.TrimPrefix(library, "/"), library, 0o755); err != nil {
			return err
		}
	}
	return a.copy("bin/"+name, path, 0o755)
}

func (a archive) addAgent(ctx context.Context, cacheDir string) error {
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
	return a.copy("bin/agent", path, 0o755)
}

func (a archive) copy(name, path string, mode fs.FileMode) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	a.file(name, mode, content)
	return nil
}

// addHostKey gives the guest an SSH identity, so that it need not make one at each boot.
func addHostKey(ctx context.Context, cacheDir string, tree archive) error {
	keygen, err := program("dropbearkey", "dropbear-bin")
	if err != nil {
		return err
	}
	folder, err := os.MkdirTemp(cacheDir, "hostkey-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	key := filepath.Join(folder, "host_key")
	if _, err := output(ctx, folder, keygen, "-t", "ed25519", "-f", key); err != nil {
		return err
	}
	return tree.copy("etc/dropbear/host_key", key, 0o600)
}

// program finds an executable also where only root's PATH looks.
func program(name, debianPackage string) (string, error) {
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed: apt-get install %s", name, debianPackage)
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
