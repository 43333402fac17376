package initramfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Copy adds a file of this machine.
func (t Tree) Copy(name, path string, mode fs.FileMode) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	t.File(name, mode, content)
	return nil
}

// CopyAll adds the files of a folder of this machine and of those below it, with the folder's name there. There need not be one.
func (t Tree) CopyAll(name, folder string) error {
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		return t.Copy(name+strings.TrimPrefix(path, folder), path, 0o644)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Busybox adds the static busybox under each of its names.
func (t Tree) Busybox(ctx context.Context) error {
	busybox, err := Program("busybox", "busybox-static")
	if err != nil {
		return err
	}
	applets, err := Output(ctx, "", busybox, "--list")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(applets)) {
		t.Link("bin/"+name, "busybox")
	}
	return t.Copy("bin/busybox", busybox, 0o755)
}

// Program adds a program of this machine, as bin/name, with the shared libraries it needs. It is found by its path, or by
// the name where the path is that alone; the Debian package is what to install if it is not there.
func (t Tree) Program(path, debianPackage string) error {
	path, err := Program(path, debianPackage)
	if err != nil {
		return err
	}
	needed, err := libraries(path)
	if err != nil {
		return err
	}
	for _, library := range needed {
		if err := t.Copy(strings.TrimPrefix(library, "/"), library, 0o755); err != nil {
			return err
		}
	}
	return t.Copy("bin/"+filepath.Base(path), path, 0o755)
}

// Program finds an executable also where only root's PATH looks.
func Program(name, debianPackage string) (string, error) {
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed: apt-get install %s", name, debianPackage)
}

// Output runs a command in folder; its error holds what the command said.
func Output(ctx context.Context, folder, name string, args ...string) ([]byte, error) {
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
