package admission

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip/ipam/v1alpha1"
)

const agentUser = "system:serviceaccount:floatip-system:floatip-agent"

// from returns a client that acts as a service account by the token of a pod on a node; "" is an API server that does not
// tell the node.
func (w *world) from(t testing.TB, node, user string, groups ...string) client.Client {
	t.Helper()
	config := w.cluster.RESTConfig()
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: groups}
	if node != "" {
		config.Impersonate.Extra = map[string][]string{"authentication.kubernetes.io/node-name": {node}}
	}
	c, err := client.New(config, client.Options{Scheme: w.scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// agents: the node agents share a service account; a policy leaves each its own node, and the addresses that it serves.
func agents(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	fip := &v1alpha1.FloatingIP{ObjectMeta: metav1.ObjectMeta{
		Name: v1alpha1.Name(netip.MustParseAddr(n.bound(n.create("vm", nil)))),
	}}
	self, other := n.ns+"-self", n.ns+"-other"
	for _, name := range []string{self, other} {
		if err := n.admin.Create(n.ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	status := func(node string) func(client.Client) error {
		patch := fmt.Appendf(nil, `{"status":{"node":%q}}`, node)
		return func(c client.Client) error {
			return c.Status().Patch(n.ctx, fip.DeepCopy(), client.RawPatch(types.MergePatchType, patch))
		}
	}
	annotation := func(node string) func(client.Client) error {
		o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}
		patch := []byte(`{"metadata":{"annotations":{"floatip.io/test":null}}}`)
		return func(c client.Client) error { return c.Patch(n.ctx, o, client.RawPatch(types.MergePatchType, patch)) }
	}
	const addresses, nodes = "writes the status of addresses that its own node serves", "writes on its own Node only"
	for _, tc := range []struct {
		name, agent string
		write       func(client.Client) error
		refused     string
	}{
		{"an address that nobody serves", self, status(self), ""},
		{"another node's address, in that node's name", other, status(self), addresses},
		{"another node's address away", other, status(""), addresses},
		{"its own address away", self, status(""), ""},
		{"an address that nobody serves, in another node's name", other, status(self), addresses},
		{"another node's address, which comes to it", other, status(other), ""},
		{"its own address to another node", other, status(self), addresses},
		{"its own node", self, annotation(self), ""},
		{"another node", other, annotation(self), nodes},
		{"another node, where the API server tells no node", "", annotation(self), ""},
		{"an address, where the API server tells no node", "", status(self), ""},
	} {
		err := tc.write(w.from(t, tc.agent, agentUser))
		if tc.refused == "" && err != nil {
			t.Errorf("an agent writes %s: %v", tc.name, err)
		}
		if tc.refused != "" {
			wantRefusal(t, "an agent writes "+tc.name, err, tc.refused)
		}
	}
	// Others who may write nodes and addresses are not held to the node that they run on.
	others := w.from(t, other, "system:serviceaccount:kube-system:other", "system:masters")
	for what, write := range map[string]func(client.Client) error{"a node": annotation(self), "an address": status(self)} {
		if err := write(others); err != nil {
			t.Errorf("somebody else writes %s: %v", what, err)
		}
	}
}
