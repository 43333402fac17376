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

// pendingInterval is how often old promises are looked for, or more often if they are old after less.
const pendingInterval = 15 * time.Second

// Pending frees promises whose VM never appeared: another webhook, a quota or the schema refused it after it was
// promised an address.
type Pending struct {
	Ledger  *ipam.Ledger
	Cluster Cluster
	Metrics *Metrics
	Started *Starter
	Log     logr.Logger
	// Age is how old a promise must be before its VM is looked for. The API server gives a request up after at most
	// 34 s and its clients repeat it within 60 s: 90 s are on the safe side.
	Age time.Duration
}

// SetupWithManager lets the manager run it.
func (p *Pending) SetupWithManager(mgr ctrl.Manager) error { return mgr.Add(p) }

// Start looks regularly until ctx ends.
func (p *Pending) Start(ctx context.Context) error {
	if p.Started.wait(ctx) != nil {
		return nil
	}
	ticker := time.NewTicker(min(pendingInterval, p.Age/4))
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

// Sweep settles every promise that is older than Age: freed if the API server has no such VM, Bound if it has.
// A promise stays as it is while the API server does not answer. Those that floatip kept when it was started again are among
// them: they have no UID, and some no name.
func (p *Pending) Sweep(ctx context.Context) error {
	promises := map[promise]bool{}
	for _, line := range p.Ledger.StalePending(p.Age) {
		promises[promise{line.Owner, line.Claim}] = true
	}
	var errs []error
	for one := range promises {
		errs = append(errs, p.settle(ctx, one))
	}
	return errors.Join(errs...)
}

type promise struct {
	owner floatip.Owner
	claim floatip.Claim
}

func (p *Pending) settle(ctx context.Context, one promise) error {
	vm, err := p.Cluster.stored(ctx, one.owner, one.claim)
	if err != nil {
		return err
	}
	owner := one.owner
	if vm != nil {
		owner.Name, owner.UID = vm.Name, string(vm.UID)
		_, err := p.Ledger.Bind(ctx, one.claim, owner, ipam.Cause{Reason: "VM is stored"})
		return err
	}
	var released []ipam.Allocation
	if owner.UID == "" {
		released = p.Ledger.Expire(one.claim)
	} else {
		released, err = p.Ledger.ReleasePending(ctx, owner.UID, ipam.Cause{Reason: "VM was never stored"})
	}
	for _, line := range released {
		p.Log.Info("freed promise", "address", line.Address, "pool", line.Pool, "vm", owner, "uid", owner.UID)
		p.Metrics.expired(line.Pool)
	}
	return err
}
