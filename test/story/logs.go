package story

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"floatip.io/floatip/test/rig"
)

// SaveLogs copies the logs of a rig into a new folder, which survives the rig, and returns that folder. What cannot be
// copied is in the error; the rest is there.
func SaveLogs(r *rig.Rig) (string, error) {
	dir, err := os.MkdirTemp("", "floatip-logs-")
	if err != nil {
		return "", err
	}
	var errs []error
	walk := func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || filepath.Ext(path) != ".log" {
			return nil // folders of containers vanish as they end
		}
		name, err := filepath.Rel(r.Dir, path)
		if err == nil {
			err = copyFile(filepath.Join(dir, strings.ReplaceAll(name, string(filepath.Separator), "_")), path)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		return nil
	}
	errs = append(errs, filepath.WalkDir(r.Dir, walk))
	lookAtMachines(r.Dir, dir)
	return dir, errors.Join(errs...)
}

func copyFile(to, from string) error {
	raw, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, raw, 0o644)
}
