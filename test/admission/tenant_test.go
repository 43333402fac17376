package admission

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/webhook/admin"
)

// vmManifest is a small VM that does not run.
const vmManifest = `apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata:
  name: testvm
spec:
  runStrategy: Halted
  template:
    spec:
      domain:
        devices:
          disks:
          - name: containerdisk
            disk:
              bus: virtio
          interfaces:
          - name: default
            masquerade: {}
        resources:
          requests:
            memory: 64M
      networks:
      - name: default
        pod: {}
      volumes:
      - name: containerdisk
        containerDisk:
          image: quay.io/kubevirt/cirros-container-disk-demo
`

// tenant is a namespace with a pool that serves it alone. Tests of different tenants do not meet.
type tenant struct {
	*world
	t   testing.TB
	ctx context.Context
	ns  string
	net netip.Prefix // of the pool, which has its addresses .1 to .size
}

var tenants atomic.Int32

// tenant makes a namespace that opted in, and its pool of size addresses, which is called like the namespace.
func (w *world) tenant(t testing.TB, size int, change ...func(*v1alpha1.FloatingIPPool)) *tenant {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	t.Cleanup(cancel)
	i := int(tenants.Add(1))
	// 198.18.0.0/15 is for benchmarks of network devices (RFC 2544): of nobody else. It has room for 128 tenants.
	if i >= 128 {
		t.Fatal("no network is left for another tenant")
	}
	n := &tenant{
		world: w, t: t, ctx: ctx, ns: fmt.Sprintf("tenant-%d", i),
		net: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, byte(18 + i/64), byte(4 * i), 0}), 22),
	}
	n.addNamespace(n.ns, true)
	pool := &v1alpha1.FloatingIPPool{
		ObjectMeta: metav1.ObjectMeta{Name: n.ns},
		Spec: v1alpha1.FloatingIPPoolSpec{
			Addresses: []string{n.address(1) + "-" + n.address(size)}, NamespaceSelector: n.only(),
		},
	}
	for _, c := range change {
		c(pool)
	}
	if err := n.admin.Create(ctx, pool); err != nil {
		t.Fatal(err)
	}
	n.awaitPool(n.ns, func(s v1alpha1.FloatingIPPoolStatus) bool { return meta.IsStatusConditionTrue(s.Conditions, "Ready") })
	return n
}

// noRest lets a pool hand out what was released at once.
func noRest(pool *v1alpha1.FloatingIPPool) { pool.Spec.Quarantine = &metav1.Duration{} }

func (n *tenant) addNamespace(name string, optedIn bool) {
	n.t.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{levelLabel: "privileged"}}}
	if optedIn {
		namespace.Labels[floatip.LabelEnabled] = "true"
	}
	if err := n.admin.Create(n.ctx, namespace); err != nil {
		n.t.Fatal(err)
	}
}

// address is the i-th address of the tenant's network.
func (n *tenant) address(i int) string {
	b := n.net.Addr().As4()
	b[2], b[3] = b[2]+byte(i/256), byte(i%256)
	return netip.AddrFrom4(b).String()
}

func (n *tenant) newVM(name string, annotations map[string]string) *kubevirtv1.VirtualMachine {
	n.t.Helper()
	vm := new(kubevirtv1.VirtualMachine)
	if err := yaml.Unmarshal([]byte(vmManifest), vm); err != nil {
		n.t.Fatal(err)
	}
	vm.Namespace, vm.Name, vm.Annotations = n.ns, name, annotations
	return vm
}

// create creates a VM and fails the test if that is refused.
func (n *tenant) create(name string, annotations map[string]string) *kubevirtv1.VirtualMachine {
	n.t.Helper()
	vm := n.newVM(name, annotations)
	if err := n.admin.Create(n.ctx, vm); err != nil {
		n.t.Fatal(err)
	}
	return vm
}

func (n *tenant) get(name string) *kubevirtv1.VirtualMachine {
	n.t.Helper()
	vm := new(kubevirtv1.VirtualMachine)
	if err := n.admin.Get(n.ctx, client.ObjectKey{Namespace: n.ns, Name: name}, vm); err != nil {
		n.t.Fatal(err)
	}
	return vm
}

// remove deletes a VM and waits until it is gone.
func (n *tenant) remove(vm *kubevirtv1.VirtualMachine) {
	n.t.Helper()
	if err := n.admin.Delete(n.ctx, vm); err != nil {
		n.t.Fatal(err)
	}
	n.awaitGone(vm)
}

