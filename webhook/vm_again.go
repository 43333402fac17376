package webhook

import (
	"context"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"floatip.io/floatip/ipam"
)

// clearName looks at what VMs of this name hold. It reports whether one of them is stored: the API server will refuse
// another one of that name, and so does the hook, with the same words, before it could say that the address is taken.
//
// What VMs held of which nothing is left in the API server is given back, so that the new VM may have it. The controller
// does the same when it sees that they are gone; whoever deletes a VM and creates it again at once, as "kubectl replace
// --force" does, is faster, and would be told that the VM itself has its address. What is disputed, and what the cluster
// did not show when floatip started, waits for the controller or a person.
func (h *Hooks) clearName(ctx context.Context, req admission.Request, name string) (stored bool, err error) {
	if name == "" {
		return false, nil
	}
	seen := map[string]bool{}
	for _, line := range h.Ledger.ByName(req.Namespace, name) {
		if line.State != ipam.Bound || seen[line.Owner.UID] {
			continue
		}
		seen[line.Owner.UID] = true
		by, err := h.Cluster.Carrier(ctx, line.Owner)
		if err != nil {
			return false, fmt.Errorf("look for what is left of VM %s: %w", line.Owner, err)
		}
		if by == CarrierVM {
			return true, nil
		}
		if by != "" || line.Missing || line.Disputed || isDryRun(req) {
			continue
		}
		cause := causeOf(req)
		cause.Reason = "VM, VMI and pods are gone, and a VM of that name is created"
		if _, err := h.Ledger.Release(ctx, line.Owner.UID, cause); err != nil {
			return false, err
		}
	}
	return false, nil
}
