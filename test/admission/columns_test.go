package admission

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
)

// table reads what kubectl prints: the columns' names, and the cells of the only row by their names. A cell begins where its
// column does.
func table(out string) (columns []string, row map[string]string, err error) {
	lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
	if len(lines) != 2 {
		return nil, nil, fmt.Errorf("kubectl prints %d lines, want 2:\n%s", len(lines), out)
	}
	row = map[string]string{}
	columns = strings.Fields(lines[0])
	for i, name := range columns {
		begin, end := columnAt(lines[0], name), len(lines[1])
		if i+1 < len(columns) {
			end = min(end, columnAt(lines[0], columns[i+1]))
		}
		row[name] = strings.TrimSpace(lines[1][min(begin, end):end])
	}
	return columns, row, nil
}

// columnAt finds a whole word: one name may be the beginning of another.
func columnAt(header, name string) int {
	return strings.Index(" "+header+" ", " "+name+" ")
}

// awaitRow waits until kubectl prints the cells of want, and returns the columns' names.
func (n *tenant) awaitRow(want map[string]string, args ...string) (columns []string) {
	n.t.Helper()
	n.wait("kubectl get "+strings.Join(args, " "), func(context.Context) error {
		out, err := n.kubectl("", append([]string{"get"}, args...)...)
		if err != nil {
			return err
		}
		var row map[string]string
		if columns, row, err = table(out); err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if got, there := row[name]; !there || got != want[name] {
				return fmt.Errorf("column %s (there: %t) is %q, want %q:\n%s", name, there, got, want[name], out)
			}
		}
		return nil
	})
	return columns
}

// columns are what a person reads of pools and addresses.
func columns(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	vm := n.create("vm", nil)
	address := n.bound(vm)
	gone := n.create("gone", nil)
	n.bound(gone)
	n.remove(gone)
	n.addPool(n.ns+"-younger", n.address(5)+"-"+n.address(14))
	n.addPool(n.ns+"-six", "2001:db8:c01::/64")
	n.addPool(n.ns+"-both", n.address(110)+"-"+n.address(112))
	if err := n.setPool(n.ns+"-both", map[string]any{"addresses": []string{n.address(110) + "-" + n.address(112), "2001:db8:c02::/64"}}); err != nil {
		t.Fatal(err)
	}
	// A VM that is created before floatip has seen the second family gets an address of the first alone.
	n.awaitRow(map[string]string{"USED": "0/3,0/2^64"}, "fippool", n.ns+"-both")
	n.create("both", map[string]string{floatip.AnnotationPool: n.ns + "-both"})
	n.addPool(n.ns+"-empty", n.address(100)+"-"+n.address(101))
	if err := n.setPool(n.ns+"-empty", map[string]any{"drain": true}); err != nil {
		t.Fatal(err)
	}

	short := strings.Fields("NAME ADDRESSES AUTO DELIVERY USED RESTING READY REASON AGE")
	got := n.awaitRow(map[string]string{
		"NAME": n.ns, "ADDRESSES": `["` + n.address(1) + "-" + n.address(10) + `"]`, "AUTO": "true", "DELIVERY": "Leg",
		"USED": "1/10", "RESTING": "1", "READY": "True", "REASON": "Serving",
	}, "floatingippools", n.ns)
	if !slices.Equal(got, short) {
		t.Errorf("kubectl get floatingippools has the columns %q, want %q", got, short)
	}
	// 2^64 addresses without the first one: more than an int64 can say.
	n.awaitRow(map[string]string{"USED": "0/2^64", "RESTING": "0", "READY": "True"}, "fippool", n.ns+"-six")
	n.awaitRow(map[string]string{"USED": "1/3,1/2^64", "RESTING": "0,0", "READY": "True"}, "fippool", n.ns+"-both")
	n.awaitRow(map[string]string{"USED": "0/2", "RESTING": "0", "READY": "False", "REASON": "Draining"}, "fippool", n.ns+"-empty")
	wide := strings.Fields("NAME ADDRESSES AUTO DELIVERY USED RESTING CAPACITY4 PENDING4 CAPACITY6 PENDING6 READY REASON OVERLAPPING AGE")
	got = n.awaitRow(map[string]string{"USED": "0/4", "CAPACITY4": "4", "PENDING4": "0", "READY": "True", "OVERLAPPING": "True"},
		"fippool", n.ns+"-younger", "-o", "wide")
	if !slices.Equal(got, wide) {
		t.Errorf("kubectl get floatingippools -o wide has the columns %q, want %q", got, wide)
	}
	n.awaitRow(map[string]string{"CAPACITY4": "", "CAPACITY6": "18446744073709551615", "PENDING6": "0", "OVERLAPPING": "False"},
		"fippool", n.ns+"-six", "-o", "wide")

	short = strings.Fields("NAME ADDRESS POOL NAMESPACE VM PHASE REASON NODE AGE")
	cells := map[string]string{"NAME": address, "ADDRESS": address, "POOL": n.ns, "NAMESPACE": n.ns, "VM": "vm", "PHASE": "Bound", "NODE": ""}
	if got = n.awaitRow(cells, "floatingips", address); !slices.Equal(got, short) {
		t.Errorf("kubectl get floatingips has the columns %q, want %q", got, short)
	}
	// What a node agent writes.
	fip := &v1alpha1.FloatingIP{ObjectMeta: metav1.ObjectMeta{Name: address}}
	patch := `{"status":{"phase":"Ready","node":"node-7","pod":"virt-launcher-vm","conditions":[` +
		`{"type":"Ready","status":"True","reason":"Flows","message":"","lastTransitionTime":"2026-01-02T03:04:05Z"},` +
		`{"type":"ConflictFree","status":"True","reason":"Probed","message":"","lastTransitionTime":"2026-01-02T03:04:05Z"}]}}`
	if err := n.admin.Status().Patch(n.ctx, fip, client.RawPatch("application/merge-patch+json", []byte(patch))); err != nil {
		t.Fatal(err)
	}
	cells["PHASE"], cells["REASON"], cells["NODE"] = "Ready", "Flows", "node-7"
	cells["POD"], cells["CONFLICT-FREE"] = "virt-launcher-vm", "Probed"
	wide = strings.Fields("NAME ADDRESS POOL NAMESPACE VM PHASE REASON NODE POD CONFLICT-FREE AGE")
	if got = n.awaitRow(cells, "fip", address, "-o", "wide"); !slices.Equal(got, wide) {
		t.Errorf("kubectl get floatingips -o wide has the columns %q, want %q", got, wide)
	}
}