func (n *tenant) awaitGone(vm *kubevirtv1.VirtualMachine) {
	n.t.Helper()
	n.wait("VM "+vm.Name+" to be gone", func(ctx context.Context) error {
		now := new(kubevirtv1.VirtualMachine)
		err := n.admin.Get(ctx, client.ObjectKeyFromObject(vm), now)
		if apierrors.IsNotFound(err) || err == nil && now.UID != vm.UID {
			return nil
		}
		return fmt.Errorf("finalizers %v (%v)", now.Finalizers, err)
	})
}

func (n *tenant) wait(what string, cond func(context.Context) error) {
	n.t.Helper()
	if err := process.Wait(n.ctx, nil, what, cond); err != nil {
		n.t.Fatal(err)
	}
}

func (n *tenant) awaitPool(name string, fits func(v1alpha1.FloatingIPPoolStatus) bool) {
	n.t.Helper()
	n.wait("pool "+name, func(ctx context.Context) error {
		var pool v1alpha1.FloatingIPPool
		if err := n.admin.Get(ctx, client.ObjectKey{Name: name}, &pool); err != nil {
			return err
		}
		if !fits(pool.Status) {
			return fmt.Errorf("its status is %+v", pool.Status)
		}
		return nil
	})
}

// lines are what the ledger has about addresses of the tenant's network, in the given states or in any.
func (n *tenant) lines(states ...ipam.State) []admin.Line {
	n.t.Helper()
	var found []admin.Line
	after := netip.Addr{}
	for {
		all, err := n.ledger.List(n.ctx, after, 0)
		if err != nil {
			n.t.Fatal(err)
		}
		for _, line := range all.Lines {
			after = line.Address
			fits := func(s ipam.State) bool { return s.String() == line.State }
			if n.net.Contains(line.Address) && (len(states) == 0 || slices.ContainsFunc(states, fits)) {
				found = append(found, line)
			}
		}
		if !all.More {
			return found
		}
	}
}

// bound waits until the VM holds exactly the address that its annotation shows: one line of the ledger, Bound, with the
// VM's UID, and one FloatingIP that says the same. It returns the address.
func (n *tenant) bound(vm *kubevirtv1.VirtualMachine) string {
	n.t.Helper()
	address := vm.Annotations[floatip.AnnotationAddress]
	if address == "" {
		n.t.Fatalf("VM %s has no address: %v", vm.Name, vm.Annotations)
	}
	n.wait(address+" to be Bound to "+vm.Name, func(ctx context.Context) error {
		var mine []string
		for _, line := range n.lines() {
			if line.VM.Name == vm.Name && line.VM.Namespace == vm.Namespace && line.State != ipam.Released.String() {
				mine = append(mine, fmt.Sprintf("%s %s %s", line.Address, line.State, line.VM.UID))
			}
		}
		want := []string{fmt.Sprintf("%s %s %s", address, ipam.Bound, vm.UID)}
		if !slices.Equal(mine, want) {
			return fmt.Errorf("the ledger has %q, want %q", mine, want)
		}
		fip := new(v1alpha1.FloatingIP)
		if err := n.admin.Get(ctx, client.ObjectKey{Name: v1alpha1.Name(netip.MustParseAddr(address))}, fip); err != nil {
			return err
		}
		if fip.Spec.VM.UID != vm.UID || fip.Status.Phase != v1alpha1.PhaseBound {
			return fmt.Errorf("its FloatingIP names UID %s, phase %q", fip.Spec.VM.UID, fip.Status.Phase)
		}
		return nil
	})
	return address
}

// free waits until nobody holds an address.
func (n *tenant) free(address string) {
	n.t.Helper()
	n.wait(address+" to be free", func(ctx context.Context) error {
		for _, line := range n.lines(ipam.Pending, ipam.Bound) {
			if line.Address.String() == address {
				return fmt.Errorf("it is %s, of VM %s", line.State, line.VM)
			}
		}
		err := n.admin.Get(ctx, client.ObjectKey{Name: v1alpha1.Name(netip.MustParseAddr(address))}, new(v1alpha1.FloatingIP))
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("its FloatingIP is there (%v)", err)
		}
		return nil
	})
}

// request asks for an address.
func request(address string) map[string]string {
	return map[string]string{floatip.AnnotationRequest: address}
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

func keyOf(o client.Object) client.ObjectKey { return client.ObjectKeyFromObject(o) }

// named finds the line of a VM.
func (n *tenant) named(vm string) func(admin.Line) bool {
	return func(l admin.Line) bool { return l.VM.Name == vm }
}

// quiet waits until what state returns has not changed for a second.
func (n *tenant) quiet(what string, state func() string) {
	n.t.Helper()
	last, since := state(), time.Now()
	n.wait(what+" to settle", func(context.Context) error {
		if now := state(); now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) < time.Second {
			return fmt.Errorf("it changes")
		}
		return nil
	})
}
