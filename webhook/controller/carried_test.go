package controller

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook/kubevirt"
)

// masquerade is the spec of an instance that can carry an address.
var masquerade = kubevirt.VMISpec{
	Domain:   kubevirt.Domain{Devices: kubevirt.Devices{Interfaces: []kubevirt.Interface{{Name: "default", Masquerade: &kubevirt.Masquerade{}}}}},
	Networks: []kubevirt.Network{{Name: "default", Pod: &kubevirt.PodNetwork{}}},
}

// instance is a VMI of the VM "a" with the spec and an annotation.
func instance(vmUID string, spec kubevirt.VMISpec, key, value string) *kubevirt.VirtualMachineInstance {
	o := vmi("a", vmUID)
	o.Spec, o.Annotations = spec, map[string]string{key: value}
	return o
}

// conditionOfA returns the condition of 192.168.100.50, nil if there is none.
func (w *world) conditionOfA(kind string) *metav1.Condition {
	w.t.Helper()
	var ip v1alpha1.FloatingIP
	if err := w.client.Get(w.t.Context(), types.NamespacedName{Name: "192.168.100.50"}, &ip); err != nil {
		w.t.Fatal(err)
	}
	return meta.FindStatusCondition(ip.Status.Conditions, kind)
}

// on puts the guest of an instance on a node.
func on(node string, o *kubevirt.VirtualMachineInstance) *kubevirt.VirtualMachineInstance {
	o.Status = kubevirt.VMIStatus{NodeName: node, ActivePods: map[types.UID]string{}}
	return o
}

// podOf is a launcher of the instance of the VM "a" on a node, made at a time in seconds.
func podOf(name, node string, at int, like *corev1.Pod) *corev1.Pod {
	pod := like.DeepCopy()
	pod.Name, pod.UID, pod.Spec.NodeName = name, types.UID("pod-"+name), node
	pod.CreationTimestamp = metav1.NewTime(epoch.Add(time.Duration(at) * time.Second))
	pod.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: "kubevirt.io/v1", Kind: kubevirt.KindVMI, Name: "a", UID: "vmi-a", Controller: new(true),
	}}
	return pod
}

// strangerOf gives a pod to an earlier instance of that name.
func strangerOf(pod *corev1.Pod) *corev1.Pod {
	pod.OwnerReferences[0].UID = "vmi-before"
	return pod
}

