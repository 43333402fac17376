package admission

import (
	"bytes"
	"os"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
)

// A dry run decides like a create and changes nothing: not a byte of the ledger, and not what the next VM gets.
func dryRun(t *testing.T, w *world) {
	n := w.tenant(t, 20)
	holder := n.create("holder", request(n.address(1)))
	n.bound(holder)
	ledger := func() []byte {
		raw, err := os.ReadFile(w.path("ledger.db"))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	before := ledger()
	vm := n.newVM("dry", nil)
	if err := n.admin.Create(n.ctx, vm, client.DryRunAll); err != nil {
		t.Fatal(err)
	}
	if got := vm.Annotations[floatip.AnnotationAddress]; got != n.address(2) {
		t.Errorf("a dry run shows %q, want %s", got, n.address(2))
	}
	out := n.mustKubectl(n.manifest("dry", nil), "create", "--dry-run=server", "-o", "yaml", "-f", "-")
	if !strings.Contains(out, n.address(2)) {
		t.Errorf("kubectl create --dry-run=server does not show %s:\n%s", n.address(2), out)
	}
	out = n.mustKubectl(n.manifest("dry", nil), "create", "--dry-run=client", "-o", "yaml", "-f", "-")
	if strings.Contains(out, floatip.AnnotationAddress) {
		t.Errorf("kubectl create --dry-run=client knows an address:\n%s", out)
	}
	err := n.admin.Create(n.ctx, n.newVM("dry", request(n.address(1))), client.DryRunAll)
	if !apierrors.IsConflict(err) {
		t.Errorf("a dry run for an address that is held: %v, want a conflict", err)
	}
	wantRefusal(t, "a dry run for an address that is held", err, n.ns+"/holder")
	if !bytes.Equal(before, ledger()) {
		t.Error("dry runs changed the ledger")
	}
	if got := n.create("real", nil).Annotations[floatip.AnnotationAddress]; got != n.address(2) {
		t.Errorf("the VM after the dry runs got %s, want %s", got, n.address(2))
	}
}
