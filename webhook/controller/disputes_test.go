package controller

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
)

// disputed is a world whose ledger, an old copy that was put back, gives 192.168.100.50 to the VM "a", while the cluster
// shows it with "b". Both VMs are stored.
func disputed(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.ledger.SetPools(valid(mustPools(t, w)))
	a := vm("a", "uid-a", w.commit("a", "uid-a"))
	if _, err := w.ledger.Bind(t.Context(), floatip.Claim{}, floatip.Owner{Namespace: "vms", Name: "a", UID: "uid-a"}, ipam.Cause{}); err != nil {
		t.Fatal(err)
	}
	shown := floatingIP("50", "b", "uid-b")
	shown.Status = v1alpha1.FloatingIPStatus{
		Phase: v1alpha1.PhaseReady, Node: "n1",
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready"}},
	}
	w.create(a, vm("b", "uid-b", ownKeys("192.168.100.50")), shown)
	if err := w.client.Status().Update(t.Context(), shown); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.lookAll()
	return w
}

// lookAll makes a round on the names "a" and "b".
func (w *world) lookAll() {
	w.t.Helper()
	for _, name := range []string{"a", "b", "a", "b"} { // an object that was dropped is made in the next round
		if _, err := w.vms.Reconcile(w.t.Context(), requestOf(name)); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) people() *People {
	return &People{Ledger: w.ledger, Live: w.client, Writer: w.client, Events: Events{Recorder: w.recorder}, Started: w.starter}
}

// condition returns status and number of conditions of the object of 192.168.100.50.
func (w *world) condition() (disputed string, all int) {
	w.t.Helper()
	var ip v1alpha1.FloatingIP
	if err := w.client.Get(w.t.Context(), types.NamespacedName{Name: "192.168.100.50"}, &ip); err != nil {
		w.t.Fatal(err)
	}
	if c := meta.FindStatusCondition(ip.Status.Conditions, v1alpha1.ConditionDisputed); c != nil {
		disputed = string(c.Status)
	}
	return disputed, len(ip.Status.Conditions)
}

// Until somebody decides, the packets go where they went, and everybody who looks sees why.
func TestDisputeStaysAsItIs(t *testing.T) {
	w := disputed(t)
	if diff := cmp.Diff([]string{"192.168.100.50 uid-b Ready"}, w.floatingIPs()); diff != "" {
		t.Errorf("FloatingIPs (-want +got):\n%s", diff)
	}
	if got, all := w.condition(); got != "True" || all != 2 {
		t.Errorf("condition Disputed is %q, %d conditions, want True beside the agent's", got, all)
	}
	if got := w.events(); len(got) != 2 {
		t.Errorf("events: %q", got)
	}
	if got := w.state(); got != "Bound uid-a" {
		t.Error(got)
	}
}

// The command decides: the loser's annotations go, the object is the winner's.
func TestResolve(t *testing.T) {
	for keep, loser := range map[string]string{"a": "b", "b": "a"} {
		t.Run(keep, func(t *testing.T) {
			w := disputed(t)
			w.events()
			parties := []floatip.Owner{{Namespace: "vms", Name: "a", UID: "uid-a"}, {Namespace: "vms", Name: "b", UID: "uid-b"}}
			if _, err := w.ledger.Resolve(t.Context(), address(50), "uid-"+keep, ipam.Cause{}); err != nil {
				t.Fatal(err)
			}
			if err := w.people().Settle(t.Context(), address(50), parties); err != nil {
				t.Fatal(err)
			}
			w.lookAll()
			var ips v1alpha1.FloatingIPList
			if err := w.client.List(t.Context(), &ips); err != nil || len(ips.Items) != 1 || ips.Items[0].Spec.VM.UID != types.UID("uid-"+keep) {
				t.Errorf("FloatingIPs: %+v, %v", ips.Items, err)
			}
			if got, _ := w.condition(); got == "True" {
				t.Error("still flagged")
			}
			for name, want := range map[string]string{keep: "192.168.100.50", loser: ""} {
				o := vm(name, "", nil)
				if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
					t.Fatal(err)
				}
				if got := o.GetAnnotations()[floatip.AnnotationAddress]; got != want {
					t.Errorf("VM %s shows %q, want %q", name, got, want)
				}
			}
			if got := w.events(); len(got) != 1 {
				t.Errorf("events: %q, want one for the loser", got)
			}
		})
	}
}

// A disputed address is counted where somebody looks who reads no objects.
func TestDisputesAreCounted(t *testing.T) {
	w := disputed(t)
	figure := func() (value float64) {
		registry := prometheus.NewRegistry()
		NewMetrics(registry, w.ledger)
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == MetricDisputed {
				value = f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		return value
	}
	if got := figure(); got != 1 {
		t.Errorf("%g disputed addresses, want 1", got)
	}
	if _, err := w.ledger.Resolve(t.Context(), address(50), "uid-b", ipam.Cause{}); err != nil {
		t.Fatal(err)
	}
	if got := figure(); got != 0 {
		t.Errorf("%g disputed addresses after the decision, want 0", got)
	}
}

// A party that is gone ends the dispute without a command.
func TestDisputeEndsWithTheClaimant(t *testing.T) {
	w := disputed(t)
	w.remove(vm("b", "uid-b", nil))
	w.lookAll()
	if d := w.ledger.Disputes(); len(d) > 0 {
		t.Errorf("still disputed: %+v", d)
	}
	w.lookAll()
	if diff := cmp.Diff([]string{"192.168.100.50 uid-a Bound"}, w.floatingIPs()); diff != "" {
		t.Errorf("FloatingIPs (-want +got):\n%s", diff)
	}
}

// The claimant was deleted by force on a node that nobody reaches: the dispute goes on until the node is off.
func TestDisputeOfAForcedDeletion(t *testing.T) {
	w := disputed(t)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}} // which the object names
	w.create(node)
	w.remove(vm("b", "uid-b", nil))
	again, err := w.vms.Reconcile(t.Context(), requestOf("b"))
	if err != nil || again.RequeueAfter != heldAgain || len(w.ledger.Disputes()) != 1 {
		t.Errorf("while the node may answer: looks again after %s, %v; %d disputes", again.RequeueAfter, err, len(w.ledger.Disputes()))
	}
	w.remove(node)
	w.lookAll()
	if got := w.state(); got != "Bound uid-a" || len(w.ledger.Disputes()) != 0 {
		t.Errorf("when it is off: %s, %d disputes", got, len(w.ledger.Disputes()))
	}
}

