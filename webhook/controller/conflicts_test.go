package controller

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
)

// contested has the running VM "a" with 192.168.100.50 on node n1, and the controller of conflicts.
type contested struct {
	*guarded
	conflicts *Conflicts
}

func newContested(t *testing.T, annotations map[string]string) *contested {
	t.Helper()
	g := newGuarded(t, annotations)
	g.merge(g.pod(), map[string]any{"spec": map[string]any{"nodeName": "n1"}})
	return &contested{g, &Conflicts{
		Ledger: g.ledger, Cluster: Cluster{Cached: g.client, Live: g.client}, Events: Events{Recorder: g.recorder},
		Metrics: NewMetrics(prometheus.NewRegistry(), g.ledger), Started: g.starter,
		told: map[string]string{}, moves: map[types.UID][]time.Time{},
	}}
}

const foreign = "another host, 02:00:00:00:00:99 on red0, has it"

// report has the agent of a node write the condition.
func (c *contested) report(name, node, reason string) {
	c.t.Helper()
	status := map[string]any{
		"node": node, "pod": running, "conditions": []any{map[string]any{
			"type": v1alpha1.ConditionConflictFree, "status": "False", "reason": reason, "message": foreign,
			"lastTransitionTime": epoch,
		}},
	}
	ip := &v1alpha1.FloatingIP{}
	ip.Name = name
	if err := c.client.Status().Patch(c.t.Context(), ip, mergeStatus(c.t, status)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *contested) round(name string) reconcile.Result {
	c.t.Helper()
	again, err := c.conflicts.Reconcile(c.t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: name}})
	if err != nil {
		c.t.Fatal(err)
	}
	return again
}

// translated returns the address in the description of the running pod.
func (c *contested) translated() string {
	c.t.Helper()
	nat, err := floatip.ParsePodNAT([]byte(c.pod().Annotations[floatip.AnnotationNAT]))
	if err != nil {
		c.t.Fatal(err)
	}
	return nat.Bindings[0].Floating.String()
}

func (c *contested) holds(want string) {
	c.t.Helper()
	lines := c.ledger.ByOwner("uid-a")
	if len(lines) != 1 || lines[0].Address.String() != want || lines[0].State != ipam.Bound {
		c.t.Fatalf("the VM holds %+v, want %s", lines, want)
	}
}

// TestNextAddress: the VM did not ask for the address that somebody else has. Ledger, object, VM and pod follow.
func TestNextAddress(t *testing.T) {
	c := newContested(t, nil)
	c.report("192.168.100.50", "n1", floatip.ReasonAddressTaken)
	c.round("192.168.100.50")
	c.holds("192.168.100.51")
	want := "Warning FloatingIPConflict " + foreign + "; the VM gets 192.168.100.51 of pool provider instead; hints inside the guest name the " +
		"old address until the VM is stopped and started"
	if diff := cmp.Diff([]string{want, want}, c.events()); diff != "" {
		t.Errorf("events on VM and FloatingIP (-want +got):\n%s", diff)
	}
	if gone, _ := c.ledger.Lookup(address(50)); gone.State != ipam.Released {
		t.Errorf("192.168.100.50 is %s, want it to rest", gone.State)
	}
	c.look()
	if diff := cmp.Diff([]string{"192.168.100.51 uid-a Bound"}, c.floatingIPs()); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
	if shown := c.vmAnnotations()[floatip.AnnotationAddress]; shown != "192.168.100.51" {
		t.Errorf("the VM shows %s", shown)
	}
	if err := c.guarded.round(); err != nil {
		t.Fatal(err)
	}
	if c.translated() != "192.168.100.51" {
		t.Errorf("the running pod translates %s", c.translated())
	}
	if c.round("192.168.100.50"); len(c.events()) != 0 {
		t.Error("told again after the object has gone")
	}
}

