package initramfs

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// kernelPackage is Debian's meta package; it depends on the image itself.
const kernelPackage = "linux-image-cloud-amd64"

// Kernel is an unpacked kernel package.
type Kernel struct {
	// Image is the file that boots, Release what uname -r says of it.
	Image, Release string
	// files are the modules by name, with "_" for each "-".
	files map[string]string
}

// FindKernel uses the package unpacked in folder by an earlier call, and else downloads and unpacks the current one
// with apt-get. To move to a newer kernel, delete the folder.
func FindKernel(ctx context.Context, folder string) (Kernel, error) {
	if _, err := os.Stat(folder); errors.Is(err, os.ErrNotExist) {
		if err := unpackKernel(ctx, folder); err != nil {
			return Kernel{}, err
		}
	}
	const image = "vmlinuz-"
	images, err := filepath.Glob(filepath.Join(folder, "boot", image+"*"))
	if err != nil || len(images) != 1 {
		return Kernel{}, fmt.Errorf("guest kernel: want one boot/%s* in %s, found %d; delete the folder to "+
			"download it again", image, folder, len(images))
	}
	k := Kernel{Image: images[0], Release: strings.TrimPrefix(filepath.Base(images[0]), image), files: map[string]string{}}
	err = filepath.WalkDir(k.folder(), func(path string, _ os.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			k.files[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	if err != nil {
		return Kernel{}, fmt.Errorf("guest kernel modules: %w", err)
	}
	return k, nil
}

// folder is where the modules lie.
func (k Kernel) folder() string {
	return filepath.Join(filepath.Dir(k.Image), "..", "lib", "modules", k.Release)
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
	if _, err := Output(ctx, staging, "apt-get", "download", "-q", name); err != nil {
		return fmt.Errorf("download the guest kernel: %w (is the package list current? apt-get update)", err)
	}
	packages, err := filepath.Glob(filepath.Join(staging, "*.deb"))
	if err != nil || len(packages) != 1 {
		return fmt.Errorf("download the guest kernel: apt-get left %d packages, want 1", len(packages))
	}
	unpacked := filepath.Join(staging, "unpacked")
	if _, err := Output(ctx, staging, "dpkg", "-x", packages[0], unpacked); err != nil {
		return fmt.Errorf("unpack the guest kernel: %w", err)
	}
	if err := os.Rename(unpacked, folder); !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// kernelImagePackage follows the meta package to the image.
func kernelImagePackage(ctx context.Context) (string, error) {
	text, err := Output(ctx, "", "apt-cache", "depends", kernelPackage)
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

// Order returns the files of the modules, each behind those it depends on.
func (k Kernel) Order(names ...string) ([]string, error) {
	var order []string
	placed := map[string]bool{}
	var place func(name string) error
	place = func(name string) error {
		if placed[name] {
			return nil
		}
		placed[name] = true
		depends, err := dependsOn(k.files[name])
		if err != nil {
			return fmt.Errorf("guest kernel module %s: %w", name, err)
		}
		for _, dependency := range depends {
			if err := place(dependency); err != nil {
				return err
			}
		}
		order = append(order, k.files[name])
		return nil
	}
	for _, name := range names {
		if err := place(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleInfo reads the values that a module's .modinfo section has for a key: the package has no modules.dep and
// modules.alias, which depmod writes at installation.
func moduleInfo(path, key string) (values []string, err error) {
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
	for field := range strings.SplitSeq(string(info), "\x00") {
		if value, ok := strings.CutPrefix(field, key+"="); ok && value != "" {
			values = append(values, value)
		}
	}
	return values, nil
}

// dependsOn returns the names of the modules that one uses itself.
func dependsOn(path string) ([]string, error) {
	lists, err := moduleInfo(path, "depends")
	if err != nil || len(lists) == 0 {
		return nil, err
	}
	return strings.Split(strings.ReplaceAll(lists[0], "-", "_"), ","), nil
}
