package webhook

import (
	"errors"
	"fmt"
	"time"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
)

// anotherTenant stands for a VM that the reader of a text may know nothing of.
const anotherTenant = "a VM of another namespace"

// NameFor names a VM in a text for people of a namespace: those of other namespaces, which may be other tenants', stay
// nameless. Who may read FloatingIP objects, which are cluster-scoped, finds the name there; audit annotations, log and
// the ledger's history have it too.
func NameFor(namespace string, vm floatip.Owner) string {
	if vm.Namespace != namespace {
		return anotherTenant
	}
	return "VM " + vm.String()
}

// Tell returns err as people of the namespace may read it.
func Tell(namespace string, err error) error {
	var taken *ipam.TakenError
	var claimed *ipam.ClaimError
	switch {
	case errors.As(err, &taken) && taken.Holder.Owner.Namespace != namespace:
		return errors.New(takenByAnother(taken))
	case errors.As(err, &claimed) && claimed.Holder.Namespace != namespace:
		return fmt.Errorf("the claim belongs to %s", anotherTenant)
	}
	return err
}

func takenByAnother(e *ipam.TakenError) string {
	switch a := e.Holder.Address; e.Holder.State {
	case ipam.Released:
		return fmt.Sprintf("%s rests until %s after %s gave it back", a, e.Until.UTC().Format(time.RFC3339), anotherTenant)
	case ipam.Reserved:
		return fmt.Sprintf("%s is promised to %s, which is being created", a, anotherTenant)
	default:
		return fmt.Sprintf("%s is held by %s; who may read FloatingIP %s sees by which", a, anotherTenant, v1alpha1.Name(a))
	}
}