// TestAddressStays: one that was asked for waits, and a VM whose address is in use keeps it, whatever the LAN says.
func TestAddressStays(t *testing.T) {
	for _, tt := range []struct {
		name, reason string
		annotations  map[string]string
		text         string
	}{
		{"requested", floatip.ReasonAddressTaken, map[string]string{floatip.AnnotationRequest: "192.168.100.50"},
			"waits for it"},
		{"in use", floatip.ReasonAddressContested, nil, foreign},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newContested(t, tt.annotations)
			c.report("192.168.100.50", "n1", tt.reason)
			for range 3 {
				c.round("192.168.100.50")
			}
			c.holds("192.168.100.50")
			if told := c.events(); len(told) != 2 || !strings.Contains(told[0], tt.text) {
				t.Errorf("events %q, want one each on VM and FloatingIP", told)
			}
		})
	}
}

// TestReportsThatAreNotBelieved: an agent speaks for the node that runs the VM's launcher.
func TestReportsThatAreNotBelieved(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(c *contested)
	}{
		{"of another node", func(c *contested) { c.report("192.168.100.50", "n2", floatip.ReasonAddressTaken) }},
		{"of no node", func(c *contested) { c.report("192.168.100.50", "", floatip.ReasonAddressTaken) }},
		{"without the pod", func(c *contested) {
			c.report("192.168.100.50", "n1", floatip.ReasonAddressTaken)
			c.remove(c.pod())
		}},
		{"of a pod that translates another VM's address", func(c *contested) {
			c.report("192.168.100.50", "n1", floatip.ReasonAddressTaken)
			other := launcher(c.t, "other", "uid-b")
			c.merge(c.pod(), map[string]any{"metadata": map[string]any{"annotations": map[string]any{
				floatip.AnnotationNAT: other.Annotations[floatip.AnnotationNAT],
			}}})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newContested(t, nil)
			tt.set(c)
			c.round("192.168.100.50")
			c.holds("192.168.100.50")
			if told := c.events(); len(told) != 0 {
				t.Errorf("told %q", told)
			}
		})
	}
}

// TestEverythingIsTaken: a router answers for every address. The VM does not wander through the pool.
func TestEverythingIsTaken(t *testing.T) {
	c := newContested(t, nil)
	name := "192.168.100.50"
	for range maxMoves - 1 { // the pool has ten addresses
		c.report(name, "n1", floatip.ReasonAddressTaken)
		c.round(name)
		c.look()
		if err := c.guarded.round(); err != nil {
			t.Fatal(err)
		}
		name = c.translated()
	}
	c.holds("192.168.100.59")
	c.events()
	c.report(name, "n1", floatip.ReasonAddressTaken)
	if again := c.round(name); again.RequeueAfter == 0 {
		t.Error("nobody looks again after the pool was full")
	}
	if told := c.events(); len(told) == 0 || !strings.Contains(told[0], "there is no other: replace 192.168.100.59: pool provider: no free") {
		t.Errorf("told %q, want that the pool has no other", told)
	}
	c.holds("192.168.100.59")
	c.now = c.now.Add(time.Hour)
	c.conflicts.moved("uid-a", time.Now())
	if again := c.round(name); again.RequeueAfter <= 0 || again.RequeueAfter > moveAgain {
		t.Errorf("looks again after %s, want within a minute", again.RequeueAfter)
	}
	if told := c.events(); len(told) == 0 || !strings.Contains(told[0], "proxy ARP") {
		t.Errorf("told %q, want a hint at a router that answers for all", told)
	}
	c.holds("192.168.100.59")
}

// TestConflictConcerns: a status that changes otherwise wakes nobody.
func TestConflictConcerns(t *testing.T) {
	c := newContested(t, nil)
	get := func() *v1alpha1.FloatingIP {
		ip := &v1alpha1.FloatingIP{}
		if err := c.client.Get(t.Context(), types.NamespacedName{Name: "192.168.100.50"}, ip); err != nil {
			t.Fatal(err)
		}
		return ip
	}
	changed := func(change func()) bool {
		before := get()
		change()
		return conflictChanged.Update(event.UpdateEvent{ObjectOld: before, ObjectNew: get()})
	}
	if !changed(func() { c.report("192.168.100.50", "n1", floatip.ReasonAddressTaken) }) {
		t.Error("a conflict wakes nobody")
	}
	if changed(func() {
		if err := c.client.Status().Patch(t.Context(), get(), mergeStatus(t, map[string]any{"phase": "Ready"})); err != nil {
			t.Fatal(err)
		}
	}) {
		t.Error("another phase wakes the controller")
	}
}
