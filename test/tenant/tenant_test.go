package tenant

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/test/rig"
	"floatip.io/floatip/test/rig/lan"
	"floatip.io/floatip/test/story"
)

// within bounds the whole test, which takes about a minute on two cores; soon bounds one attempt.
const (
	within = 12 * time.Minute
	soon   = 4 * time.Minute
)

// The tenants: both opted in. Quiet is a second namespace of mallory's that did not.
const (
	alice   = "alice"
	mallory = "mallory"
	quiet   = "mallory-quiet"
	// vault is a pool that serves neither.
	vault = "vault"
)

// vaultAddress is the only address of the pool vault.
var vaultAddress = netip.MustParseAddr("192.168.100.120")

// court is the rig with both tenants on it.
type court struct {
	*story.Story
	ctx context.Context
	// as acts as mallory, config is how.
	as     client.Client
	config *rest.Config
	// victim is alice's VM, mine is mallory's, which runs in pod.
	victim, mine *kubevirtv1.VirtualMachine
	pod          *corev1.Pod
	before       state
}

// state is what no attempt may change.
type state struct {
	// Held is who holds which address: of alice, and of mallory's VM mine.
	Held map[string]v1alpha1.FloatingIPSpec
	// Pod is the pod that the node agent serves mine in, NAT what it translates there.
	Pod, NAT string
	// Mine and Victim are floatip's annotations of the VMs.
	Mine, Victim [2]string
}

func TestTenant(t *testing.T) {
	c := newCourt(t)
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			short := *c
			var cancel context.CancelFunc
			short.ctx, cancel = context.WithTimeout(c.ctx, soon)
			defer cancel()
			short.attempt(t, a)
		})
	}
}

// attempt tries, wants the refusal if there shall be one, and looks whether anything has changed.
func (c *court) attempt(t *testing.T, a attack) {
	err := a.try(c, t)
	switch {
	case a.refused == "" && err != nil:
		t.Errorf("%v; it should be let through, and have no effect", err)
	case a.refused != "" && (err == nil || !strings.Contains(err.Error(), a.refused)):
		t.Errorf("%v, want a refusal that says %q", err, a.refused)
	}
	if err != nil && strings.Contains(err.Error(), alice+"/"+c.victim.Name) {
		t.Errorf("mallory is told the name of alice's VM: %v", err)
	}
	if diff := cmp.Diff(c.before, c.look(t)); diff != "" {
		t.Errorf("what it changed (-before +after):\n%s", diff)
	}
}

// look reads what must not change, and fails the test if anybody has what he must not have.
func (c *court) look(t *testing.T) state {
	t.Helper()
	now := state{Held: map[string]v1alpha1.FloatingIPSpec{}}
	var list v1alpha1.FloatingIPList
	if err := c.Client.List(c.ctx, &list); err != nil {
		t.Fatal(err)
	}
	for _, ip := range list.Items {
		switch vm := ip.Spec.VM; {
		case vm.UID == c.victim.UID || vm.UID == c.mine.UID:
			now.Held[ip.Name] = ip.Spec
			if vm.UID == c.mine.UID {
				now.Pod = ip.Status.Pod
			}
		case vm.Namespace != mallory || ip.Spec.Pool != story.Pool:
			t.Errorf("%s of pool %s is held by VM %s/%s", ip.Name, ip.Spec.Pool, vm.Namespace, vm.Name)
		}
	}
	var pod corev1.Pod
	if err := c.Client.Get(c.ctx, client.ObjectKeyFromObject(c.pod), &pod); err != nil {
		t.Fatal(err)
	}
	now.NAT = pod.Annotations[floatip.AnnotationNAT]
	now.Mine, now.Victim = c.ownKeys(t, c.mine), c.ownKeys(t, c.victim)
	return now
}

func (c *court) ownKeys(t *testing.T, vm *kubevirtv1.VirtualMachine) [2]string {
	t.Helper()
	var now kubevirtv1.VirtualMachine
	if err := c.Client.Get(c.ctx, client.ObjectKeyFromObject(vm), &now); err != nil {
		t.Fatal(err)
	}
	return [2]string{now.Annotations[floatip.AnnotationAddress], now.Annotations[floatip.AnnotationClaim]}
}

