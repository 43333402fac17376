package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/story"
)

// addPool makes a pool that VMs must name.
func addPool(t *testing.T, s *story.Story, name string, addresses ...string) *v1alpha1.FloatingIPPool {
	t.Helper()
	no := false
	pool := &v1alpha1.FloatingIPPool{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.FloatingIPPoolSpec{Addresses: addresses, AutoAssign: &no},
	}
	if err := s.Client.Create(bounded(t), pool); err != nil {
		t.Fatal(err)
	}
	return pool
}

// awaitPool waits until a pool's status fits.
func awaitPool(t *testing.T, s *story.Story, name string, fits func(v1alpha1.FloatingIPPoolStatus) bool) {
	t.Helper()
	err := process.Wait(bounded(t), nil, "pool "+name, func(ctx context.Context) error {
		var pool v1alpha1.FloatingIPPool
		if err := s.Client.Get(ctx, client.ObjectKey{Name: name}, &pool); err != nil {
			return err
		}
		if !fits(pool.Status) {
			return fmt.Errorf("its status is %+v", pool.Status)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func fromPool(pools string) map[string]string {
	return map[string]string{floatip.AnnotationPool: pools}
}

// wantRefusal wants an error that says all of texts.
func wantRefusal(t *testing.T, what string, err error, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want a refusal that says %q", what, err, text)
		}
	}
}

func overlappingPools(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	addPool(t, s, "late", "192.168.100.90-192.168.100.105")
	awaitPool(t, s, "late", func(p v1alpha1.FloatingIPPoolStatus) bool {
		return meta.IsStatusConditionTrue(p.Conditions, "Overlapping") && p.IPv4 != nil && p.IPv4.Capacity == "6"
	})
	vm, err := createVM(ctx, s, story.Namespace, "of-late", fromPool("late"))
	if err != nil || vm.Annotations[floatip.AnnotationAddress] != "192.168.100.100" {
		t.Errorf("a VM of the later pool: %v, %v; want 192.168.100.100, the first that the older pool does not have",
			vm.Annotations[floatip.AnnotationAddress], err)
	}
	// The whole provider network, with the nodes in it.
	addPool(t, s, "wide", "192.168.100.0/24")
	for _, node := range s.Rig.LAN.Nodes {
		err := process.Wait(ctx, nil, "the address of "+node.Name+" to be refused", func(ctx context.Context) error {
			_, err := createVM(ctx, s, story.Namespace, "takes-"+node.Name, map[string]string{floatip.AnnotationRequest: node.Provider.String()})
			switch {
			case err == nil:
				t.Errorf("%s, which is %s's own, was given to a VM", node.Provider, node.Name)
			case !strings.Contains(err.Error(), "never handed out"):
				return err // the pool is not known yet
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if err := s.Client.Delete(ctx, &v1alpha1.FloatingIPPool{ObjectMeta: metav1.ObjectMeta{Name: "wide"}}); err != nil {
		t.Error(err)
	}
}

func shrinkAndDrain(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	pool := addPool(t, s, "small", "192.168.110.0/29")
	addPool(t, s, "six", "2001:db8:6::/64")
	for _, name := range []string{"small", "six"} {
		awaitPool(t, s, name, func(p v1alpha1.FloatingIPPoolStatus) bool { return meta.IsStatusConditionTrue(p.Conditions, "Ready") })
	}
	vm, err := createVM(ctx, s, story.Namespace, "both", fromPool("small,six"))
	if err != nil {
		t.Fatal(err)
	}
	if got := vm.Annotations[floatip.AnnotationAddress]; got != "192.168.110.1,2001:db8:6::1" {
		t.Errorf("a VM of one pool of each family holds %q", got)
	}
	for _, a := range []string{"192.168.110.1", "2001:db8:6::1"} {
		if _, err := s.WaitBound(ctx, netip.MustParseAddr(a), vm); err != nil {
			t.Error(err)
		}
	}
	patch := func(text string) error {
		return s.Client.Patch(ctx, pool.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(text)))
	}
	wantRefusal(t, "shrink", patch(`{"spec":{"addresses":["192.168.110.4-192.168.110.6"]}}`), "1 addresses are held", "192.168.110.1 (VM demo/both)")
	wantRefusal(t, "delete", s.Client.Delete(ctx, pool.DeepCopy()), "1 addresses are held", "192.168.110.1 (VM demo/both)")
	if err := patch(`{"spec":{"drain":true}}`); err != nil {
		t.Fatal(err)
	}
	awaitPool(t, s, "small", func(p v1alpha1.FloatingIPPoolStatus) bool {
		ready := meta.FindStatusCondition(p.Conditions, "Ready")
		return ready != nil && ready.Reason == "Draining"
	})
	_, err = createVM(ctx, s, story.Namespace, "too-late", fromPool("small"))
	wantRefusal(t, "create in a pool that is drained", err, "drained")
	wantRefusal(t, "delete a drained pool in use", s.Client.Delete(ctx, pool.DeepCopy()), "192.168.110.1 (VM demo/both)")
	if err := s.Client.Delete(ctx, vm); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitReleased(ctx, netip.MustParseAddr("192.168.110.1")); err != nil {
		t.Fatal(err)
	}
	awaitPool(t, s, "small", func(p v1alpha1.FloatingIPPoolStatus) bool { return p.IPv4.Used == 0 && p.IPv4.Quarantined == 1 })
	if err := s.Client.Delete(ctx, pool.DeepCopy()); err != nil {
		t.Errorf("delete a drained pool that is empty: %v", err)
	}
}

func lostLedger(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	before := holders(t, s)
	if err := s.ScaleWebhook(ctx, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.LoseLedger(); err != nil {
		t.Fatal(err)
	}
	if err := s.ScaleWebhook(ctx, 1); err != nil {
		t.Fatal(err)
	}
	fresh, err := createVM(ctx, s, story.Namespace, "after-the-loss", nil)
	if err != nil {
		t.Fatal(err)
	}
	after := holders(t, s)
	for address, vm := range before {
		if now := after[address]; now == nil || now.UID != vm.UID {
			t.Errorf("%s was %s's and is held by %v", address, vm.Name, now)
		}
	}
	if holder := before[fresh.Annotations[floatip.AnnotationAddress]]; holder != nil {
		t.Errorf("a new VM got %s's address", holder.Name)
	}
	out, err := s.Ledger(ctx, "history", story.Floating.String())
	if err != nil || !strings.Contains(out, "Adopted") || !strings.Contains(out, story.Namespace+"/"+story.VMName) {
		t.Errorf("the history of the rebuilt ledger (%v):\n%s", err, out)
	}
}

func disputedAddress(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	no := false
	pool := &v1alpha1.FloatingIPPool{
		ObjectMeta: metav1.ObjectMeta{Name: "one"},
		Spec: v1alpha1.FloatingIPPoolSpec{
			Addresses: []string{"192.168.120.1-192.168.120.1"}, AutoAssign: &no, Quarantine: &metav1.Duration{},
		},
	}
	address := netip.MustParseAddr("192.168.120.1")
	if err := s.Client.Create(ctx, pool); err != nil {
		t.Fatal(err)
	}
	awaitPool(t, s, "one", func(p v1alpha1.FloatingIPPoolStatus) bool { return meta.IsStatusConditionTrue(p.Conditions, "Ready") })
	earlier, err := createVM(ctx, s, story.Namespace, "earlier", fromPool("one"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.WaitBound(ctx, address, earlier); err != nil {
		t.Fatal(err)
	}
	old, err := s.Ledger(ctx, "backup")
	if err == nil {
		err = s.Client.Delete(ctx, earlier)
	}
	if err == nil {
		err = s.WaitReleased(ctx, address)
	}
	if err != nil {
		t.Fatal(err)
	}
	later, err := createVM(ctx, s, story.Namespace, "later", fromPool("one"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.WaitBound(ctx, address, later); err != nil {
		t.Fatal(err)
	}
	for _, step := range []func() error{
		func() error { return s.ScaleWebhook(ctx, 0) },
		func() error { return s.RestoreLedger(old) },
		func() error { return s.ScaleWebhook(ctx, 1) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	awaitDisputed(t, s, address, later.UID, metav1.ConditionTrue)
	out, err := s.Ledger(ctx, "disputes")
	for _, text := range []string{"demo/earlier", string(earlier.UID), "demo/later", string(later.UID)} {
		if err != nil || !strings.Contains(out, text) {
			t.Errorf("disputes: %v, want %s in\n%s", err, text, out)
		}
	}
	if _, err := s.WaitEvent(ctx, later, "FloatingIPDisputed"); err != nil {
		t.Error(err)
	}
	if _, err := s.Ledger(ctx, "resolve", address.String(), "--keep", string(later.UID), "--reason", "an old copy was put back"); err != nil {
		t.Fatal(err)
	}
	awaitDisputed(t, s, address, later.UID, metav1.ConditionFalse)
	holders(t, s)
}

// awaitDisputed waits until the FloatingIP of address has the condition with that status; all the while it names the VM.
func awaitDisputed(t *testing.T, s *story.Story, address netip.Addr, vm types.UID, status metav1.ConditionStatus) {
	t.Helper()
	err := process.Wait(bounded(t), nil, "condition Disputed to be "+string(status), func(ctx context.Context) error {
		fip, err := s.FloatingIP(ctx, address)
		if err != nil {
			return err
		}
		if fip.Spec.VM.UID != vm {
			t.Errorf("the object names VM %s with UID %s, want UID %s", fip.Spec.VM.Name, fip.Spec.VM.UID, vm)
		}
		if !meta.IsStatusConditionPresentAndEqual(fip.Status.Conditions, v1alpha1.ConditionDisputed, status) {
			return fmt.Errorf("the conditions are %v", fip.Status.Conditions)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func ledgerCommands(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	out, err := s.Ledger(ctx, "check", "-o", "json")
	var report struct{ Held, Events, Count int }
	if err != nil || json.Unmarshal([]byte(out), &report) != nil || report.Held == 0 || report.Events == 0 || report.Count != 0 {
		t.Errorf("check: %v\n%s", err, out)
	}
	holder, err := s.VM(ctx, story.Namespace, "after-the-loss")
	if err != nil {
		t.Fatal(err)
	}
	address := holder.Annotations[floatip.AnnotationAddress]
	for command, want := range map[string][]string{
		"list": {address, "after-the-loss", "Bound", string(holder.UID)},
		"history --vm " + story.Namespace + "/after-the-loss": {address, "Committed", "Bound"},
		"history " + address + " --since 1h -o json":          {`"requestUID": "`, `"user": "`, string(holder.UID)},
		"history --namespace nowhere":                         {"ADDRESS"},
		"disputes":                                            {"no address is disputed"},
	} {
		out, err := s.Ledger(ctx, strings.Fields(command)...)
		for _, text := range want {
			if err != nil || !strings.Contains(out, text) {
				t.Errorf("ledger %s: %v, want %q in\n%s", command, err, text, out)
			}
		}
	}
	_, err = s.Ledger(ctx, "release", address)
	wantRefusal(t, "release the address of a VM", err, "the VM of VM demo/after-the-loss", "exists")
	_, err = s.Ledger(ctx, "resolve", address, "--keep", "of-nobody")
	wantRefusal(t, "resolve what is not disputed", err, "nothing to resolve")
	_, err = s.InWebhook(ctx, "/floatip-webhook", "--ledger=/var/lib/floatip/ledger.db", "--cluster-networks=100.0.0.0/16", "--ledger-socket=")
	wantRefusal(t, "a second process on the file", err, "open in another process")
}
