package webhook

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"gomodules.xyz/jsonpatch/v2"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/webhook/kubevirt"
)

// createVM answers VirtualMachine CREATE, mutating: it promises the VM its addresses and writes them, with the claim
// that ties the object to the promise, into its annotations. Nothing waits for the disk here: the promise is written while
// the API server goes on, and commitVM waits for it.
//
// What stands in floatip.io/address and floatip.io/claim already is the user's, a copy of another VM's, or floatip's own
// from an earlier call of this hook for the same request. Only the last is kept.
func (h *Hooks) createVM(ctx context.Context, req admission.Request) Decision {
	m, err := decodeMetadata(req.Object.Raw)
	if err != nil {
		return refuse(malformed(req, err), err)
	}
	wish, errs := parseVM(m, req.Object.Raw)
	if len(errs) > 0 {
		return refuse(invalid(req, errs), nil)
	}
	if wish.OptOut {
		return Decision{Action: OptedOut, Reason: "the VM opted out", Patches: withoutOwnKeys(m), Warnings: optOutWarnings(wish)}
	}
	labels, err := h.Cluster.NamespaceLabels(ctx, req.Namespace)
	if err != nil {
		return unread(req, fmt.Errorf("labels of namespace %s: %w", req.Namespace, err))
	}
	ask := ipam.Request{
		Namespace:       req.Namespace,
		Name:            m.Name,
		NamespaceLabels: labels,
		Addresses:       wish.Addresses,
		Pools:           wish.Pools,
		DryRun:          isDryRun(req),
		WriteAhead:      true,
		Cause:           causeOf(req),
	}
	if earlier, ours := h.earlierOffer(req.Namespace, wish, m); ours {
		return h.offered(req, m, earlier.decision(Kept, "called again for the same request"))
	}
	return h.reserve(ctx, req, m, wish, ask)
}

func (h *Hooks) reserve(ctx context.Context, req admission.Request, m metadata, wish Request, ask ipam.Request) Decision {
	warnings := wish.warnings()
	stored, err := h.clearName(ctx, req, m.Name)
	if err != nil {
		return refuse(internal(req), err)
	}
	if stored {
		return refuse(alreadyExists(req, m.Name), nil)
	}
	ask.Claim = floatip.NewClaim()
	reason := "next free address"
	if len(ask.Addresses) > 0 {
		reason = "requested address"
	}
	offer, err := h.Ledger.Reserve(ctx, ask)
	if errors.Is(err, ipam.ErrTaken) && h.isCopy(req, m) {
		// A clone or a restore carries the annotations of its source. Refused, KubeVirt would try for ever.
		warnings = append(warnings, fmt.Sprintf("floatip: %v; another address was chosen for this copy", Tell(req.Namespace, err)))
		ask.Addresses, reason = nil, "another address for a copy: "+err.Error()
		offer, err = h.Ledger.Reserve(ctx, ask)
	}
	if errors.Is(err, ipam.ErrNoPool) && !wish.explicit() {
		return Decision{
			Action: Unserved, Reason: err.Error(), Patches: withoutOwnKeys(m),
			Warnings: append(warnings, "floatip: "+err.Error()+"; the VM gets no floating address"),
		}
	}
	if err != nil {
		return refuseByLedger(req, err)
	}
	if offer.Claim != ask.Claim {
		reason = "promised to a VM of this name before, which was not stored"
	}
	if isDryRun(req) && len(wish.Addresses) == 0 {
		warnings = append(warnings, fmt.Sprintf("floatip: dry run: %s would be given now, it is not reserved", FormatAddresses(offer.Addresses)))
	}
	warning, refusal := h.deliver(ctx, req, m, offer.Pools, ask.NamespaceLabels)
	if refusal != nil {
		h.Ledger.Withdraw(ask.Claim)
		return *refusal
	}
	if warning != "" {
		warnings = append(warnings, warning)
	}
	d := holding{offer.Addresses, offer.Pools, offer.Claim}.decision(Reserved, reason)
	d.Warnings = warnings
	return h.offered(req, m, d)
}