// The cluster, an old backup that was put back, knows nothing of a VM that holds one address and claims another: its pods may
// run on with both. Neither is given up before the day is over, and then without an event of the cluster.
func TestClaimantThatTheClusterDoesNotKnow(t *testing.T) {
	w := newWorld(t)
	w.ledger.SetPools(valid(mustPools(t, w)))
	a := vm("a", "uid-a", w.commit("a", "uid-a"))
	w.commit("b", "uid-b")
	b := floatip.Owner{Namespace: "vms", Name: "b", UID: "uid-b"}
	for _, uid := range []string{"uid-a", "uid-b"} {
		if _, err := w.ledger.Bind(t.Context(), floatip.Claim{}, floatip.Owner{Namespace: "vms", Name: uid[4:], UID: uid}, ipam.Cause{}); err != nil {
			t.Fatal(err)
		}
	}
	claimed := ipam.Sighting{Address: address(50), Owner: b, Source: "VirtualMachine"}
	only := ipam.Sighting{Address: address(50), Owner: floatip.Owner{Namespace: "vms", Name: "c", UID: "uid-c"}, Source: "VirtualMachine"}
	if _, err := w.ledger.Adopt(t.Context(), []ipam.Sighting{claimed, only}, false); err != nil {
		t.Fatal(err)
	}
	w.create(a)
	asked := map[string]bool{}
	started, heard := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(heard)
		for {
			select {
			case e := <-w.starter.look:
				asked[e.Object.GetName()] = true
			case <-started:
				return
			}
		}
	}()
	if err := w.starter.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(started)
	<-heard
	go func() {
		for range w.starter.look {
		}
	}()
	if !asked["b"] || !asked["c"] {
		t.Errorf("rounds are asked for %v, want b and c among them", asked)
	}
	for _, name := range []string{"b", "c"} {
		again, err := w.vms.Reconcile(t.Context(), requestOf(name))
		if err != nil || again.RequeueAfter == 0 || again.RequeueAfter > orphanHold {
			t.Errorf("%s: looks again after %s, %v", name, again.RequeueAfter, err)
		}
	}
	if line, _ := w.ledger.Lookup(address(51)); line.State != ipam.Bound || line.Owner != b {
		t.Errorf("what the claimant holds is %s for %s", line.State, line.Owner)
	}
	if d := w.ledger.Disputes(); len(d) != 1 || len(d[0].Claimants) != 2 {
		t.Errorf("disputes: %+v", d)
	}
	w.starter.orphansUntil = time.Now()
	for _, name := range []string{"b", "c"} {
		if _, err := w.vms.Reconcile(t.Context(), requestOf(name)); err != nil {
			t.Fatal(err)
		}
	}
	if line, _ := w.ledger.Lookup(address(51)); line.State != ipam.Released || len(w.ledger.Disputes()) != 0 {
		t.Errorf("after the day: %s, disputes %+v", line.State, w.ledger.Disputes())
	}
}

// Of a release that waits a day and one that waits for a node, the sooner one is looked at first.
func TestSooner(t *testing.T) {
	for _, tc := range [][3]time.Duration{{0, 0, 0}, {0, 5, 5}, {5, 0, 5}, {5, 9, 5}, {9, 5, 5}} {
		if got := sooner(tc[0], tc[1]); got != tc[2] {
			t.Errorf("sooner(%d, %d) = %d", tc[0], tc[1], got)
		}
	}
}

// What the commands see of the cluster.
func TestPeople(t *testing.T) {
	w := newWorld(t, vmi("gone", "uid-gone"))
	w.start()
	w.create(vm("a", "uid-a", w.commit("a", "uid-a")))
	w.look()
	p := w.people()
	seen, err := p.Seen(t.Context())
	if err != nil || len(seen) != 1 || seen[0].Address != address(50) || seen[0].Owner.UID != "uid-a" {
		t.Errorf("seen: %+v, %v", seen, err)
	}
	if pools, err := p.Pools(t.Context()); err != nil || len(pools) != 1 || pools[0].Name != "provider" {
		t.Errorf("pools: %+v, %v", pools, err)
	}
	for uid, want := range map[string]string{"uid-a": "VM", "uid-b": ""} {
		if got, err := p.Carrier(t.Context(), floatip.Owner{Namespace: "vms", Name: "a", UID: uid}); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", uid, got, err, want)
		}
	}
	if got, err := p.Carrier(t.Context(), floatip.Owner{Namespace: "vms", Name: "gone", UID: "uid-gone"}); err != nil || got != "VMI" {
		t.Errorf("%q, %v, want VMI", got, err)
	}
	p.Live = unreachable{}
	if _, err := p.Carrier(t.Context(), floatip.Owner{Namespace: "vms", Name: "a", UID: "uid-a"}); err == nil {
		t.Error("no error without an API server")
	}
}
