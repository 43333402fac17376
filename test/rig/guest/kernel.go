package guest

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// kernelPackage is Debian's meta package; it depends on the image itself.
const kernelPackage = "linux-image-cloud-amd64"

// guestModules is what the guest's devices need beyond the built-in drivers of Debian's cloud kernel.
var guestModules = []string{"virtio_pci", "virtio_net", "virtio_console", "virtio_blk", "virtio_rng", "evdev", "button"}

// kernel is an unpacked kernel package.
type kernel struct {
	image string
	// modules are file names in the order of loading.
	modules []string
}

// findKernel uses the package unpacked in folder by an earlier call, and else downloads and unpacks the current one
// with apt-get. To move to a newer kernel, delete the folder.
func findKernel(ctx context.Context, folder string) (kernel, error) {
	if _, err := os.Stat(folder); errors.Is(err, os.ErrNotExist) {
		if err := unpackKernel(ctx, folder); err != nil {
			return kernel{}, err
		}
	}
	images, err := filepath.Glob(filepath.Join(folder, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return kernel{}, fmt.Errorf("guest kernel: want one boot/vmlinuz-* in %s, found %d; delete the folder to "+
			"download it again", folder, len(images))
	}
	modules, err := moduleOrder(filepath.Join(folder, "lib", "modules"), guestModules)
	return kernel{images[0], modules}, err
}

// unpackKernel leaves folder complete or absent. Of several at once the first counts: they have the same package.
func unpackKernel(ctx context.Context, folder string) error {
	staging, err := os.MkdirTemp(filepath.Dir(folder), "kernel-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(staging) }() // renamed away on success
	name, err := kernelImagePackage(ctx)
	if err != nil {
		return err
	}
	if _, err := output(ctx, staging, "apt-get", "download", "-q", name); err != nil {
		return fmt.Errorf("download the guest kernel: %w (is the package list current? apt-get update)", err)
	}
	packages, err := filepath.Glob(filepath.Join(staging, "*.deb"))
	if err != nil || len(packages) != 1 {
		return fmt.Errorf("download the guest kernel: apt-get left %d packages, want 1", len(packages))
	}
	unpacked := filepath.Join(staging, "unpacked")
	if _, err := output(ctx, staging, "dpkg", "-x", packages[0], unpacked); err != nil {
		return fmt.Errorf("unpack the guest kernel: %w", err)
	}
	if err := os.Rename(unpacked, folder); !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// kernelImagePackage follows the meta package to the image.
func kernelImagePackage(ctx context.Context) (string, error) {
	text, err := output(ctx, "", "apt-cache", "depends", kernelPackage)
	if err != nil {
		return "", fmt.Errorf("find the guest kernel: %w (the rig's guest needs Debian's package %s)", err, kernelPackage)
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		if name, ok := strings.CutPrefix(strings.TrimSpace(lines.Text()), "Depends: "); ok {
			return name, nil
		}
	}
	return "", fmt.Errorf("find the guest kernel: %s depends on no image (is the package list current? apt-get update)",
		kernelPackage)
}

// moduleOrder finds modules by name below folder, each behind those it depends on.
func moduleOrder(folder string, names []string) ([]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(folder, func(path string, _ os.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			files[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("guest kernel modules: %w", err)
	}
	var order []string
	placed := map[string]bool{}
	var place func(name string) error
	place = func(name string) error {
		if placed[name] {
			return nil
		}
		placed[name] = true
		depends, err := moduleDepends(files[name])
		if err != nil {
			return fmt.Errorf("guest kernel module %s: %w", name, err)
		}
		for _, dependency := range depends {
			if err := place(dependency); err != nil {
				return err
			}
		}
		order = append(order, files[name])
		return nil
	}
	for _, name := range names {
		if err := place(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleDepends reads the "depends" field of a module's .modinfo section: the package has no modules.dep, which
// depmod writes at installation.
func moduleDepends(path string) (names []string, err error) {
	file, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	section := file.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(field, []byte("depends=")); ok && len(list) > 0 {
			return strings.Split(strings.ReplaceAll(string(list), "-", "_"), ","), nil
		}
	}
	return nil, nil
}

// output runs a command in folder; its error holds what the command said.
func output(ctx context.Context, folder, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = folder
	text, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cmd, err)
	}
	return text, nil
}
