package cluster

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/nat/node"
)

// controllerOf returns the controlling owner if it is of the kind in KubeVirt's group.
func controllerOf(o metav1.Object, kind string) node.Reference {
	ref := metav1.GetControllerOfNoCopy(o)
	if ref == nil || ref.Kind != kind {
		return node.Reference{}
	}
	if gv, err := schema.ParseGroupVersion(ref.APIVersion); err != nil || gv.Group != kubevirtGroup {
		return node.Reference{}
	}
	return node.Reference{Name: ref.Name, UID: string(ref.UID)}
}

func podOf(p *pod) node.Pod {
	var ipv4, ipv6 netip.Addr
	for _, ip := range p.Status.PodIPs {
		switch a, err := netip.ParseAddr(ip.IP); {
		case err != nil:
		case a.Is4():
			ipv4 = a
		default:
			ipv6 = a
		}
	}
	return node.Pod{
		IPv4: ipv4, IPv6: ipv6,
		UID: string(p.UID), Namespace: p.Namespace, Name: p.Name, Machine: controllerOf(p, machineKind),
		NAT: p.Annotations[floatip.AnnotationNAT], Final: isFinal(p), Created: p.CreationTimestamp.UnixNano(),
		MigrationTarget: p.Labels[migrationLabel] != "", GuestArrived: p.Annotations[arrivedAnnotation] != "",
	}
}

// isFinal: the deletion timestamp is no sign, since the guest shuts down after it.
func isFinal(p *pod) bool {
	if p.Status.Phase == podSucceeded || p.Status.Phase == podFailed {
		return true
	}
	for _, c := range p.Status.ContainerStatuses {
		if c.Name == computeContainer && c.State.Terminated != nil {
			return true
		}
	}
	return false
}

func machineOf(m *machine) node.Machine {
	out := node.Machine{
		Running:   m.Status.Phase == runningPhase,
		Namespace: m.Namespace, Name: m.Name, UID: string(m.UID), VM: controllerOf(m, vmKind).UID, Node: m.Labels[nodeLabel],
	}
	if s := m.Status.MigrationState; s != nil {
		out.Migration = node.Migration{
			SourceNode: s.SourceNode, TargetNode: s.TargetNode, TargetPod: s.TargetPod, Arrived: s.DomainReady != nil,
			Failed: s.Failed,
		}
	}
	for _, i := range m.Status.Interfaces {
		if mac, err := net.ParseMAC(i.MAC); err == nil {
			out.MACs = append(out.MACs, mac.String())
		}
	}
	for uid := range m.Status.ActivePods {
		out.Pods = append(out.Pods, string(uid))
	}
	slices.Sort(out.Pods)
	return out
}

// heldOf returns false for an object whose name is not that of its address: nobody but floatip writes them, and floatip
// writes none of those.
func heldOf(f *v1alpha1.FloatingIP) (netip.Addr, node.Held, bool) {
	a, err := netip.ParseAddr(f.Spec.Address)
	if err != nil || v1alpha1.Name(a) != f.Name {
		return netip.Addr{}, node.Held{}, false
	}
	return a, node.Held{
		Pool:     f.Spec.Pool,
		Owner:    floatip.Owner{Namespace: f.Spec.VM.Namespace, Name: f.Spec.VM.Name, UID: string(f.Spec.VM.UID)},
		Released: f.Status.Phase == v1alpha1.PhaseQuarantined || f.DeletionTimestamp != nil,
		Node:     f.Status.Node, Pod: f.Status.Pod, Unproven: unproven(f.Status.Conditions),
	}, true
}

// unproven reports whether a node has said that it could not find out yet, or not for good, that no other host has the
// address. An object without the condition is of an agent that did not ask.
func unproven(conditions []metav1.Condition) bool {
	c := meta.FindStatusCondition(conditions, v1alpha1.ConditionConflictFree)
	return c != nil && c.Status != metav1.ConditionTrue && c.Reason != floatip.ReasonAddressContested
}

// poolOf returns false for a pool that is not for a node with these labels. Entries that cannot be read are left out:
// the webhook refuses them, and a pool that slipped through must not take the others along.
func poolOf(p *v1alpha1.FloatingIPPool, nodeLabels map[string]string) (node.Pool, bool) {
	if p.Spec.NodeSelector != nil {
		selector, err := metav1.LabelSelectorAsSelector(p.Spec.NodeSelector)
		if err != nil || !selector.Matches(labels.Set(nodeLabels)) {
			return node.Pool{}, false
		}
	}
	out := node.Pool{
		Name: p.Name, Interface: p.Spec.Interface, Delivery: p.Spec.Delivery.OrDefault(),
		Unasked: p.Spec.ConflictDetection == v1alpha1.ConflictDetectionOff,
	}
	for _, text := range p.Spec.Networks {
		if n, err := netip.ParsePrefix(text); err == nil {
			out.Networks = append(out.Networks, n.Masked())
		}
	}
	for _, text := range p.Spec.Gateways {
		if g, err := netip.ParseAddr(text); err == nil {
			out.Gateways = append(out.Gateways, g)
		}
	}
	out.Sample = samples(p.Spec.Addresses)
	return out, true
}

// samples returns the first address of each family.
func samples(entries []string) []netip.Addr {
	var found []netip.Addr
	families := map[bool]bool{}
	for _, entry := range entries {
		text, _, _ := strings.Cut(entry, "-")
		text, _, _ = strings.Cut(text, "/")
		a, err := netip.ParseAddr(strings.TrimSpace(text))
		if err == nil && !families[a.Is4()] {
			families[a.Is4()] = true
			found = append(found, a)
		}
	}
	return found
}

// strip leaves of an object what the conversions read. It is the informers' transform, and gets nothing but what they
// decode.
func strip(object any) (any, error) {
	switch o := object.(type) {
	case *pod:
		return stripPod(o), nil
	case *metav1.PartialObjectMetadata:
		return stripNode(o), nil
	case metav1.Object:
		o.SetManagedFields(nil)
		return o, nil
	}
	return nil, fmt.Errorf("unexpected object %T", object)
}

func stripNode(n *metav1.PartialObjectMetadata) *metav1.PartialObjectMetadata {
	out := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Labels: n.Labels,
	}}
	for _, key := range []string{floatip.AnnotationProviderAddresses, floatip.AnnotationAgent} {
		if text := n.Annotations[key]; text != "" {
			metav1.SetMetaDataAnnotation(&out.ObjectMeta, key, text)
		}
	}
	return out
}

func stripPod(p *pod) *pod {
	out := &pod{ObjectMeta: metav1.ObjectMeta{
		Name: p.Name, Namespace: p.Namespace, UID: p.UID, ResourceVersion: p.ResourceVersion,
	}}
	nat, ours := p.Annotations[floatip.AnnotationNAT]
	if !ours {
		return out
	}
	out.CreationTimestamp, out.OwnerReferences = p.CreationTimestamp, p.OwnerReferences
	out.Annotations = map[string]string{floatip.AnnotationNAT: nat}
	if arrived := p.Annotations[arrivedAnnotation]; arrived != "" {
		out.Annotations[arrivedAnnotation] = arrived
	}
	if job := p.Labels[migrationLabel]; job != "" {
		out.Labels = map[string]string{migrationLabel: job}
	}
	out.Status.Phase, out.Status.PodIPs = p.Status.Phase, p.Status.PodIPs
	for _, c := range p.Status.ContainerStatuses {
		if c.Name == computeContainer && c.State.Terminated != nil {
			out.Status.ContainerStatuses = []containerStatus{c}
		}
	}
	return out
}