// nodesKeepTheirs: what a node's agent wrote before there was a pool is withheld from the pool's first moment on, and an
// address that a node gets after a VM is told of.
func nodesKeepTheirs(t *testing.T, w *world) {
	n := w.tenant(t, 1)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.ns + "-node", Annotations: map[string]string{
		floatip.AnnotationProviderAddresses: n.address(100) + "," + n.address(101),
	}}}
	if err := n.admin.Create(n.ctx, node); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.admin.Delete(context.Background(), node); err != nil {
			t.Error(err)
		}
	})
	n.addPool(n.ns+"-late", n.address(100)+"-"+n.address(109))
	vm := n.create("vm", map[string]string{floatip.AnnotationPool: n.ns + "-late"})
	address := n.bound(vm)
	if address != n.address(102) {
		t.Errorf("the VM has %s, want %s, the first that the node has not", address, n.address(102))
	}
	wantRefusal(t, "request of a node's address", n.admin.Create(n.ctx, n.newVM("greedy", request(n.address(101)))), n.address(101), "a node's")
	conflict := func(s v1alpha1.FloatingIPPoolStatus) *metav1.Condition {
		return meta.FindStatusCondition(s.Conditions, "NodeConflict")
	}
	n.awaitPool(n.ns+"-late", func(s v1alpha1.FloatingIPPoolStatus) bool {
		c := conflict(s)
		return c != nil && c.Status == metav1.ConditionFalse && s.IPv4.Capacity == "8"
	})
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, floatip.AnnotationProviderAddresses, address)
	if err := n.admin.Patch(n.ctx, node, client.RawPatch("application/merge-patch+json", []byte(patch))); err != nil {
		t.Fatal(err)
	}
	n.awaitPool(n.ns+"-late", func(s v1alpha1.FloatingIPPoolStatus) bool {
		c := conflict(s)
		return c != nil && c.Status == metav1.ConditionTrue && c.Message == address+" is held by a VM, and node "+node.Name+" has it too"
	})
	n.awaitEvent("VirtualMachine", "vm", "FloatingIPConflict", address+" is an address of a node")
	if got := n.bound(vm); got != address {
		t.Errorf("the VM has %s, want that it keeps %s", got, address)
	}
}
