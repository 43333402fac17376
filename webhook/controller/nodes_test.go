package controller

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
)

func nodeWith(addresses ...string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Annotations: map[string]string{
		floatip.AnnotationProviderAddresses: strings.Join(addresses, ","),
	}}}
}

// reconcilePools makes one round and returns the condition NodeConflict of the pool "provider".
func (w *world) reconcilePools() *metav1.Condition {
	w.t.Helper()
	if _, err := w.pools.Reconcile(w.t.Context(), reconcile.Request{}); err != nil {
		w.t.Fatal(err)
	}
	var have v1alpha1.FloatingIPPool
	if err := w.client.Get(w.t.Context(), types.NamespacedName{Name: "provider"}, &have); err != nil {
		w.t.Fatal(err)
	}
	c := meta.FindStatusCondition(have.Status.Conditions, ConditionNodeConflict)
	if c == nil {
		w.t.Fatalf("the pool does not say whether a node has one of its addresses: %+v", have.Status.Conditions)
	}
	return c
}

// TestNodeThatJoinsWithAHeldAddress: the VM keeps it, and administrator and owner are told, once.
func TestNodeThatJoinsWithAHeldAddress(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.create(vm("a", "uid-a", w.commit("a", "uid-a")))
	if c := w.reconcilePools(); c.Status != metav1.ConditionFalse {
		t.Errorf("before the node joined: %+v", c)
	}
	node := nodeWith("192.168.100.50", "192.168.100.53")
	w.create(node)
	for range 2 {
		c := w.reconcilePools()
		if c.Status != metav1.ConditionTrue || c.Message != "192.168.100.50 is held by a VM, and node n1 has it too" {
			t.Errorf("condition %+v", c)
		}
	}
	if told := w.events(); len(told) != 1 || !strings.Contains(told[0], EventConflict) || !strings.Contains(told[0], "192.168.100.50") {
		t.Errorf("events %q, want one about the conflict", told)
	}
	if got := w.state(); got != "Pending uid-a" {
		t.Errorf("the address is %s, want it where it was", got)
	}
	// The VM goes: its address is the node's alone and given to nobody.
	if _, err := w.ledger.Release(t.Context(), "uid-a", ipam.Cause{}); err != nil {
		t.Fatal(err)
	}
	if c := w.reconcilePools(); c.Status != metav1.ConditionFalse || c.Reason != "NoneHeld" {
		t.Errorf("after the VM was deleted: %+v", c)
	}
	for want := 51; want <= 59; want++ {
		if want == 53 {
			continue
		}
		offer, err := w.ledger.Reserve(t.Context(), ipam.Request{Namespace: "vms", Claim: floatip.NewClaim()})
		if err != nil || offer.Addresses[0] != address(want) {
			t.Fatalf("next: %v, %v; want %s", offer.Addresses, err, address(want))
		}
	}
	if offer, err := w.ledger.Reserve(t.Context(), ipam.Request{Namespace: "vms", Claim: floatip.NewClaim()}); err == nil {
		t.Errorf("the node's own address %v was handed out", offer.Addresses)
	}
}

// TestPoolThatComesAfterTheNode: what an agent said before there was any pool counts with the first round of a new one.
func TestPoolThatComesAfterTheNode(t *testing.T) {
	w := newWorld(t, nodeWith("10.0.0.11", "203.0.113.1"))
	w.start()
	w.create(pool("late", "203.0.113.1-203.0.113.9"))
	w.reconcilePools()
	offer, err := w.ledger.Reserve(t.Context(), ipam.Request{Namespace: "vms", Claim: floatip.NewClaim(), Pools: []string{"late"}})
	if got := fmt.Sprint(offer.Addresses, err); !strings.Contains(got, "203.0.113.2") {
		t.Errorf("handed out %s, want the first that no node has", got)
	}
}

// TestNodeThatClaimsTooMuch: one node's word does not empty a pool.
func TestNodeThatClaimsTooMuch(t *testing.T) {
	var all []string
	for a := address(50); len(all) < 3*floatip.MaxProviderAddresses; a = a.Next() {
		all = append(all, a.String())
	}
	if got := addressesOf(nodeWith(all...)); len(got) != floatip.MaxProviderAddresses || got[0] != address(50) {
		t.Errorf("%d addresses of %d are believed, from %v on; want %d", len(got), len(all), got[0], floatip.MaxProviderAddresses)
	}
}

// Whatever a node's annotation says, it is a bounded number of addresses, each once, in order and in its one form.
func FuzzNodeAddresses(f *testing.F) {
	for _, text := range []string{"", ",", "192.168.100.50,2001:db8::1", "::ffff:192.168.100.50", "2001:DB8:0:0::1, fe80::1%eth0", strings.Repeat("1.2.3.4,", 99)} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		own := addressesOf(nodeWith(text))
		if len(own) > floatip.MaxProviderAddresses {
			t.Errorf("%d addresses", len(own))
		}
		for i, a := range own {
			if again, err := ipam.ParseAddress(a.String()); err != nil || again != a || i > 0 && !own[i-1].Less(a) {
				t.Errorf("%v: %s became %s, %v", own, a, again, err)
			}
		}
	})
}
