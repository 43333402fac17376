package webhook

import (
	"context"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"floatip.io/floatip"
)

// Reasons of events about VMs that were not stored, or not changed.
const (
	// EventRefused: a VM was not created, or not changed, for what it asks of floatip. On the Namespace, or on the VM.
	EventRefused = "FloatingIPRefused"
	// EventUnserved: VMs of the Namespace are created without an address, for no pool serves it by itself.
	EventUnserved = "FloatingIPUnserved"
)

// telling has the people of a namespace told what the requester is answered: often that is a controller, whose log nobody
// reads. Where the VM exists it is told on the VM. Not told are dry runs, and names that are taken, which have nothing to
// do with floatip.
func (h *Hooks) telling(decide decider) decider {
	return func(ctx context.Context, req admission.Request) Decision {
		d := decide(ctx, req)
		if isDryRun(req) {
			return d
		}
		switch {
		case d.Action == Refused && d.Status.Reason != metav1.StatusReasonAlreadyExists:
			h.tell(req, EventRefused, d.Status.Message)
		case d.Action == Unserved:
			h.tell(req, EventUnserved, strings.Join(d.Warnings, "; "))
		}
		return d
	}
}

func (h *Hooks) tell(req admission.Request, reason, text string) {
	if old, err := decodeMetadata(req.OldObject.Raw); err == nil && old.UID != "" {
		h.Events.Warn(floatip.Owner{Namespace: req.Namespace, Name: req.Name, UID: string(old.UID)}, reason, text)
		return
	}
	vm := req.Name
	if vm == "" {
		vm = prefixOf(req.Object.Raw)
	}
	h.Events.WarnNamespace(req.Namespace, reason, "VM "+vm+": "+text)
}

// prefixOf returns what the name of an object without a name will begin with.
func prefixOf(raw []byte) string {
	var object struct {
		Metadata struct {
			GenerateName string `json:"generateName"`
		} `json:"metadata"`
	}
	if err := decode(raw, &object); err != nil {
		return ""
	}
	return object.Metadata.GenerateName + "*"
}
