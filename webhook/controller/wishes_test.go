package controller

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

// KubeVirt's accounts may write any annotation, and they write what a tenant has put into a VirtualMachinePool or a
// snapshot. While the webhook is away nobody undoes that: at its next start the VM has an address only if it might have
// asked for it.
func TestForgedWhileTheWebhookWasAway(t *testing.T) {
	const another = "192.168.101.7"
	for _, tc := range []struct {
		name    string
		address string
		forge   func(w *world) client.Object // returns the VM "x"
		told    string                       // why not; empty if it has the address
	}{
		{"as a request would get it", "192.168.100.55", func(*world) client.Object { return vm("x", "uid-x", ownKeys("192.168.100.55")) }, ""},
		{"namespace that did not opt in", "192.168.100.55", func(*world) client.Object {
			o := vm("x", "uid-x", ownKeys("192.168.100.55"))
			o.SetNamespace("quiet")
			return o
		}, "its namespace has no label"},
		{"VM that opted out", "192.168.100.55", func(*world) client.Object {
			keys := ownKeys("192.168.100.55")
			keys[floatip.LabelEnabled] = "false"
			return vm("x", "uid-x", keys)
		}, `is "false"`},
		{"pool of other namespaces", another, func(*world) client.Object { return vm("x", "uid-x", ownKeys(another)) }, "namespaceSelector"},
		{"in no pool", "203.0.113.9", func(*world) client.Object { return vm("x", "uid-x", ownKeys("203.0.113.9")) }, "no pool has it"},
		{"rests after another VM", "192.168.100.51", func(w *world) client.Object {
			w.bound("before", "uid-before")
			if _, err := w.ledger.Release(w.t.Context(), "uid-before", ipam.Cause{}); err != nil {
				w.t.Fatal(err)
			}
			return vm("x", "uid-x", ownKeys("192.168.100.51"))
		}, "rests until"},
		{"held by another VM", "192.168.100.51", func(w *world) client.Object {
			w.create(vm("holder", "uid-holder", w.bound("holder", "uid-holder")))
			return vm("x", "uid-x", ownKeys("192.168.100.51"))
		}, "held by VM vms/holder"},
		{"held by another tenant's VM", "192.168.100.51", func(w *world) client.Object {
			w.create(vm("holder", "uid-holder", w.bound("holder", "uid-holder")))
			o := vm("x", "uid-x", ownKeys("192.168.100.51"))
			o.SetNamespace("tenant")
			return o
		}, "held by a VM of another namespace"},
		{"a second one under its own claim", "192.168.100.55", func(w *world) client.Object {
			keys := w.bound("x", "uid-x")
			keys[floatip.AnnotationAddress] = "192.168.100.55"
			return vm("x", "uid-x", keys)
		}, "holds another address"},
		{"beyond the limit of the namespace", "192.168.102.2", func(w *world) client.Object {
			w.create(vm("a", "uid-a", ownKeys("192.168.102.1")))
			return vm("x", "uid-x", ownKeys("192.168.102.2"))
		}, "holds 1 of the 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			closed, limited := pool("closed", "192.168.101.0/24"), pool("limited", "192.168.102.0/24")
			closed.Spec.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "others"}}
			limited.Spec.PerNamespaceLimit, limited.Spec.AutoAssign = 1, new(false)
			w := newWorld(t, closed, limited, namespace("quiet", "false"), namespace("tenant", "true"))
			w.ledger.SetPools(valid(mustPools(t, w)))
			w.bound("old", "uid-old") // this ledger was not lost
			if _, err := w.ledger.Release(t.Context(), "uid-old", ipam.Cause{}); err != nil {
				t.Fatal(err)
			}
			w.now = w.now.Add(time.Hour)
			forged := tc.forge(w)
			w.create(forged)
			w.start()
			line, _ := w.ledger.Lookup(netip.MustParseAddr(tc.address))
			has := line.Owner.UID == "uid-x" && line.State == ipam.Bound
			if has != (tc.told == "") {
				t.Errorf("after the start %s is %s, %+v", tc.address, line.State, line.Owner)
			}
			if disputes := w.ledger.Disputes(); len(disputes) > 0 {
				t.Errorf("a dispute is a gain: its claimant is the next holder: %+v", disputes)
			}
			told := w.events()
			if tc.told == "" {
				if diff := cmp.Diff([]string(nil), told); diff != "" {
					t.Errorf("events (-want +got):\n%s", diff)
				}
			} else if len(told) != 1 || !strings.Contains(told[0], EventNotHeld) || !strings.Contains(told[0], tc.told) {
				t.Errorf("events %q, want one %s with %q", told, EventNotHeld, tc.told)
			}
		})
	}
}

// bound gives the VM the next address and returns its annotations.
func (w *world) bound(name, uid string) map[string]string {
	w.t.Helper()
	keys := w.commit(name, uid)
	owner := floatip.Owner{Namespace: "vms", Name: name, UID: uid}
	if _, err := w.ledger.Bind(w.t.Context(), floatip.Claim{}, owner, ipam.Cause{}); err != nil {
		w.t.Fatal(err)
	}
	return keys
}
