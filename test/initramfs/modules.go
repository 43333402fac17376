package initramfs

import (
	"path/filepath"
	"slices"
	"strings"
)

// Modules adds what modprobe needs to load modules when the kernel asks for them, as on an installed system: those of the
// folders or names (as in "net/ipv4", "drivers/net/veth") below the kernel's modules with all they depend on, and the lists
// that depmod makes. Those that without names, and what depends on them, are left out.
func (t Tree) Modules(k Kernel, below, without []string) error {
	var names []string
	for name, path := range k.files {
		if within(k.path(path), below) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var depends, aliases strings.Builder
	folder := "lib/modules/" + k.Release
	for _, name := range names {
		order, err := k.Order(name)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(order, func(path string) bool { return slices.Contains(without, nameOf(path)) }) {
			continue
		}
		slices.Reverse(order) // modules.dep names what is loaded first last
		for i, path := range order {
			if err := t.Copy(filepath.Join(folder, k.path(path)), path, 0o644); err != nil {
				return err
			}
			order[i] = k.path(path)
		}
		depends.WriteString(order[0] + ": " + strings.Join(order[1:], " ") + "\n")
		patterns, err := moduleInfo(k.files[name], "alias")
		if err != nil {
			return err
		}
		for _, pattern := range patterns {
			aliases.WriteString("alias " + pattern + " " + name + "\n")
		}
	}
	t.File(folder+"/modules.dep", 0o644, []byte(depends.String()))
	t.File(folder+"/modules.alias", 0o644, []byte(aliases.String()))
	return nil
}

// path is a module's place below the kernel's folder.
func (k Kernel) path(file string) string {
	name, _ := filepath.Rel(k.folder(), file)
	return name
}

func within(path string, places []string) bool {
	return slices.ContainsFunc(places, func(place string) bool {
		place = "kernel/" + place
		return path == place+".ko" || strings.HasPrefix(path, place+"/")
	})
}

func nameOf(path string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(path), ".ko"), "-", "_")
}
