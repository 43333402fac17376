package controller

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook"
)

// orphanHold is how long an address stays held whose VM the cluster knows nothing of, not even a FloatingIP object: the
// API server may have been restored from an old backup while the VM's pods run on.
const orphanHold = 24 * time.Hour

// Starter compares ledger and cluster once, before anything is handed out or taken back.
type Starter struct {
	Ledger *ipam.Ledger
	Cached client.Reader
	Events Events
	// Gate is opened when the comparison is done.
	Gate *webhook.Gate
	Log  logr.Logger

	done chan struct{}
	// Written before done is closed.
	orphansUntil time.Time
	orphans      map[string]bool // by UID
	// look asks for a round on each orphan, which no object of the cluster would cause.
	look chan event.GenericEvent
}

// NewStarter returns a Starter with its exported fields to be set.
func NewStarter() *Starter {
	return &Starter{done: make(chan struct{}), look: make(chan event.GenericEvent)}
}

var _ manager.Runnable = (*Starter)(nil)

// SetupWithManager lets the manager run it after the caches are filled.
func (s *Starter) SetupWithManager(mgr ctrl.Manager) error { return mgr.Add(s) }

// Start compares and opens the gate. An error ends the process: it must not serve with half a ledger.
func (s *Starter) Start(ctx context.Context) error {
	began := time.Now()
	pools, err := readPools(ctx, s.Cached)
	if err != nil {
		return err
	}
	s.Ledger.SetPools(valid(pools))
	seen, err := s.sightings(ctx)
	if err != nil {
		return err
	}
	found, err := s.Ledger.Adopt(ctx, seen, true)
	if err != nil {
		return err
	}
	s.report(found)
	s.orphansUntil, s.orphans = time.Now().Add(orphanHold), map[string]bool{}
	for _, line := range found.Missing {
		s.orphans[line.Owner.UID] = true
	}
	close(s.done)
	s.Gate.Open()
	s.Log.Info("ledger and cluster agree, serving", "pools", len(pools), "adopted", len(found.Adopted),
		"confirmed", found.Confirmed, "missing", len(found.Missing), "disputed", len(found.Disputed), "took", time.Since(began))
	return s.lookAt(ctx, found.Missing)
}

func (s *Starter) lookAt(ctx context.Context, lines []ipam.Allocation) error {
	for _, line := range lines {
		select {
		case s.look <- event.GenericEvent{Object: vmObject(line.Owner)}:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// wait returns when the comparison is done.
func (s *Starter) wait(ctx context.Context) error {
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// orphaned says how much longer lines are to be kept because the cluster knew nothing of their VM at the start.
func (s *Starter) orphaned(lines []ipam.Allocation) time.Duration {
	if !s.orphans[lines[0].Owner.UID] {
		return 0
	}
	return max(0, time.Until(s.orphansUntil))
}

func (s *Starter) report(found ipam.Adoption) {
	for _, line := range found.Adopted {
		s.Log.Info("adopted address", "address", line.Address, "pool", line.Pool, "vm", line.Owner, "uid", line.Owner.UID)
	}
	for _, d := range found.Disputed {
		s.Log.Info("disputed address", "address", d.Holder.Address, "holder", d.Holder.Owner, "claimants", len(d.Claimants))
		for _, c := range d.Claimants {
			s.Events.Warn(c.Owner, EventDisputed, fmt.Sprintf("floating IP %s is held by VM %s; kubectl floatip resolve decides", c.Address, d.Holder.Owner))
		}
	}
}

// sightings reads who has which address: FloatingIP objects, which only floatip may write, and VMs for the addresses
// that have no such object.
func (s *Starter) sightings(ctx context.Context) ([]ipam.Sighting, error) {
	var ips v1alpha1.FloatingIPList
	if err := s.Cached.List(ctx, &ips); err != nil {
		return nil, fmt.Errorf("list FloatingIPs: %w", err)
	}
	vms := metadataList(vmKind)
	if err := s.Cached.List(ctx, vms); err != nil {
		return nil, fmt.Errorf("list VMs: %w", err)
	}
	claims := map[string]floatip.Claim{}
	for _, vm := range vms.Items {
		if claim, err := floatip.ParseClaim(vm.Annotations[floatip.AnnotationClaim]); err == nil {
			claims[string(vm.UID)] = claim
		}
	}
	var seen []ipam.Sighting
	shown := map[netip.Addr]bool{}
	for _, ip := range ips.Items {
		address, err := ipam.ParseAddress(ip.Spec.Address)
		if err != nil || ip.Spec.VM.UID == "" {
			s.Log.Info("skipped a FloatingIP that cannot be read", "floatingip", ip.Name)
			continue
		}
		shown[address] = true
		uid := string(ip.Spec.VM.UID)
		seen = append(seen, ipam.Sighting{
			Address: address, Pool: ip.Spec.Pool, Claim: claims[uid], Source: "FloatingIP",
			Owner: floatip.Owner{Namespace: ip.Spec.VM.Namespace, Name: ip.Spec.VM.Name, UID: uid},
		})
	}
	for _, vm := range vms.Items {
		owner := floatip.Owner{Namespace: vm.Namespace, Name: vm.Name, UID: string(vm.UID)}
		seen = append(seen, s.sightingsOfVM(owner, vm.Annotations, shown)...)
	}
	return seen, nil
}

// sightingsOfVM reads the annotations of a VM. Those without a claim, and those whose claim the ledger knows with
// somebody else, are no proof: they came with a copy.
func (s *Starter) sightingsOfVM(owner floatip.Owner, annotations map[string]string, shown map[netip.Addr]bool) []ipam.Sighting {
	claim, err := floatip.ParseClaim(annotations[floatip.AnnotationClaim])
	if err != nil {
		return nil
	}
	for _, line := range s.Ledger.ByClaim(claim) {
		if line.Owner.UID != owner.UID {
			return nil
		}
	}
	addresses, err := webhook.ParseAddresses(annotations[floatip.AnnotationAddress])
	if err != nil {
		return nil
	}
	var seen []ipam.Sighting
	for _, address := range addresses {
		if !shown[address] {
			seen = append(seen, ipam.Sighting{Address: address, Owner: owner, Claim: claim, Source: "VirtualMachine"})
		}
	}
	return seen
}
