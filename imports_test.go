package floatip

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "floatip.io/floatip"

// Arrows point one way (docs/design.md). A package depends, directly or not, on nothing of what is listed here.
func TestImports(t *testing.T) {
	kubernetes := []string{"k8s.io/", "kubevirt.io/", "sigs.k8s.io/"}
	for _, tc := range []struct {
		path      string
		forbidden []string
	}{
		{".", slices.Concat(kubernetes, []string{module + "/", "github.com/", "go4.org/", "golang.org/"})},
		{"./ipam", slices.Concat(kubernetes, []string{module + "/webhook", module + "/nat", module + "/certs"})},
		{"./nat", slices.Concat(kubernetes, []string{module + "/ipam", module + "/webhook", module + "/nat/node", module + "/nat/sidecar"})},
		{"./nat/handover", slices.Concat(kubernetes, []string{module + "/ipam", module + "/webhook", module + "/nat/node", module + "/nat/sidecar"})},
		{"./nat/sidecar", slices.Concat(kubernetes, []string{module + "/ipam", module + "/webhook", module + "/nat/node"})},
		{"./cmd/floatip-sidecar", slices.Concat(kubernetes, []string{module + "/ipam", module + "/webhook", module + "/nat/node", "net/http"})},
		{"./nat/node", slices.Concat(kubernetes, []string{module + "/ipam", module + "/webhook", module + "/nat/sidecar"})},
		{"./cmd/floatip-agent", []string{module + "/webhook", module + "/certs", "testing"}},
		{"./webhook", []string{module + "/nat", module + "/certs"}},
		{"./webhook/cloudinit", slices.Concat(kubernetes, []string{module + "/ipam", module + "/nat"})},
		{"./cmd/floatip-webhook", []string{module + "/nat"}},
	} {
		for _, dependency := range dependencies(t, tc.path) {
			if slices.ContainsFunc(tc.forbidden, func(prefix string) bool { return strings.HasPrefix(dependency, prefix) }) {
				t.Errorf("%s depends on %s", tc.path, dependency)
			}
		}
	}
}

func dependencies(t *testing.T, path string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", path).Output()
	if err != nil {
		t.Fatalf("go list -deps %s: %v", path, err)
	}
	return strings.Fields(string(out))
}
