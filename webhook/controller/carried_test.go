package controller

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

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

// A VM that runs without its address says why, by what there is now; one that does not run says nothing.
func TestCarried(t *testing.T) {
	ranges := masquerade
	ranges.Domain.Devices.Interfaces = []kubevirt.Interface{{
		Name: "default", Masquerade: &kubevirt.Masquerade{}, PortRanges: []kubevirt.PortRange{{}},
	}}
	for _, tc := range []struct {
		name         string
		vmi          *kubevirt.VirtualMachineInstance
		labels       map[string]string
		reason, text string
	}{
		{"no instance", nil, nil, "", ""},
		{"of another VM", instance("uid-b", masquerade, floatip.AnnotationAddress, "192.168.100.50"), nil, "", ""},
		{"carried", instance("uid-a", masquerade, floatip.AnnotationAddress, "192.168.100.50"), nil, v1alpha1.ReasonCarried, "carries the address"},
		{"carried, and the label is gone", instance("uid-a", masquerade, floatip.AnnotationAddress, "192.168.100.50"),
			map[string]string{floatip.LabelEnabled: "false"}, v1alpha1.ReasonCarried, "carries the address"},
		{"other binding", instance("uid-a", kubevirt.VMISpec{}, "x", "y"), nil, v1alpha1.ReasonUnsupportedBinding, "no interface with masquerade binding"},
		{"port ranges", instance("uid-a", ranges, "x", "y"), nil, v1alpha1.ReasonUnsupportedBinding, "portRanges cannot be forwarded"},
		{"Pod Security", instance("uid-a", masquerade, "x", "y"),
			map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}, v1alpha1.ReasonForbiddenSidecar, "level restricted"},
		{"label gone", instance("uid-a", masquerade, "x", "y"), map[string]string{floatip.LabelEnabled: "false"}, v1alpha1.ReasonNotOptedIn, "set it and restart"},
		{"template opted out", instance("uid-a", kubevirt.VMISpec{}, floatip.LabelEnabled, "false"), nil, v1alpha1.ReasonOptedOut, "spec.template.metadata"},
		{"cause gone", instance("uid-a", masquerade, "x", "y"), nil, v1alpha1.ReasonStartedWithout, "restart the VM"},
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
