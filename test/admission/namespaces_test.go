package admission

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
)

// label sets or removes the label of the tenant's namespace and waits until the API server acts by it.
func (n *tenant) label(on bool) {
	n.t.Helper()
	value := floatip.LabelEnabled + "-"
	if on {
		value = floatip.LabelEnabled + "=true"
	}
	n.mustKubectl("", "label", "namespace", n.ns, value)
	n.wait("the label to count", func(ctx context.Context) error {
		probe := n.newVM("probe", nil)
		err := n.admin.Create(ctx, probe, client.DryRunAll)
		if err == nil && (probe.Annotations[floatip.AnnotationAddress] != "") != on {
			err = errors.New("not yet")
		}
		return err
	})
}

// The label decides about new VMs. Those that are there keep what they have, and give it back when they go.
func labelToggled(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	held := n.create("held", nil)
	address := n.bound(held)
	n.label(false)
	without := n.create("without", nil)
	if got := without.Annotations[floatip.AnnotationAddress]; got != "" {
		t.Errorf("a VM of a namespace that no longer opts in got %s", got)
	}
	if got := n.bound(n.get("held")); got != address {
		t.Errorf("the VM had %s, has %s", address, got)
	}
	_, err := n.kubectl("", "annotate", "vm", "held", "--overwrite", floatip.AnnotationAddress+"="+n.address(9))
	if got := n.get("held").Annotations[floatip.AnnotationAddress]; got != address {
		t.Errorf("without the label %s was changed to %s (%v)", floatip.AnnotationAddress, got, err)
	}
	_, err = n.kubectl("", "annotate", "vm", "without", floatip.AnnotationAddress+"="+address)
	if got := n.get("without").Annotations[floatip.AnnotationAddress]; got != "" {
		t.Errorf("without the label a VM was given %s by writing it (%v)", got, err)
	}
	n.awaitEvent("Namespace", n.ns, "FloatingIPsHeld", "1 stay held")
	n.label(true)
	if got := n.get("without").Annotations[floatip.AnnotationAddress]; got != "" {
		t.Errorf("a VM that was there got %s when its namespace opted in", got)
	}
	n.label(false)
	n.remove(held)
	n.free(address)
	n.label(true)
	n.remove(without)
	again := n.create("without", nil)
	n.bound(again)
}

// labelWhileRunning: a VM that runs carries its address on without the label, and is told for how long; what starts then
// runs without it, and is told what brings it back. That migrations are told in the same way is shown in test/migration, that
// a restart brings it back by other tests.
func labelWhileRunning(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	address := n.runs("vm", nil, func(*kubevirtv1.VirtualMachine) {})
	n.injected("vm")
	n.awaitCarried(address, v1alpha1.ReasonCarried, "")
	until := func(want bool) {
		t.Helper()
		n.wait("the condition to tell the end", func(ctx context.Context) error {
			fip := new(v1alpha1.FloatingIP)
			if err := n.admin.Get(ctx, client.ObjectKey{Name: v1alpha1.Name(netip.MustParseAddr(address))}, fip); err != nil {
				return err
			}
			c := meta.FindStatusCondition(fip.Status.Conditions, v1alpha1.ConditionCarried)
			if c == nil || c.Reason != v1alpha1.ReasonCarried || strings.Contains(c.Message, "until it migrates or starts again") != want {
				return fmt.Errorf("it is %+v", c)
			}
			return nil
		})
	}
	until(false)
	n.label(false)
	until(true)
	n.label(true)
	until(false)
	n.label(false)
	n.restartWith("vm", func(*kubevirtv1.VirtualMachine) {})
	n.awaitCarried(address, v1alpha1.ReasonNotOptedIn, "set it and restart the VM")
	n.label(true)
	n.awaitCarried(address, v1alpha1.ReasonStartedWithout, "restart the VM")
}

// crowd is how many VMs a namespace has that is deleted.
const crowd = 500

// A namespace that is deleted gives all of its addresses back, soon after its last VM is gone.
func namespaceDeleted(t *testing.T, w *world) {
	n := w.tenant(t, crowd+20)
	begun := time.Now()
	errs := make([]error, crowd)
	var all sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := range crowd {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			errs[i] = n.admin.Create(n.ctx, n.newVM(fmt.Sprintf("vm-%d", i), nil))
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	n.wait("all addresses to be Bound", func(context.Context) error {
		if bound := n.lines(ipam.Bound); len(bound) != crowd {
			return fmt.Errorf("%d are", len(bound))
		}
		return nil
	})
	t.Logf("%d VMs were created and hold addresses after %s", crowd, time.Since(begun).Round(time.Second))
	uids := map[string]string{}
	for _, line := range n.lines() {
		if other := uids[line.VM.UID]; other != "" {
			t.Errorf("%s holds %s and %s", line.VM.Name, other, line.Address)
		}
		uids[line.VM.UID] = line.Address.String()
	}

	begun = time.Now()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n.ns}}
	if err := n.admin.Delete(n.ctx, namespace); err != nil {
		t.Fatal(err)
	}
	n.wait("all VMs to be gone", func(ctx context.Context) error {
		var vms metav1.PartialObjectMetadataList
		vms.APIVersion, vms.Kind = "kubevirt.io/v1", "VirtualMachineList"
		err := n.admin.List(ctx, &vms, client.InNamespace(n.ns))
		if err == nil && len(vms.Items) > 0 {
			err = fmt.Errorf("%d are left", len(vms.Items))
		}
		return err
	})
	gone := time.Now()
	t.Logf("all VMs were gone after %s", gone.Sub(begun).Round(time.Second))
	n.wait("all addresses to be given back", func(ctx context.Context) error {
		if held := n.lines(ipam.Pending, ipam.Bound); len(held) > 0 {
			return fmt.Errorf("%d are held", len(held))
		}
		var ips v1alpha1.FloatingIPList
		if err := n.admin.List(ctx, &ips); err != nil {
			return err
		}
		left := 0
		for _, ip := range ips.Items {
			if ip.Spec.VM.Namespace == n.ns {
				left++
			}
		}
		if left > 0 {
			return fmt.Errorf("%d FloatingIPs are left", left)
		}
		return nil
	})
	t.Logf("all addresses were given back %s later", time.Since(gone).Round(100*time.Millisecond))
	if resting := n.lines(ipam.Released); len(resting) != crowd {
		t.Errorf("%d addresses rest, want %d", len(resting), crowd)
	}
}
