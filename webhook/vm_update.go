package webhook

import (
	"context"
	"fmt"
	"maps"
	"slices"

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
// at any time, to one that can be read; the controller of firewalls brings it to the running pod. Opting out later has an
// effect where the template says it, on the instances to come.
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
	wish, errs := parseVM(after, req.Object.Raw)
	old, oldErrs := parseVM(before, req.OldObject.Raw)
	if errs := newErrors(errs, oldErrs); len(errs) > 0 && !h.byKubeVirt(req) {
		return refuse(invalid(req, errs), nil)
	}
	have := holdingOf(h.Ledger.ByOwner(string(before.UID)))
	d := h.restore(req, before, after, have)
	if len(have.addresses) == 0 {
		if !maps.Equal(userKeys(before), userKeys(after)) || old.OptOut && !wish.OptOut {
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
	if wish.OptOut && !old.OptOut {
		d.Warnings = append(d.Warnings, optedOutLater(req.Object.Raw, have))
	}
	return d
}

// optedOutLater says what becomes of the addresses of a VM that opts out after it was created.
func optedOutLater(raw []byte, have holding) string {
	if optsOut(templateAnnotations(raw)) {
		return fmt.Sprintf("floatip: %s is \"false\": the VM runs without %s from its next start on, and keeps it until it is deleted",
			templatePath.Key(floatip.LabelEnabled), have.address())
	}
	return fmt.Sprintf("floatip: %s counts when a VM is created; the VM keeps %s until it is deleted", floatip.LabelEnabled, have.address())
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

// newErrors returns those of errs that the VM did not have before: what was stored while floatip was away must not stand
// in the way of another change.
func newErrors(errs, before field.ErrorList) field.ErrorList {
	return slices.DeleteFunc(errs, func(e *field.Error) bool {
		return slices.ContainsFunc(before, func(b *field.Error) bool { return e.Error() == b.Error() })
	})
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
	const remedy = "an address does not change with an edit: delete and create the VM"
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
