package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

// statusOfLedger turns an error of the ledger into the status that the user sees:
//
//	409 Conflict        somebody else has the address, or the VM has another one
//	403 Forbidden       the pool is full, closed, or not for this namespace
//	422 Invalid         the request contradicts itself, the pool, or what exists
//	500 InternalError   the ledger cannot be written, and why; or a surprise: plain text here, the cause in the log
//
// VMs of other namespaces are not named. A full pool is no 5xx or 429: the API server would take the hook for broken,
// and clients would try again for ever.
func statusOfLedger(req admission.Request, err error) *metav1.Status {
	request := annotationsPath.Key(floatip.AnnotationRequest).String()
	pool := annotationsPath.Key(floatip.AnnotationPool).String()
	told := Tell(req.Namespace, err)
	switch {
	case errors.Is(err, ipam.ErrTaken):
		return conflict(req, request, told)
	case errors.Is(err, ipam.ErrOwnerHolds), errors.Is(err, ipam.ErrClaimInUse), errors.Is(err, ipam.ErrDisputed),
		errors.Is(err, ipam.ErrUnknownClaim):
		return conflict(req, annotationsPath.Key(floatip.AnnotationAddress).String(), told)
	case errors.Is(err, ipam.ErrFull), errors.Is(err, ipam.ErrLimit), errors.Is(err, ipam.ErrDraining),
		errors.Is(err, ipam.ErrNotAllowed), errors.Is(err, ipam.ErrNoPool):
		return status(req, http.StatusForbidden, metav1.StatusReasonForbidden, pool, told)
	case errors.Is(err, ipam.ErrUnknownPool):
		return status(req, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, pool, told)
	case errors.Is(err, ipam.ErrNotInPool), errors.Is(err, ipam.ErrNeverGiven), errors.Is(err, ipam.ErrInvalid):
		return status(req, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, request, told)
	case errors.Is(err, ipam.ErrDiskFull), errors.Is(err, ipam.ErrReadOnly), errors.Is(err, ipam.ErrUncertain):
		// Whoever reads this cannot help it, but knows whom to ask and what for.
		return status(req, http.StatusInternalServerError, metav1.StatusReasonInternalError, "", err)
	default:
		return internal(req)
	}
}

// refuseByLedger makes a Decision of an error of the ledger. Audit log and log have what the user is not told.
func refuseByLedger(req admission.Request, err error) Decision {
	d := refuse(statusOfLedger(req, err), err)
	if d.Action == Refused {
		d.Reason = err.Error()
	}
	return d
}

func conflict(req admission.Request, path string, err error) *metav1.Status {
	return status(req, http.StatusConflict, metav1.StatusReasonConflict, path, err)
}

// alreadyExists is what the API server answers to the creation of an object whose name is taken.
func alreadyExists(req admission.Request, name string) *metav1.Status {
	return status(req, http.StatusConflict, metav1.StatusReasonAlreadyExists, "metadata.name",
		fmt.Errorf("%s.%s %q already exists", req.Resource.Resource, req.Resource.Group, name))
}

// invalid reports every error in errs, each with its field.
func invalid(req admission.Request, errs field.ErrorList) *metav1.Status {
	s := status(req, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "", errs.ToAggregate())
	s.Details.Causes = nil
	for _, e := range errs {
		s.Details.Causes = append(s.Details.Causes, metav1.StatusCause{
			Type: metav1.CauseType(e.Type), Message: e.ErrorBody(), Field: e.Field,
		})
	}
	return s
}

// malformed serves objects that are no JSON of their kind, and names the field where that is known. The API server sends
// such ones where a schema leaves a field open.
func malformed(req admission.Request, err error) *metav1.Status {
	path := ""
	if mistyped := (*json.UnmarshalTypeError)(nil); errors.As(err, &mistyped) {
		path = strings.Replace(mistyped.Field, "metadata.metadata.", "metadata.", 1) // podMetadata has one embedded
	}
	return status(req, http.StatusBadRequest, metav1.StatusReasonBadRequest, path, err)
}

// unread makes a Decision of an error of reading the cluster: what the request is about may be gone by now, which is told
// as the API server tells it. Everything else is floatip's fault.
func unread(req admission.Request, err error) Decision {
	if apierrors.IsNotFound(err) {
		return refuse(status(req, http.StatusNotFound, metav1.StatusReasonNotFound, "", err), nil)
	}
	return refuse(internal(req), err)
}

// internal tells the user that floatip is at fault, and nothing else.
func internal(req admission.Request) *metav1.Status {
	return status(req, http.StatusInternalServerError, metav1.StatusReasonInternalError, "",
		fmt.Errorf("floatip could not decide; its log has the cause under request %s", req.UID))
}

func status(req admission.Request, code int32, reason metav1.StatusReason, path string, err error) *metav1.Status {
	s := &metav1.Status{
		Status:  metav1.StatusFailure,
		Code:    code,
		Reason:  reason,
		Message: "floatip: " + err.Error(),
		Details: &metav1.StatusDetails{Name: req.Name, Group: req.Kind.Group, Kind: req.Kind.Kind},
	}
	if path != "" {
		s.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseType(reason), Message: err.Error(), Field: path}}
	}
	return s
}
