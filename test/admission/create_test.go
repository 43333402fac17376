package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/test/rig/process"
)

// generate is a VM whose name the API server makes up.
func (n *tenant) generate(prefix string) *kubevirtv1.VirtualMachine {
	vm := n.newVM("", nil)
	vm.GenerateName = prefix
	return vm
}

// Names that are made up are known in the validating phase only; each VM ends with one address of its own.
func generateName(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	const count = 8
	vms, errs := make([]*kubevirtv1.VirtualMachine, count), make([]error, count)
	var all sync.WaitGroup
	for i := range count {
		vms[i] = n.generate("web-")
		all.Go(func() { errs[i] = n.admin.Create(n.ctx, vms[i]) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for _, vm := range vms {
		n.bound(vm)
	}
	if lines := n.lines(); len(lines) != count {
		t.Errorf("%d VMs, and the ledger has %v", count, lines)
	}
}

// The API server makes up another name when the first ones are taken: it validates one object several times, with
// another name and UID each time. Whoever takes the names is a webhook of the test, which is called with each of them.
func generateNameCollision(t *testing.T, w *world) {
	for _, tc := range []struct {
		name string
		// after has the name taken after floatip wrote it into the ledger; otherwise nobody knows which comes first.
		after bool
	}{{"after the commit", true}, {"at the same time", false}} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			n := w.tenant(t, 10)
			var calls atomic.Int32
			var problem atomic.Value
			const collisions = 3
			n.validating(func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
				if !strings.HasPrefix(r.Name, "web-") || r.UserInfo.Username != "kubernetes-admin" || calls.Add(1) > collisions {
					return allowed()
				}
				if tc.after {
					err := process.Wait(n.ctx, nil, "the commit of "+r.Name, func(context.Context) error {
						if !slices.ContainsFunc(n.lines(ipam.Pending), n.named(r.Name)) {
							return errors.New("not yet")
						}
						return nil
					})
					if err != nil {
						problem.Store(err)
					}
				}
				taker := n.newVM(r.Name, map[string]string{floatip.LabelEnabled: "false"})
				if err := n.as(t, "taker", "system:masters").Create(n.ctx, taker); err != nil {
					problem.Store(err)
				}
				return allowed()
			})
			vm := n.generate("web-")
			if err := n.admin.Create(n.ctx, vm); err != nil {
				t.Fatal(err)
			}
			if err := problem.Load(); err != nil {
				t.Fatal(err)
			}
			n.bound(vm)
			if got := calls.Load(); got != collisions+1 {
				t.Errorf("%d names were tried, want %d", got, collisions+1)
			}
			if lines := n.lines(); len(lines) != 1 {
				t.Errorf("one VM with an address, and the ledger has %v", lines)
			}
		})
	}
}

// A VM that takes the name of a deleted one, at once, is another VM, and gets the same address.
func nameReuse(t *testing.T, w *world) {
	for _, tc := range []struct {
		name        string
		annotations func(*tenant) map[string]string
	}{
		{"next free address", func(*tenant) map[string]string { return nil }},
		{"requested address", func(n *tenant) map[string]string { return request(n.address(7)) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			n := w.tenant(t, 10)
			n.create("other", nil)
			old := n.create("again", tc.annotations(n))
			address := n.bound(old)
			for range 3 {
				if err := n.admin.Delete(n.ctx, old); err != nil {
					t.Fatal(err)
				}
				// Without a pause: create until the name is free.
				vm, err := n.newVM("again", tc.annotations(n)), error(nil)
				for {
					if err = n.admin.Create(n.ctx, vm); !apierrors.IsAlreadyExists(err) {
						break
					}
					vm = n.newVM("again", tc.annotations(n))
				}
				if err != nil {
					t.Fatal(err)
				}
				if vm.UID == old.UID {
					t.Fatalf("the old VM, UID %s", vm.UID)
				}
				if got := n.bound(vm); got != address {
					t.Errorf("the VM of the same name got %s, want %s", got, address)
				}
				old = vm
			}
			n.mustKubectl(n.manifest("again", tc.annotations(n)), "replace", "--force", "-f", "-")
			if got := n.bound(n.get("again")); got != address {
				t.Errorf("after kubectl replace --force: %s, want %s", got, address)
			}
			if lines := n.lines(ipam.Pending, ipam.Bound); len(lines) != 2 {
				t.Errorf("two VMs, and the ledger has %v", lines)
			}
		})
	}
}

// Of many who ask for one address at the same time, one gets it; the others are told who.
func staticRace(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	const rivals = 8
	errs := make([]error, rivals)
	var all sync.WaitGroup
	for i := range rivals {
		all.Go(func() {
			errs[i] = n.admin.Create(n.ctx, n.newVM(fmt.Sprintf("rival-%d", i), request(n.address(3))))
		})
	}
	all.Wait()
	winner := slices.Index(errs, nil)
	if winner < 0 {
		t.Fatalf("nobody got it: %v", errs)
	}
	vm := n.get(fmt.Sprintf("rival-%d", winner))
	if got := n.bound(vm); got != n.address(3) {
		t.Errorf("the winner got %s", got)
	}
	for i, err := range errs {
		if i == winner {
			continue
		}
		if !apierrors.IsConflict(err) {
			t.Errorf("rival-%d: %v, want a conflict", i, err)
		}
		wantRefusal(t, fmt.Sprintf("rival-%d", i), err, n.address(3), n.ns+"/"+vm.Name)
	}
}
