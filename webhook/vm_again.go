package webhook

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"floatip.io/floatip/ipam"
)

// clearName looks at what VMs of this name hold. It reports whether one of them is stored: the API server will refuse
// another one of that name, and so does the hook, with the same words, before it could say that the address is taken.
//
// What VMs held of which nothing is left in the API server is given back, so that the new VM may have it. The controller
// does the same when it sees that they are gone; whoever deletes a VM and creates it again at once, as "kubectl replace
// --force" does, is faster, and would be told that the VM itself has its address. What is disputed, and what the cluster
// did not show when floatip started, waits for the controller or a person; so does what a node may still answer for.
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
		node, err := h.announcer(ctx, line.Owner.UID)
		if err != nil {
			return false, fmt.Errorf("look for a node that answers for VM %s: %w", line.Owner, err)
		}
		if node != "" {
			continue // the pod may have been deleted by force, and run on
		}
		cause := causeOf(req)
		cause.Reason = "VM, VMI and pods are gone, and a VM of that name is created"
		if _, err := h.Ledger.Release(ctx, line.Owner.UID, cause); err != nil {
			return false, err
		}
	}
	return false, nil
}

// The node agent says that an address has left a moment after the pod has.
const (
	withdrawalPatience = time.Second
	withdrawalPause    = 20 * time.Millisecond
)

// announcer returns the node that answers for what the VM with that UID holds, after it had a moment to say that it
// stopped.
func (h *Hooks) announcer(ctx context.Context, uid string) (string, error) {
	var addresses []netip.Addr
	for _, line := range h.Ledger.ByOwner(uid) {
		addresses = append(addresses, line.Address)
	}
	late := time.After(h.patience)
	for {
		node, err := h.Cluster.Announcer(ctx, uid, addresses)
		if node == "" || err != nil {
			return node, err
		}
		select {
		case <-time.After(withdrawalPause):
		case <-late:
			return node, nil
		case <-ctx.Done():
			return node, ctx.Err()
		}
	}
}
