package controller

import (
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"floatip.io/floatip"
)

// cacheBehind returns a Cluster whose cache is empty and whose API server has the objects.
func cacheBehind(t *testing.T, objects ...client.Object) Cluster {
	t.Helper()
	w := newWorld(t, objects...)
	return Cluster{Cached: fake.NewClientBuilder().WithScheme(w.client.Scheme()).Build(), Live: w.client}
}

// A cache lags behind objects that were made a moment ago: a pod may be created before its VMI is in the cache.
func TestClusterReadsPastTheCache(t *testing.T) {
	c := cacheBehind(t, vmi("a", "uid-a"), vm("a", "uid-a", map[string]string{"x": "y"}))
	if got, err := c.VMI(t.Context(), "vms", "a", "vmi-a"); err != nil || got.UID != "vmi-a" {
		t.Errorf("VMI: %v, %v", got, err)
	}
	if got, err := c.VMAnnotations(t.Context(), floatip.Owner{Namespace: "vms", Name: "a", UID: "uid-a"}); err != nil || got["x"] != "y" {
		t.Errorf("VM: %v, %v", got, err)
	}
	if got, err := c.NamespaceLabels(t.Context(), "vms"); err != nil || got[floatip.LabelEnabled] != "true" {
		t.Errorf("namespace: %v, %v", got, err)
	}
}

// An object of the same name and another UID is another object.
func TestClusterTellsGenerationsApart(t *testing.T) {
	c := cacheBehind(t, vmi("a", "uid-a"), vm("a", "uid-a", nil))
	if _, err := c.VMI(t.Context(), "vms", "a", "earlier"); !apierrors.IsNotFound(err) {
		t.Errorf("VMI: %v", err)
	}
	if _, err := c.VMAnnotations(t.Context(), floatip.Owner{Namespace: "vms", Name: "a", UID: "earlier"}); !apierrors.IsNotFound(err) {
		t.Errorf("VM: %v", err)
	}
}

// A VM that was deleted a moment ago does not stand in the way of its successor.
func TestVMExists(t *testing.T) {
	full, empty := newWorld(t, vm("a", "uid-a", nil)).client, newWorld(t).client
	for _, tc := range []struct {
		name         string
		cached, live client.Reader
		want         bool
	}{{"there", full, full, true}, {"just deleted", full, empty, false}, {"not there", empty, empty, false}} {
		got, err := Cluster{Cached: tc.cached, Live: tc.live}.VMExists(t.Context(), "vms", "a")
		if err != nil || got != tc.want {
			t.Errorf("%s: %v, %v", tc.name, got, err)
		}
	}
}

// What a launcher was refused for is known of its instance, and in its namespace.
func TestRefused(t *testing.T) {
	w := newWorld(t)
	instance, other := on("node-a", vmi("a", "uid-a")), vmi("b", "uid-b")
	pod := podOf("new", "node-a", 1, launcher(t, "", "uid-a"))
	pod.Annotations = map[string]string{floatip.AnnotationPodSecurity: "baseline"}
	instance.Status.ActivePods[pod.UID] = "node-a"
	w.create(pod)
	w.create(podOf("plain", "", 2, launcher(t, "", "uid-a")))
	for what, tc := range map[string]struct {
		ask  func() (string, error)
		want string
	}{
		"the instance":      {func() (string, error) { return w.vms.Cluster.RefusedInstance(t.Context(), instance) }, "baseline"},
		"another instance":  {func() (string, error) { return w.vms.Cluster.RefusedInstance(t.Context(), other) }, ""},
		"the namespace":     {func() (string, error) { return w.vms.Cluster.RefusedNamespace(t.Context(), "vms") }, "baseline"},
		"another namespace": {func() (string, error) { return w.vms.Cluster.RefusedNamespace(t.Context(), "others") }, ""},
	} {
		if got, err := tc.ask(); err != nil || got != tc.want {
			t.Errorf("%s: %q, %v, want %q", what, got, err, tc.want)
		}
	}
}