// A VM that runs without its address says why, by what there is now; one that does not run says nothing.
func TestCarried(t *testing.T) {
	withRange := func(r kubevirt.PortRange) kubevirt.VMISpec {
		spec := masquerade
		spec.Domain.Devices.Interfaces = []kubevirt.Interface{{
			Name: "default", Masquerade: &kubevirt.Masquerade{}, PortRanges: []kubevirt.PortRange{r},
		}}
		return spec
	}
	carrying := func() *kubevirt.VirtualMachineInstance {
		return instance("uid-a", masquerade, floatip.AnnotationAddress, "192.168.100.50")
	}
	marked := carrying()
	marked.Annotations[kubevirt.AnnotationTemporary] = "true"
	translating, bare, temporary := launcher(t, "", "uid-a"), launcher(t, "", "uid-a"), launcher(t, "", "uid-a")
	forbidden := launcher(t, "", "uid-a")
	forbidden.Annotations = map[string]string{floatip.AnnotationPodSecurity: "baseline"}
	bare.Annotations, temporary.Annotations = nil, map[string]string{kubevirt.AnnotationTemporary: "true"}
	old, moved := podOf("old", "node-a", 1, translating), podOf("new", "node-b", 2, bare)
	optedOut := map[string]string{floatip.LabelEnabled: "false"}
	for _, tc := range []struct {
		name         string
		vmi          *kubevirt.VirtualMachineInstance
		labels       map[string]string
		reason, text string
		pods         []*corev1.Pod
	}{
		{"no instance", nil, nil, "", "", nil},
		{"of another VM", instance("uid-b", masquerade, floatip.AnnotationAddress, "192.168.100.50"), nil, "", "", nil},
		{"carried", instance("uid-a", masquerade, floatip.AnnotationAddress, "192.168.100.50"), nil, v1alpha1.ReasonCarried, "carries the address", nil},
		{"carried, and the label is gone", instance("uid-a", masquerade, floatip.AnnotationAddress, "192.168.100.50"),
			map[string]string{floatip.LabelEnabled: "false"}, v1alpha1.ReasonCarried,
			"carries the address until it migrates or starts again, since its namespace has no label floatip.io/enabled=true", nil},
		{"other binding", instance("uid-a", kubevirt.VMISpec{}, "x", "y"), nil, v1alpha1.ReasonUnsupportedBinding, "no interface with masquerade binding", nil},
		{"a port range that is none", instance("uid-a", withRange(kubevirt.PortRange{Protocol: "TCP", Start: 9, End: 8}), "x", "y"), nil,
			v1alpha1.ReasonUnsupportedBinding, "interface default: portRanges[0].start: 9 is greater than end 8", nil},
		{"port ranges, since an earlier release", instance("uid-a", withRange(kubevirt.PortRange{Protocol: "TCP", Start: 8, End: 9}), "x", "y"), nil,
			v1alpha1.ReasonStartedWithout, "restart the VM", nil},
		{"Pod Security", instance("uid-a", masquerade, "x", "y"),
			map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}, v1alpha1.ReasonForbiddenSidecar, "level restricted", nil},
		{"other binding, and the label is gone", instance("uid-a", kubevirt.VMISpec{}, "x", "y"), optedOut,
			v1alpha1.ReasonNotOptedIn, "no label floatip.io/enabled=true; and besides, no interface with masquerade binding", nil},
		{"Pod Security, and the label is gone", instance("uid-a", masquerade, "x", "y"),
			map[string]string{floatip.LabelEnabled: "false", "pod-security.kubernetes.io/enforce": "restricted"},
			v1alpha1.ReasonNotOptedIn, "and besides, the namespace enforces the Pod Security level restricted", nil},
		{"label gone", instance("uid-a", masquerade, "x", "y"), map[string]string{floatip.LabelEnabled: "false"}, v1alpha1.ReasonNotOptedIn, "set it and restart", nil},
		{"template opted out", instance("uid-a", kubevirt.VMISpec{}, floatip.LabelEnabled, "false"), nil, v1alpha1.ReasonOptedOut, "spec.template.metadata", nil},
		{"cause gone", instance("uid-a", masquerade, "x", "y"), nil, v1alpha1.ReasonStartedWithout, "restart the VM", nil},
		{"migrated, and the label is gone", on("node-b", carrying()), optedOut, v1alpha1.ReasonNotOptedIn,
			"set it and migrate or restart the VM", []*corev1.Pod{old, moved}},
		{"migrating, and the label is gone", on("node-a", carrying()), optedOut, v1alpha1.ReasonCarried,
			"until it migrates or starts again", []*corev1.Pod{old, moved}},
		{"migrated to and fro, and the label is back", on("node-a", carrying()), nil, v1alpha1.ReasonStartedWithout,
			"migrate or restart the VM", []*corev1.Pod{old, podOf("returned", "node-a", 3, bare), podOf("between", "node-b", 2, translating)}},
		{"not scheduled", on("", carrying()), optedOut, v1alpha1.ReasonNotOptedIn,
			"set it and migrate or restart the VM", []*corev1.Pod{podOf("new", "", 1, bare)}},
		{"no pod yet", on("", carrying()), optedOut, v1alpha1.ReasonCarried, "carries the address", nil},
		{"a temporary pod", on("", carrying()), nil, v1alpha1.ReasonCarried,
			"carries the address", []*corev1.Pod{podOf("new", "", 1, temporary)}},
		{"all pods look temporary", on("", marked), nil, v1alpha1.ReasonOptedOut,
			"look like those that carry no guest", []*corev1.Pod{podOf("new", "", 1, temporary)}},
		{"the API server's own level", on("node-a", carrying()), nil, v1alpha1.ReasonForbiddenSidecar,
			"level baseline in namespaces without a label", []*corev1.Pod{podOf("new", "node-a", 1, forbidden)}},
		{"the API server's own level, and a label since", on("node-a", carrying()),
			map[string]string{"pod-security.kubernetes.io/enforce": "privileged"}, v1alpha1.ReasonStartedWithout,
			"migrate or restart the VM", []*corev1.Pod{podOf("new", "node-a", 1, forbidden)}},
		{"a pod of an earlier instance", on("node-a", carrying()), nil, v1alpha1.ReasonCarried,
			"carries the address", []*corev1.Pod{old, strangerOf(podOf("new", "node-a", 2, bare))}},
		{"a pod that translates for another VM", on("node-a", carrying()), nil, v1alpha1.ReasonStartedWithout,
			"migrate or restart the VM", []*corev1.Pod{podOf("new", "node-a", 1, launcher(t, "", "uid-b"))}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.start()
			w.create(vm("a", "uid-a", w.commit("a", "uid-a")))
			w.look()
			if len(tc.labels) > 0 {
				ns := namespace("vms", "true")
				for key, value := range tc.labels {
					ns.Labels[key] = value
				}
				if err := w.client.Update(t.Context(), ns); err != nil {
					t.Fatal(err)
				}
			}
			if tc.vmi != nil {
				for _, pod := range tc.pods {
					w.create(pod.DeepCopy())
					if node := pod.Spec.NodeName; node != "" {
						tc.vmi.Status.ActivePods[pod.UID] = node
					}
				}
				w.create(tc.vmi)
			}
			w.look()
			switch c := w.conditionOfA(v1alpha1.ConditionCarried); {
			case tc.reason == "" && c != nil:
				t.Errorf("%+v, want none", c)
			case tc.reason == "":
			case c == nil || c.Reason != tc.reason || (c.Status == metav1.ConditionTrue) != (tc.reason == v1alpha1.ReasonCarried):
				t.Errorf("%+v, want the reason %s", c, tc.reason)
			case !strings.Contains(c.Message, tc.text):
				t.Errorf("message %q does not say %q", c.Message, tc.text)
			case tc.labels[floatip.LabelEnabled] == "" && strings.Contains(c.Message, "no label floatip.io/enabled"):
				t.Errorf("message %q, and the namespace has the label", c.Message)
			}
		})
	}
}

