package admission

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
)

// forcedDeletion: a VM is gone from the API server, and the node that answered for its address has not said that it stopped,
// as after deletions by force on a node that nobody reaches. The address is held until its agent says so, or the Node goes.
func forcedDeletion(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	node := n.addNode()
	announced := func(address, node string) {
		fip := &v1alpha1.FloatingIP{ObjectMeta: metav1.ObjectMeta{Name: address}}
		patch := client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"status":{"node":%q}}`, node))
		if err := n.admin.Status().Patch(n.ctx, fip, patch); err != nil {
			t.Fatal(err)
		}
	}
	for name, how := range map[string]func(address string){
		"agent-says-so": func(address string) { announced(address, "") },
		"by-command": func(address string) {
			if _, err := w.ledger.Release(n.ctx, netip.MustParseAddr(address), "", ""); err == nil {
				t.Error("ledger release does not ask whether the node is off")
			}
			if _, err := w.ledger.Release(n.ctx, netip.MustParseAddr(address), node.Name, "looked"); err != nil {
				t.Error(err)
			}
		},
	} {
		vm := n.create(name, nil)
		address := n.bound(vm)
		announced(address, node.Name)
		n.remove(vm)
		n.wait(address+" to wait for its node", func(ctx context.Context) error {
			fip := new(v1alpha1.FloatingIP)
			if err := n.admin.Get(ctx, client.ObjectKey{Name: address}, fip); err != nil {
				if apierrors.IsNotFound(err) {
					t.Fatalf("%s was given back", address)
				}
				return err
			}
			if c := meta.FindStatusCondition(fip.Status.Conditions, v1alpha1.ConditionAllocated); c == nil || c.Reason != v1alpha1.ReasonWaitsForNode {
				return fmt.Errorf("condition %+v", c)
			}
			return nil
		})
		// Nobody else gets it, also not the VM of the same name.
		if got := n.create(name, nil).Annotations[floatip.AnnotationAddress]; got == "" || got == address {
			t.Errorf("%s: the next VM has %q, the node may answer for %s", name, got, address)
		}
		how(address)
		n.free(address)
	}
}

// addNode makes the object of a node that goes with the test. Nothing runs there.
func (n *tenant) addNode() *corev1.Node {
	n.t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.ns + "-node"}}
	if err := n.admin.Create(n.ctx, node); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := client.IgnoreNotFound(n.admin.Delete(context.Background(), node)); err != nil {
			n.t.Error(err)
		}
	})
	return node
}
