package kubeovn

import (
	"net/netip"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"floatip.io/floatip/ipam/v1alpha1"
)

// Kinds of Kube-OVN (pkg/apis/kubeovn/v1), all of them cluster-scoped.
var (
	groupVersion = schema.GroupVersion{Group: "kubeovn.io", Version: "v1"}
	eipKind      = groupVersion.WithKind("OvnEip")
	fipKind      = groupVersion.WithKind("OvnFip")
	ipKind       = groupVersion.WithKind("IP")
)

const (
	// labelFloatingIP on Kube-OVN's objects names the FloatingIP that they are for.
	labelFloatingIP = "floatip.io/floatingip"
	// annotationVM is the UID of the VirtualMachine that an OvnFip leads to.
	annotationVM = "floatip.io/vm-uid"
)

// objectName is that of the OvnEip and the OvnFip of a FloatingIP.
func objectName(floatingIP string) string { return "floatip-" + floatingIP }

func newObject(kind schema.GroupVersionKind, name string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	o.SetGroupVersionKind(kind)
	o.SetName(name)
	return o
}

// newEip takes the address out of the external subnet.
func newEip(f *v1alpha1.FloatingIP, pool v1alpha1.KubeOVN) *unstructured.Unstructured {
	spec := map[string]any{"externalSubnet": pool.ExternalSubnet, "type": "nat"}
	if a, err := netip.ParseAddr(f.Spec.Address); err == nil && a.Is6() {
		spec["v6Ip"] = f.Spec.Address
	} else {
		spec["v4Ip"] = f.Spec.Address
	}
	o := newObject(eipKind, objectName(f.Name))
	o.SetLabels(map[string]string{labelFloatingIP: f.Name})
	o.Object["spec"] = spec
	return o
}

// newFip leads the address to the VM's IP object.
func newFip(f *v1alpha1.FloatingIP, pool v1alpha1.KubeOVN, ip string) *unstructured.Unstructured {
	o := newObject(fipKind, objectName(f.Name))
	o.SetLabels(map[string]string{labelFloatingIP: f.Name})
	o.SetAnnotations(map[string]string{annotationVM: string(f.Spec.VM.UID)})
	o.Object["spec"] = map[string]any{
		"ovnEip": objectName(f.Name), "ipType": "ip", "ipName": ip, "type": string(pool.TypeOrDefault()),
	}
	return o
}

// ours says whether an object was made for the FloatingIP.
func ours(o *unstructured.Unstructured, floatingIP string) bool {
	return o.GetLabels()[labelFloatingIP] == floatingIP
}

func spec(o *unstructured.Unstructured, field string) string {
	text, _, _ := unstructured.NestedString(o.Object, "spec", field)
	return text
}

func ready(o *unstructured.Unstructured) bool {
	yes, _, _ := unstructured.NestedBool(o.Object, "status", "ready")
	return yes
}