// The condition follows restarts, and what the node agent has written stays.
func TestCarriedAfterRestart(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.create(vm("a", "uid-a", w.commit("a", "uid-a")))
	w.look()
	bridged := instance("uid-a", kubevirt.VMISpec{}, "x", "y")
	carrying := instance("uid-a", masquerade, floatip.AnnotationAddress, "192.168.100.50")
	agents := metav1.Condition{Type: v1alpha1.ConditionLegReady, Status: metav1.ConditionFalse, Reason: "NotRunning", LastTransitionTime: metav1.NewTime(epoch)}
	var ip v1alpha1.FloatingIP
	if err := w.client.Get(t.Context(), types.NamespacedName{Name: "192.168.100.50"}, &ip); err != nil {
		t.Fatal(err)
	}
	patch := mergeStatus(t, map[string]any{"conditions": append(ip.Status.Conditions, agents)})
	if err := w.client.Status().Patch(t.Context(), &ip, patch); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		create, remove client.Object
		want           string
	}{
		{create: bridged, want: v1alpha1.ReasonUnsupportedBinding},
		{remove: bridged, want: ""},
		{create: carrying, want: v1alpha1.ReasonCarried},
		{remove: carrying, want: ""},
	} {
		if step.create != nil {
			w.create(step.create)
		} else {
			w.remove(step.remove)
		}
		w.look()
		got := ""
		if c := w.conditionOfA(v1alpha1.ConditionCarried); c != nil {
			got = c.Reason
		}
		if got != step.want {
			t.Errorf("reason %q, want %q", got, step.want)
		}
		if c := w.conditionOfA(v1alpha1.ConditionLegReady); c == nil || c.Reason != "NotRunning" {
			t.Errorf("the agent's condition is %+v", c)
		}
	}
}

// When a namespace's labels change, the reason of each of its VMs is looked for again.
func TestRelabelledNamespace(t *testing.T) {
	w := newWorld(t)
	w.start()
	before, after := namespace("vms", "true"), namespace("vms", "false")
	dying := after.DeepCopy()
	dying.DeletionTimestamp = &metav1.Time{Time: epoch}
	for _, tc := range []struct {
		name  string
		after *corev1.Namespace
		want  bool
	}{{"label", after, true}, {"nothing", before, false}, {"deletion", dying, false}} {
		if got := relabelled.Update(event.UpdateEvent{ObjectOld: before, ObjectNew: tc.after}); got != tc.want {
			t.Errorf("%s: looked at %v, want %v", tc.name, got, tc.want)
		}
	}
	w.create(vm("a", "uid-a", w.commit("a", "uid-a")))
	w.look()
	w.commit("pending", "uid-pending")
	want := []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: "vms", Name: "a"}}}
	if got := w.vms.vmsOfNamespace(t.Context(), after); !slices.Equal(got, want) {
		t.Errorf("looked at %v, want %v", got, want)
	}
	if got := w.vms.vmsOfNamespace(t.Context(), namespace("others", "true")); len(got) > 0 {
		t.Errorf("for another namespace %v are looked at", got)
	}
}
