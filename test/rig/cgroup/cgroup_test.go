package cgroup

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"floatip.io/floatip/test/lab"
)

// The node's control groups go with all below them, and their removal may be repeated.
func TestRemove(t *testing.T) {
	lab.NeedRoot(t)
	name := Of(filepath.Join(t.TempDir(), "node-1"))
	t.Cleanup(func() { Remove(context.Background(), name) })
	all, err := Hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	if err := Make(name); err != nil {
		t.Fatal(err)
	}
	for _, hierarchy := range all {
		if err := os.MkdirAll(filepath.Join(hierarchy, name, "kubepods", "burstable"), 0o755); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if err := Remove(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	for _, hierarchy := range all {
		if _, err := os.Stat(filepath.Join(hierarchy, name)); !os.IsNotExist(err) {
			t.Errorf("%s is left in %s (%v)", name, hierarchy, err)
		}
	}
}