// newCourt starts a rig with floatip, both tenants, alice's VM and mallory's, which runs.
func newCourt(t *testing.T) *court {
	t.Helper()
	s := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), within)
	t.Cleanup(cancel)
	c := &court{Story: s, ctx: ctx}
	for _, step := range []func() error{
		func() error { return s.Install(ctx) },
		func() error { return s.AddPool(ctx) },
		c.addVault,
		func() error { return s.AddNamespace(ctx, alice, true) },
		func() error { return s.AddNamespace(ctx, mallory, true) },
		func() error { return s.AddNamespace(ctx, quiet, false) },
		c.empower,
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	c.victim, c.mine = c.vm(alice, "bank", nil), c.vm(mallory, "mine", nil)
	for _, vm := range []*kubevirtv1.VirtualMachine{c.victim, c.mine} {
		if err := s.Client.Create(ctx, vm); err != nil {
			t.Fatal(err)
		}
		if _, err := s.WaitBound(ctx, addressOf(t, vm), vm); err != nil {
			t.Fatal(err)
		}
	}
	err := s.Rig.KubeVirt.Start(ctx, mallory, c.mine.Name)
	if err == nil {
		_, err = s.WaitReady(ctx, addressOf(t, c.mine))
	}
	if err == nil {
		c.pod, err = s.LauncherPod(ctx, mallory, c.mine.Name)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.before = c.look(t)
	if len(c.before.Held) != 2 || c.before.Pod != c.pod.Name || c.before.NAT == "" {
		t.Fatalf("before the first attempt: %+v", c.before)
	}
	return c
}

func addressOf(t *testing.T, vm *kubevirtv1.VirtualMachine) netip.Addr {
	t.Helper()
	address, err := netip.ParseAddr(vm.Annotations[floatip.AnnotationAddress])
	if err != nil {
		t.Fatalf("address of VM %s/%s: %v", vm.Namespace, vm.Name, err)
	}
	return address
}

// vm is the mission's VM under another name.
func (c *court) vm(namespace, name string, annotations map[string]string) *kubevirtv1.VirtualMachine {
	manifest, err := c.Manifest()
	if err != nil {
		panic(err) // a file of the repository
	}
	vm := new(kubevirtv1.VirtualMachine)
	if err := yaml.Unmarshal([]byte(manifest), vm); err != nil {
		panic(err)
	}
	vm.Namespace, vm.Name, vm.Annotations = namespace, name, annotations
	return vm
}

// addVault makes a pool that serves only namespaces with a label that no tenant can set.
func (c *court) addVault() error {
	return c.Client.Create(c.ctx, &v1alpha1.FloatingIPPool{
		ObjectMeta: metav1.ObjectMeta{Name: vault},
		Spec: v1alpha1.FloatingIPPoolSpec{
			Addresses:         []string{fmt.Sprintf("%s-%s", vaultAddress, vaultAddress)},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "treasury"}},
		},
	})
}

// empower lets mallory do everything in his namespaces with all objects that matter here; of cluster-scoped objects he
// has none, and his namespaces' labels are not his.
func (c *court) empower() error {
	const name = "everything-in-a-namespace"
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{
		{Verbs: []string{"*"}, APIGroups: []string{""}, Resources: []string{
			"pods", "pods/status", "pods/binding", "pods/ephemeralcontainers", "pods/resize", "bindings", "events",
			"serviceaccounts", "serviceaccounts/token", "secrets", "configmaps",
		}},
		{Verbs: []string{"*"}, Resources: []string{"*"}, APIGroups: []string{
			"kubevirt.io", "subresources.kubevirt.io", "pool.kubevirt.io", "clone.kubevirt.io", "snapshot.kubevirt.io",
			"floatip.io", "networking.k8s.io", "events.k8s.io",
		}},
	}}
	if err := c.Client.Create(c.ctx, role); err != nil {
		return err
	}
	for _, namespace := range []string{mallory, quiet} {
		err := c.Client.Create(c.ctx, &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
			Subjects: []rbacv1.Subject{
				{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: mallory},
				// An account of KubeVirt's controller's name, in a namespace of his.
				{Kind: rbacv1.ServiceAccountKind, Namespace: mallory, Name: "kubevirt-controller"},
			},
		})
		if err != nil {
			return err
		}
	}
	c.config = c.Rig.Cluster.RESTConfig()
	c.config.Impersonate = rest.ImpersonationConfig{UserName: mallory, Groups: []string{"system:authenticated"}}
	var err error
	c.as, err = client.New(c.config, client.Options{Scheme: c.Client.Scheme()})
	return err
}

// legs counts the links by which the node agent has plugged a pod in.
func (c *court) legs(pod *corev1.Pod) (int, error) {
	inPod, err := c.Rig.PodNetNS(pod)
	if err != nil {
		return 0, err
	}
	links, err := lan.Exec(c.ctx, inPod, "ip", "-brief", "link")
	return strings.Count(links, "fip0"), err
}

// start starts a rig of one node that ends with the test.
func start(t *testing.T) *story.Story {
	t.Helper()
	if os.Geteuid() != 0 {
		const reason = "the rig makes network namespaces: run as root"
		if os.Getenv("FLOATIP_TEST_ROOT") != "" {
			t.Fatal(reason)
		}
		t.Skip(reason)
	}
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(root)
	progress := func(line string) { t.Log(line) }
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	r, err := rig.Start(ctx, rig.Options{Progress: progress, Nodes: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			dir, err := story.SaveLogs(r)
			t.Logf("the logs of all components are in %s (%v)", dir, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		if err := r.Stop(ctx); err != nil {
			t.Errorf("remove the rig: %v", err)
		}
	})
	s, err := story.New(r, root, progress)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
