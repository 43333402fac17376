package kubeovn

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"floatip.io/floatip/ipam/v1alpha1"
)

var subnet = v1alpha1.KubeOVN{ExternalSubnet: "external"}

func held() *v1alpha1.FloatingIP {
	return &v1alpha1.FloatingIP{
		ObjectMeta: metav1.ObjectMeta{Name: "192.0.2.5"},
		Spec: v1alpha1.FloatingIPSpec{
			Address: "192.0.2.5", Pool: "ovn", VM: v1alpha1.VMReference{Namespace: "vms", Name: "a", UID: "uid-a"},
		},
	}
}

// made is an object as the driver makes it, ready.
func made(o *unstructured.Unstructured, change ...func(*unstructured.Unstructured)) *unstructured.Unstructured {
	o.Object["status"] = map[string]any{"ready": true}
	for _, c := range change {
		c(o)
	}
	return o
}

func unready(o *unstructured.Unstructured) { o.Object["status"] = map[string]any{} }
func going(o *unstructured.Unstructured)   { now := metav1.Now(); o.SetDeletionTimestamp(&now) }
func foreign(o *unstructured.Unstructured) { o.SetLabels(nil) }
func ofOther(o *unstructured.Unstructured) {
	o.SetAnnotations(map[string]string{annotationVM: "uid-b"})
}

// Each line is a situation and the one thing that is done next.
func TestDecide(t *testing.T) {
	type u = unstructured.Unstructured
	eip := func(change ...func(*u)) *u { return made(newEip(held(), subnet), change...) }
	fip := func(change ...func(*u)) *u { return made(newFip(held(), subnet, "a.vms"), change...) }
	elsewhere := func(o *u) { _ = unstructured.SetNestedField(o.Object, "pod.vms", "spec", "ipName") }
	moved := func(o *u) { _ = unstructured.SetNestedField(o.Object, "other", "spec", "externalSubnet") }
	for _, tt := range []struct {
		name           string
		held           *v1alpha1.FloatingIP
		running        bool
		ip             string
		eip, fip       *u
		create, remove string // kinds
		reason         string
	}{
		{"held by a VM that does not run", held(), false, "", nil, nil, "OvnEip", "", "WaitingForKubeOVN"},
		{"Kube-OVN has not taken the address", held(), true, "a.vms", eip(unready), nil, "", "", "WaitingForKubeOVN"},
		{"taken, the VM does not run", held(), false, "", eip(), nil, "", "", "NotRunning"},
		{"the VM starts, Kube-OVN does not know it", held(), true, "", eip(), nil, "", "", "WaitingForKubeOVN"},
		{"the VM runs", held(), true, "a.vms", eip(), nil, "OvnFip", "", "WaitingForKubeOVN"},
		{"not translated yet", held(), true, "a.vms", eip(), fip(unready), "", "", "WaitingForKubeOVN"},
		{"translated", held(), true, "a.vms", eip(), fip(), "", "", "Translated"},
		{"the IP object is made anew", held(), true, "", eip(), fip(), "", "", "WaitingForKubeOVN"},
		{"the VM stopped", held(), false, "", eip(), fip(), "", "OvnFip", "Detaching"},
		{"it leads to another IP object", held(), true, "a.vms", eip(), fip(elsewhere), "", "OvnFip", "Detaching"},
		{"it leads to the VM that had the address before", held(), true, "a.vms", eip(), fip(ofOther), "", "OvnFip", "Detaching"},
		{"it is going, with a finalizer of Kube-OVN's", held(), true, "a.vms", eip(), fip(going), "", "", "Detaching"},
		{"released, still translated", nil, false, "", eip(), fip(), "", "OvnFip", "Detaching"},
		{"released, the translation is going", nil, false, "", eip(), fip(going), "", "", "Detaching"},
		{"released, the translation is gone", nil, false, "", eip(), nil, "", "OvnEip", "Releasing"},
		{"released, all is going", nil, false, "", eip(going), nil, "", "", "Releasing"},
		{"released, all is gone", nil, false, "", nil, nil, "", "", ""},
		{"the pool has another subnet", held(), true, "a.vms", eip(moved), nil, "", "OvnEip", "Releasing"},
		{"somebody else's OvnEip", held(), true, "a.vms", eip(foreign), nil, "", "", "ForeignObject"},
		{"somebody else's OvnFip", held(), true, "a.vms", eip(), fip(foreign), "", "", "ForeignObject"},
		{"somebody else's, and nothing held", nil, false, "", eip(foreign), nil, "", "", "ForeignObject"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := decide(seen{
				name: "192.0.2.5", held: tt.held, pool: subnet, running: tt.running, ip: tt.ip, eip: tt.eip, fip: tt.fip,
			})
			kind := func(o *u) string {
				if o == nil {
					return ""
				}
				return o.GetKind()
			}
			if kind(got.create) != tt.create || kind(got.remove) != tt.remove || got.reason != tt.reason {
				t.Errorf("create %q, remove %q, %s (%s); want %q, %q, %s", kind(got.create), kind(got.remove), got.reason,
					got.message, tt.create, tt.remove, tt.reason)
			}
		})
	}
}
