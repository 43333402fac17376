package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/webhook"
)

var (
	errNotOptedIn   = fmt.Errorf("its namespace has no label %s=true", floatip.LabelEnabled)
	errOptedOut     = fmt.Errorf("its annotation %s is \"false\"", floatip.LabelEnabled)
	errHoldsAnother = errors.New("it holds another address of that family")
)

// adopt brings the ledger up to what the cluster shows. What only a VM's annotations show comes after the rest, and as
// far as a request of that VM for that address would be granted now: whoever wrote the annotations himself gains nothing
// by it. A ledger that was lost knows neither who is over a limit nor who was there before a pool was drained, and asks
// for neither.
func (s *Starter) adopt(ctx context.Context, seen sightings) (ipam.Adoption, error) {
	lost := true
	for range s.Ledger.All() {
		lost = false
		break
	}
	first, err := s.Ledger.Adopt(ctx, seen.proven, false)
	if err != nil {
		return ipam.Adoption{}, err
	}
	adopted, superseded, believed := first.Adopted, first.Superseded, seen.proven
	for _, w := range seen.wishes {
		labels, err := s.Cluster.NamespaceLabels(ctx, w.Owner.Namespace)
		if client.IgnoreNotFound(err) != nil {
			return ipam.Adoption{}, fmt.Errorf("labels of namespace %s: %w", w.Owner.Namespace, err)
		}
		if err := s.believe(ctx, w, labels, lost); err != nil {
			s.Log.Info("a VM shows an address that it is not given", "vm", w.Owner, "address", w.Address, "reason", err.Error())
			s.Events.Warn(w.Owner, EventNotHeld, fmt.Sprintf("the VM shows %s, which the ledger does not give it: %v; delete and "+
				"create the VM to get an address", w.Address, webhook.Tell(w.Owner.Namespace, err)))
			continue
		}
		believed = append(believed, w.Sighting)
		if lost {
			continue // all in one transaction
		}
		one, err := s.Ledger.Adopt(ctx, []ipam.Sighting{w.Sighting}, false)
		if err != nil {
			return ipam.Adoption{}, err
		}
		adopted = append(adopted, one.Adopted...)
	}
	found, err := s.Ledger.Adopt(ctx, believed, true)
	found.Confirmed -= len(adopted)
	found.Adopted = append(adopted, found.Adopted...)
	found.Superseded = append(superseded, found.Superseded...)
	return found, err
}

// believe returns why a VM is not given the address that it shows.
func (s *Starter) believe(ctx context.Context, w wish, labels map[string]string, lost bool) error {
	switch {
	case labels[floatip.LabelEnabled] != "true":
		return errNotOptedIn
	case w.optedOut:
		return errOptedOut
	case slices.ContainsFunc(s.Ledger.ByOwner(w.Owner.UID), func(line ipam.Allocation) bool {
		return ipam.FamilyOf(line.Address) == ipam.FamilyOf(w.Address) && line.Address != w.Address
	}):
		return errHoldsAnother
	}
	_, err := s.Ledger.Reserve(ctx, ipam.Request{
		Namespace: w.Owner.Namespace, Name: w.Owner.Name, NamespaceLabels: labels, Addresses: []netip.Addr{w.Address}, DryRun: true,
	})
	if lost && (errors.Is(err, ipam.ErrLimit) || errors.Is(err, ipam.ErrDraining)) {
		return nil
	}
	return err
}
