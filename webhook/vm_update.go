package webhook

import (
	"context"
	"fmt"
	"maps"

	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"floatip.io/floatip"
)

// updateVM answers VirtualMachine UPDATE, mutating. It is called for changes of floatip's annotations only, and never
// stands in the way of a VM that is being deleted.
//
// floatip's own keys are put back to what the ledger says. The user's keys may be changed as far as the change is true
// already: a request for the very address that the VM holds. Other changes are refused, since a VM does not change its
// address by an edit; KubeVirt's accounts, which write whole revisions, get a warning instead. An allow list may change
// at any time, to one that can be read; the controller of firewalls brings it to the running pod.
func (h *Hooks) updateVM(_ context.Context, req admission.Request) Decision {
	after, err := decodeMetadata(req.Object.Raw)
	if err != nil {
		return refuse(malformed(req, err), err)
	}
	before, err := decodeMetadata(req.OldObject.Raw)
	if err != nil {
		return refuse(malformed(req, err), err)
	}
	if after.DeletionTimestamp != nil {
		return Decision{Action: Ignored, Reason: "the VM is being deleted"}
	}
	wish, errs := ParseRequest(after.Annotations)
	if errs := changedErrors(errs, before, after); len(errs) > 0 && !h.byKubeVirt(req) {
		return refuse(invalid(req, errs), nil)
	}
	have := holdingOf(h.Ledger.ByOwner(string(before.UID)))
	d := h.restore(req, before, after, have)
	if len(have.addresses) == 0 {
		if !maps.Equal(userKeys(before), userKeys(after)) {
			d.Warnings = append(d.Warnings, "floatip: a VM gets its address when it is created; delete and create it for the change to count")
		}
		return d
	}
	if problem := changedWish(before, after, wish, have); problem != nil {
		if !h.byKubeVirt(req) {
			return refuse(invalid(req, field.ErrorList{problem}), nil)
		}
		d.Warnings = append(d.Warnings, "floatip: "+problem.Error())
	}
	if dropped := droppedWish(before, after); dropped != "" {
		d.Warnings = append(d.Warnings, fmt.Sprintf("floatip: %s was removed; the VM keeps %s until it is deleted", dropped, have.address()))
	}
	return d
}

// restore puts floatip's keys back to what the ledger says, or to what was there if the ledger holds nothing.
func (h *Hooks) restore(req admission.Request, before, after metadata, have holding) Decision {
	address, claim := have.address(), have.claimText()
	if len(have.addresses) == 0 {
		address, claim = before.Annotations[floatip.AnnotationAddress], before.Annotations[floatip.AnnotationClaim]
	}
	d := have.decision(Kept, "floatip's annotations are right")
	want := map[string]string{floatip.AnnotationAddress: address, floatip.AnnotationClaim: claim}
	d.Patches = setAnnotations(after, want)
	if len(d.Patches) == 0 {
		return d
	}
	d.Action, d.Reason = Restored, "floatip's annotations were changed and are put back"
	d.Warnings = append(d.Warnings, fmt.Sprintf("floatip: %s and %s are written by floatip only; the change was undone",
		floatip.AnnotationAddress, floatip.AnnotationClaim))
	if address != "" {
		d.Patches = h.writeOwnKeys(req, after, address, claim)
	}
	return d
}

// changedErrors returns the errors of annotations that the update changes: what was stored while floatip was away must
// not stand in the way of another change.
func changedErrors(errs field.ErrorList, before, after metadata) (changed field.ErrorList) {
	for _, key := range []string{floatip.AnnotationRequest, floatip.AnnotationPool, floatip.AnnotationAllow} {
		old, had := before.Annotations[key]
		if now, has := after.Annotations[key]; had == has && old == now {
			continue
		}
		for _, e := range errs {
			if e.Field == annotationsPath.Key(key).String() {
				changed = append(changed, e)
			}
		}
	}
	return changed
}

// userKeys returns the annotations that ask for an address.
func userKeys(m metadata) map[string]string {
	keys := map[string]string{}
	for _, k := range []string{floatip.AnnotationRequest, floatip.AnnotationPool} {
		if v, present := m.Annotations[k]; present {
			keys[k] = v
		}
	}
	return keys
}

// changedWish returns what is wrong with a changed request or pool, or nil.
func changedWish(before, after metadata, wish Request, have holding) *field.Error {
	const remedy = "an address does not change with an edit: delete and create the VM, or move the address with kubectl floatip"
	for _, key := range []string{floatip.AnnotationRequest, floatip.AnnotationPool} {
		value := after.Annotations[key]
		if value == "" || value == before.Annotations[key] {
			continue
		}
		if !have.fulfils(wish) {
			return field.Forbidden(annotationsPath.Key(key), fmt.Sprintf("the VM holds %s of pool %s; %s", have.address(), have.pool(), remedy))
		}
	}
	return nil
}

// droppedWish returns the first of the user's keys that was removed.
func droppedWish(before, after metadata) string {
	for _, key := range []string{floatip.AnnotationRequest, floatip.AnnotationPool} {
		if before.Annotations[key] != "" && after.Annotations[key] == "" {
			return key
		}
	}
	return ""
}
