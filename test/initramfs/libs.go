package initramfs

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// libraryFolders is where Debian's loader looks on amd64 (ld.so(8), with multiarch).
var libraryFolders = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/lib", "/usr/lib"}

// libraries lists what a dynamically linked program needs to run, as paths of this machine: its loader and, by way of
// their DT_NEEDED entries, all shared libraries. A static program needs none.
func libraries(program string) ([]string, error) {
	var found []string
	seen := map[string]bool{}
	for pending := []string{program}; len(pending) > 0; pending = pending[1:] {
		needed, loader, err := dynamic(pending[0])
		if err != nil {
			return nil, fmt.Errorf("shared libraries of %s: %w", program, err)
		}
		if loader != "" && !seen[loader] {
			seen[loader] = true
			found = append(found, loader)
		}
		for _, name := range needed {
			if seen[name] {
				continue
			}
			seen[name] = true
			path, err := library(name)
			if err != nil {
				return nil, fmt.Errorf("shared libraries of %s: %w", program, err)
			}
			found, pending = append(found, path), append(pending, path)
		}
	}
	return found, nil
}

// dynamic reads the names of the libraries and the path of the loader that an ELF file asks for.
func dynamic(path string) (needed []string, loader string, err error) {
	file, err := elf.Open(path)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	for _, segment := range file.Progs {
		if segment.Type != elf.PT_INTERP {
			continue
		}
		text := make([]byte, segment.Filesz-1) // less the closing NUL
		if _, err := segment.ReadAt(text, 0); err != nil {
			return nil, "", err
		}
		loader = string(text)
	}
	needed, err = file.ImportedLibraries()
	return needed, loader, err
}

func library(name string) (string, error) {
	for _, folder := range libraryFolders {
		path := filepath.Join(folder, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is in none of %v", name, libraryFolders)
}
