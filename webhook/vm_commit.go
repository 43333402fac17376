package webhook

import (
	"context"
	"fmt"
	"net/netip"

	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

// commitVM answers VirtualMachine CREATE, validating. The API server has chosen name and UID by now, so the promise of
// createVM becomes a line of the ledger, and survives a crash before the answer is given. The API server may call it
// several times for one create, with other names (generateName): the last one counts.
//
// A name that is taken already is refused here, as the API server would a moment later: whoever creates the same VM over
// and over would otherwise bind an address with each try until the promise ends.
func (h *Hooks) commitVM(ctx context.Context, req admission.Request) Decision {
	m, err := decodeMetadata(req.Object.Raw)
	if err != nil {
		return refuse(malformed(req, err), err)
	}
	address, claimText := m.Annotations[floatip.AnnotationAddress], m.Annotations[floatip.AnnotationClaim]
	if address == "" && claimText == "" {
		return Decision{Action: Ignored, Reason: "the VM has no address"}
	}
	addresses, claim, errs := parseOwnKeys(address, claimText)
	if len(errs) > 0 {
		return refuse(invalid(req, errs), nil)
	}
	if isDryRun(req) {
		return Decision{Action: Kept, Reason: "dry run", Address: address, Claim: claimText}
	}
	exists, err := h.Cluster.VMExists(ctx, req.Namespace, m.Name)
	if err != nil {
		return refuse(internal(req), fmt.Errorf("look for VM %s/%s: %w", req.Namespace, m.Name, err))
	}
	if exists {
		h.Ledger.Withdraw(claim)
		return refuse(alreadyExists(req, m.Name), nil)
	}
	if d := h.judgeAgain(ctx, req, m, claim, addresses); d != nil {
		return *d
	}
	lines, err := h.Ledger.Commit(ctx, claim, ownerOf(req, m), addresses, causeOf(req))
	if err != nil {
		d := refuseByLedger(req, err)
		d.Address, d.Claim = address, claimText
		return d
	}
	return holdingOf(lines).decision(Committed, "written to the ledger")
}

// judgeAgain looks at a promise that the ledger does not know: it was made before a restart, or another webhook wrote it.
// The ledger itself would give any address that is free; whether the namespace may have this one is judged as for a request.
func (h *Hooks) judgeAgain(ctx context.Context, req admission.Request, m metadata, claim floatip.Claim, addresses []netip.Addr) *Decision {
	if len(h.Ledger.ByClaim(claim)) > 0 {
		return nil
	}
	labels, err := h.Cluster.NamespaceLabels(ctx, req.Namespace)
	if err != nil {
		d := unread(req, fmt.Errorf("labels of namespace %s: %w", req.Namespace, err))
		return &d
	}
	_, err = h.Ledger.Reserve(ctx, ipam.Request{
		Claim: claim, Namespace: req.Namespace, Name: m.Name, NamespaceLabels: labels, Addresses: addresses,
	})
	if err != nil {
		d := refuseByLedger(req, err)
		d.Address, d.Claim = FormatAddresses(addresses), claim.String()
		return &d
	}
	return nil
}

// parseOwnKeys reads floatip's own annotations. What cannot be read was changed by another webhook after createVM.
func parseOwnKeys(address, claim string) ([]netip.Addr, floatip.Claim, field.ErrorList) {
	var errs field.ErrorList
	addresses, err := ParseAddresses(address)
	if err != nil {
		errs = append(errs, field.Invalid(annotationsPath.Key(floatip.AnnotationAddress), address, err.Error()))
	}
	c, err := floatip.ParseClaim(claim)
	if err != nil {
		errs = append(errs, field.Invalid(annotationsPath.Key(floatip.AnnotationClaim), claim, err.Error()))
	}
	return addresses, c, errs
}
