package webhook

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"gomodules.xyz/jsonpatch/v2"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	admissionmetrics "sigs.k8s.io/controller-runtime/pkg/webhook/admission/metrics"
)

// Action is what a hook did, in one word. It is the value of the audit annotation "action" and of the metrics' label
// "decision".
type Action string

// The actions. Ignored, Kept and OptedOut change nothing but forged annotations.
const (
	Ignored   Action = "ignored"   // the object is none of floatip's business
	OptedOut  Action = "opted-out" // the VM, or the template of its instances, says floatip.io/enabled: "false"
	Unserved  Action = "unserved"  // nothing was asked for, and no pool serves the namespace by itself
	Reserved  Action = "reserved"  // an address is promised
	Committed Action = "committed" // the promise is in the ledger's file
	Kept      Action = "kept"      // what is there is right
	Restored  Action = "restored"  // floatip's annotations were put back
	Carried   Action = "carried"   // the VMI carries the address of its VM
	Unnatable Action = "unnatable" // the VMI's network binding leaves nothing to translate
	Injected  Action = "injected"  // the pod got its sidecar
	Described Action = "described" // the pod got its description, and needs no sidecar
	Accepted  Action = "accepted"  // the pool is fine
	Refused   Action = "refused"   // the request is at fault
	Failed    Action = "failed"    // floatip is at fault
)

// Decision is what a hook decided and why. Respond turns it into the answer.
type Decision struct {
	Action Action
	// Reason is one short sentence for the audit log.
	Reason string
	// Address, Pool and Claim are what the decision is about, as far as it got.
	Address, Pool, Claim string
	// Hint is what became of the guest's user data, or empty if there are none.
	Hint string
	// Patches are explicit operations on floatip's own keys.
	Patches []jsonpatch.Operation
	// Warnings are for the user's terminal.
	Warnings []string
	// Status is nil if the request is allowed.
	Status *metav1.Status
	// Detail is for the log alone: the cause of a failure that the user need not know.
	Detail error
}

// refuse makes a Decision of a status: Refused for 4xx, Failed for 5xx.
func refuse(status *metav1.Status, detail error) Decision {
	action := Refused
	if status.Code >= http.StatusInternalServerError {
		action = Failed
	}
	return Decision{Action: action, Reason: status.Message, Status: status, Detail: detail}
}

// auditLimit cuts audit annotations: the API server's audit log is no place for long texts.
const auditLimit = 512

// respond writes d as an admission response. Each decision, allow or deny, leaves its audit annotations; the API
// server prefixes their keys with the webhook's name.
func (d Decision) respond() admission.Response {
	audit := map[string]string{"action": string(d.Action)}
	note := func(key, value string) {
		if value != "" {
			audit[key] = strings.ToValidUTF8(value[:min(len(value), auditLimit)], "") // a letter may be cut in two
		}
	}
	note("reason", d.Reason)
	note("address", d.Address)
	note("pool", d.Pool)
	note("claim", d.Claim)
	note("hint", d.Hint)
	response := admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{
		Allowed:          d.Status == nil,
		Result:           d.Status,
		AuditAnnotations: audit,
		Warnings:         d.Warnings,
	}}
	if d.Status != nil || len(d.Patches) == 0 {
		return response
	}
	patch, err := encodePatch(d.Patches)
	if err != nil {
		panic(fmt.Sprintf("webhook: %v", err)) // values are strings and objects of Kubernetes
	}
	response.Patch, response.PatchType = patch, new(admissionv1.PatchTypeJSONPatch)
	return response
}

// changed reports whether d is a change of state, which is logged at level 0; the rest is level 1.
func (d Decision) changed() bool {
	switch d.Action {
	case Committed, Restored, Injected, Described, Refused, Failed:
		return true
	}
	return false
}

func (d Decision) log(log logr.Logger, handler string, req admission.Request) {
	if !d.changed() {
		log = log.V(1)
	}
	if !log.Enabled() {
		return
	}
	log = log.WithValues("handler", handler, "action", d.Action, "reason", d.Reason,
		"address", d.Address, "pool", d.Pool, "claim", d.Claim,
		"kind", req.Kind.Kind, "namespace", req.Namespace, "name", req.Name, "user", req.UserInfo.Username, "requestID", req.UID)
	if d.Action == Failed {
		log.Error(d.Detail, "admission failed")
		return
	}
	log.Info("admission decided")
}

// decider is the part of a hook that differs from hook to hook.
type decider func(ctx context.Context, req admission.Request) Decision

// handler wraps decide with what all hooks have in common: answer, audit annotations, metrics, log.
func handler(name string, metrics *Metrics, decide decider) admission.Handler {
	return admission.HandlerFunc(func(ctx context.Context, req admission.Request) admission.Response {
		start := time.Now()
		d := withoutPanic(ctx, req, decide)
		metrics.observe(name, d.Action, time.Since(start))
		d.log(logr.FromContextOrDiscard(ctx), name, req)
		return d.respond()
	})
}

// withoutPanic turns a programming mistake into a refusal that says as much; where it was is for the log.
func withoutPanic(ctx context.Context, req admission.Request, decide decider) (d Decision) {
	defer func() {
		if r := recover(); r != nil {
			admissionmetrics.WebhookPanics.WithLabelValues().Inc()
			d = refuse(internal(req), fmt.Errorf("panic: %v\n%s", r, debug.Stack()))
		}
	}()
	return decide(ctx, req)
}
