package kubelet

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// file is one file of a volume that comes from the API.
type file struct {
	data []byte
	mode fs.FileMode
	uid  *int64 // owner, nil for root
	gid  *int64 // group, nil for root's
}

// dataLink is the name through which readers see one generation of files; kubelet's AtomicWriter
// (k8s.io/kubernetes pkg/volume/util/atomic_writer.go) has fixed it, and readers watch it.
const dataLink = "..data"

// writeAtomically makes the folder hold exactly these files, each a path relative to it, so that a reader sees either
// all of the old ones or all of the new ones: the files lie in a fresh folder, and one rename of the link ..data makes
// them current. Nothing happens if they are current already.
func writeAtomically(folder string, files map[string]file) error {
	current, err := os.Readlink(filepath.Join(folder, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if current != "" && holds(filepath.Join(folder, current), files) {
		return nil
	}
	generation, err := os.MkdirTemp(folder, "..generation-")
	if err != nil {
		return err
	}
	if err := os.Chmod(generation, 0o755); err != nil {
		return err
	}
	for _, name := range sortedKeys(files) {
		if err := writeFile(filepath.Join(generation, name), files[name]); err != nil {
			return err
		}
	}
	next := filepath.Join(folder, "..data_tmp")
	if err := errors.Join(os.RemoveAll(next), os.Symlink(filepath.Base(generation), next)); err != nil {
		return err
	}
	if err := os.Rename(next, filepath.Join(folder, dataLink)); err != nil {
		return err
	}
	if err := linkFiles(folder, files); err != nil {
		return err
	}
	if current == "" {
		return nil
	}
	return os.RemoveAll(filepath.Join(folder, current))
}

// holds reports whether the folder has these files, with these contents, and no others.
func holds(folder string, files map[string]file) bool {
	seen, foreign := 0, false
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		want, ok := files[name]
		if !ok || string(want.data) != string(data) {
			foreign = true
			return fs.SkipAll
		}
		seen++
		return nil
	})
	return err == nil && !foreign && seen == len(files)
}

func writeFile(path string, f file) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, f.data, f.mode); err != nil {
		return err
	}
	// Beyond the umask.
	if err := os.Chmod(path, f.mode); err != nil {
		return err
	}
	return os.Chown(path, int(deref(f.uid, 0)), int(deref(f.gid, 0)))
}

// linkFiles makes the names that users see, links through ..data, and removes those that are no longer wanted.
func linkFiles(folder string, files map[string]file) error {
	wanted := map[string]bool{}
	for name := range maps.Keys(files) {
		top, _, _ := strings.Cut(name, "/")
		wanted[top] = true
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), "..") {
			continue
		}
		if !wanted[entry.Name()] {
			if err := os.Remove(filepath.Join(folder, entry.Name())); err != nil {
				return err
			}
		}
		delete(wanted, entry.Name())
	}
	for _, name := range sortedKeys(wanted) {
		if err := os.Symlink(filepath.Join(dataLink, name), filepath.Join(folder, name)); err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func deref[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
