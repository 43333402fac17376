package controller

import (
	"context"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/webhook"
)

// orphanHold is how long an address stays held whose VM the cluster knows nothing of, not even a FloatingIP object: the
// API server may have been restored from an old backup while the VM's pods run on.
const orphanHold = 24 * time.Hour

// Starter compares ledger and cluster once, before anything is handed out or taken back.
type Starter struct {
	Ledger  *ipam.Ledger
	Cluster Cluster
	Events  Events
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
	pools, err := readPools(ctx, s.Cluster.Cached)
	if err != nil {
		return err
	}
	s.Ledger.SetPools(valid(pools))
	skipped := func(name string) { s.Log.Info("skipped a FloatingIP that cannot be read", "floatingip", name) }
	seen, err := sighter{s.Ledger.ByClaim, skipped}.read(ctx, s.Cluster.Cached)
	if err != nil {
		return err
	}
	if err := s.check(ctx); err != nil {
		return err
	}
	found, err := s.adopt(ctx, seen)
	if err != nil {
		return err
	}
	s.report(found)
	again := s.absent(found.Missing, seen)
	s.orphansUntil, s.orphans = time.Now().Add(orphanHold), map[string]bool{}
	for _, owner := range again {
		s.orphans[owner.UID] = true
	}
	close(s.done)
	s.Gate.Open()
	s.Log.Info("ledger and cluster agree, serving", "pools", len(pools), "adopted", len(found.Adopted),
		"confirmed", found.Confirmed, "missing", len(found.Missing), "disputed", len(found.Disputed), "took", time.Since(began))
	for _, d := range found.Disputed {
		again = append(again, d.Holder.Owner)
	}
	_ = s.Look(ctx, again...) // it fails when the process ends
	return nil
}

// absent returns the VMs that hold or claim an address in the ledger and that the cluster does not show with one.
func (s *Starter) absent(missing []ipam.Allocation, seen sightings) []floatip.Owner {
	shown := map[string]bool{}
	for _, one := range seen.all() {
		shown[one.Owner.UID] = true
	}
	var owners []floatip.Owner
	for _, line := range missing {
		owners = append(owners, line.Owner)
	}
	for _, d := range s.Ledger.Disputes() {
		for _, c := range d.Claimants {
			if !shown[c.Owner.UID] {
				owners = append(owners, c.Owner)
			}
		}
	}
	return owners
}

// check looks whether the ledger contradicts itself, before anything is built on it: an address that one of its indexes
// gives to somebody and the other to nobody would be given twice.
func (s *Starter) check(ctx context.Context) error {
	report, err := s.Ledger.Check(ctx, ipam.Against{})
	if err != nil {
		return err
	}
	if err := report.Damage(); err != nil {
		return fmt.Errorf("check before the start: %w; the file is left as it is: keep a copy of it, then restore a backup, or "+
			"move it away and let floatip rebuild it from the FloatingIP objects and the VMs", err)
	}
	for _, p := range report.Problems {
		s.Log.Info("the ledger's check found something", "problem", p.String())
	}
	return nil
}

func eventOf(owner floatip.Owner) event.GenericEvent {
	return event.GenericEvent{Object: vmObject(owner)}
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

// orphaned says how much longer what a VM holds and claims is to be kept because the cluster knew nothing of it at the start.
func (s *Starter) orphaned(uid string) time.Duration {
	if !s.orphans[uid] {
		return 0
	}
	return max(0, time.Until(s.orphansUntil))
}

func (s *Starter) report(found ipam.Adoption) {
	for _, line := range found.Adopted {
		s.Log.Info("adopted address", "address", line.Address, "pool", line.Pool, "vm", line.Owner, "uid", line.Owner.UID)
	}
	for _, line := range found.Superseded {
		s.Log.Info("the cluster shows the VM with another address", "address", line.Address, "vm", line.Owner, "uid", line.Owner.UID)
		s.Events.Warn(line.Owner, EventSuperseded, fmt.Sprintf("the ledger also has %s with this VM, which has another address by "+
			"now; it stays held until the VM is deleted, or until ledger release %s", line.Address, line.Address))
	}
	for _, d := range found.Disputed {
		s.Log.Info("disputed address", "address", d.Holder.Address, "holder", d.Holder.Owner, "claimants", len(d.Claimants))
		s.Events.tellParties(d)
	}
}
