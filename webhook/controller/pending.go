package controller

import (
	"context"
	"errors"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

// pendingAge is how old a promise must be before its VM is looked for. The API server gives a request up after at most
// 34 s and retries within its client's 60 s.
const pendingAge = 90 * time.Second

// pendingInterval is how often old promises are looked for.
const pendingInterval = 15 * time.Second

// Pending frees promises whose VM never appeared: another webhook, a quota or the schema refused it after it was
// promised an address.
type Pending struct {
	Ledger  *ipam.Ledger
	Cluster Cluster
	Metrics *Metrics
	Started *Starter
	Log     logr.Logger
}

// SetupWithManager lets the manager run it.
func (p *Pending) SetupWithManager(mgr ctrl.Manager) error { return mgr.Add(p) }

// Start looks every pendingInterval until ctx ends.
func (p *Pending) Start(ctx context.Context) error {
	if p.Started.wait(ctx) != nil {
		return nil
	}
	ticker := time.NewTicker(pendingInterval)
	defer ticker.Stop()
	for {
		if err := p.Sweep(ctx); err != nil {
			p.Log.Error(err, "could not settle old promises")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// Sweep settles every promise that is older than pendingAge: freed if the API server has no such VM, Bound if it has.
// A promise stays as it is while the API server does not answer.
func (p *Pending) Sweep(ctx context.Context) error {
	owners := map[floatip.Owner]bool{}
	for _, line := range p.Ledger.StalePending(pendingAge) {
		owners[line.Owner] = true
	}
	var errs []error
	for owner := range owners {
		errs = append(errs, p.settle(ctx, owner))
	}
	return errors.Join(errs...)
}

func (p *Pending) settle(ctx context.Context, owner floatip.Owner) error {
	exists, err := p.Cluster.vmExists(ctx, owner)
	if err != nil {
		return err
	}
	if exists {
		_, err := p.Ledger.Bind(ctx, floatip.Claim{}, owner, ipam.Cause{Reason: "VM is stored"})
		return err
	}
	released, err := p.Ledger.Release(ctx, owner.UID, ipam.Cause{Reason: "VM was never stored"})
	for _, line := range released {
		p.Log.Info("freed promise", "address", line.Address, "pool", line.Pool, "vm", owner, "uid", owner.UID)
		p.Metrics.expired(line.Pool)
	}
	return err
}