// offered writes what d promises into the VM's annotations.
func (h *Hooks) offered(req admission.Request, m metadata, d Decision) Decision {
	d.Patches = h.writeOwnKeys(req, m, d.Address, d.Claim)
	return d
}

// earlierOffer returns the reservation that an earlier call for the same object made: its claim is still Reserved, in
// this namespace, for these addresses. Only this process and this request know such a claim; once it is committed,
// others can read it, and an object that carries it is a copy.
func (h *Hooks) earlierOffer(namespace string, wish Request, m metadata) (holding, bool) {
	text, carried := m.Annotations[floatip.AnnotationClaim]
	if !carried {
		return holding{}, false
	}
	claim, err := floatip.ParseClaim(text)
	if err != nil || claim.IsZero() {
		return holding{}, false
	}
	lines := h.Ledger.ByClaim(claim)
	if len(lines) == 0 || lines[0].State != ipam.Reserved || lines[0].Owner.Namespace != namespace {
		return holding{}, false
	}
	earlier := holdingOf(lines)
	if earlier.address() == m.Annotations[floatip.AnnotationAddress] && earlier.fulfils(wish) {
		return earlier, true
	}
	h.Ledger.Withdraw(claim) // another webhook changed the wish between the two calls
	return holding{}, false
}

// fulfils reports whether h is what wish asks for.
func (h holding) fulfils(wish Request) bool {
	for _, a := range wish.Addresses {
		if !slices.Contains(h.addresses, a) {
			return false
		}
	}
	for _, p := range h.pools {
		if len(wish.Pools) > 0 && !slices.Contains(wish.Pools, p) {
			return false
		}
	}
	return true
}

// isCopy reports whether KubeVirt itself makes the VM from another one: a clone, a restored snapshot, or a member of a
// VirtualMachinePool, whose template all members share.
func (h *Hooks) isCopy(req admission.Request, m metadata) bool {
	if !h.byKubeVirt(req) {
		return false
	}
	_, restored := m.Annotations[kubevirt.AnnotationRestored]
	return restored || slices.ContainsFunc(m.OwnerReferences, kubevirt.IsPool)
}

// writeOwnKeys returns the operations that give the VM its address and claim, and floatip the ownership of both.
func (h *Hooks) writeOwnKeys(req admission.Request, m metadata, address, claim string) []jsonpatch.Operation {
	ops := setAnnotations(m, map[string]string{floatip.AnnotationAddress: address, floatip.AnnotationClaim: claim})
	apiVersion := req.Kind.Group + "/" + req.Kind.Version
	return append(ops, ownAnnotations(m, apiVersion, h.Now())...)
}

// withoutOwnKeys returns the operations that remove floatip's keys from a VM that gets no address.
func withoutOwnKeys(m metadata) []jsonpatch.Operation {
	return setAnnotations(m, map[string]string{floatip.AnnotationAddress: "", floatip.AnnotationClaim: ""})
}

func optOutWarnings(wish Request) []string {
	warnings := wish.warnings()
	if wish.explicit() {
		warnings = append(warnings, fmt.Sprintf("floatip: %s is \"false\": %s and %s are ignored",
			floatip.LabelEnabled, floatip.AnnotationRequest, floatip.AnnotationPool))
	}
	return warnings
}

// warnings tell of keys that have no effect where they stand.
func (r Request) warnings() []string {
	var warnings []string
	for _, key := range r.Unknown {
		warnings = append(warnings, fmt.Sprintf("floatip: annotation %s is unknown and ignored; there are %s",
			key, strings.Join(userAnnotations, ", ")))
	}
	for _, key := range r.Misplaced {
		warnings = append(warnings, fmt.Sprintf("floatip: %s has no effect; write it in %s", templatePath.Key(key), annotationsPath))
	}
	return warnings
}
