package controller

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/webhook/kubevirt"
)

var (
	vmKind        = kubevirt.GroupVersion.WithKind(kubevirt.KindVM)
	podKind       = corev1.SchemeGroupVersion.WithKind("Pod")
	namespaceKind = corev1.SchemeGroupVersion.WithKind("Namespace")
)

// metadataOf returns an empty object of kind, of which only the metadata is read and cached.
func metadataOf(kind schema.GroupVersionKind) *metav1.PartialObjectMetadata {
	o := &metav1.PartialObjectMetadata{}
	o.SetGroupVersionKind(kind)
	return o
}

func metadataList(kind schema.GroupVersionKind) *metav1.PartialObjectMetadataList {
	l := &metav1.PartialObjectMetadataList{}
	l.SetGroupVersionKind(kind)
	return l
}

// CacheOptions limit what is kept in memory: of pods only launchers, and of no object the managedFields.
func CacheOptions() map[client.Object]cache.ByObject {
	slim := cache.TransformStripManagedFields()
	return map[client.Object]cache.ByObject{
		metadataOf(podKind): {
			Label:     labels.SelectorFromSet(labels.Set{kubevirt.LabelApp: kubevirt.AppLauncher}),
			Transform: slim,
		},
		metadataOf(vmKind):                 {Transform: slim},
		metadataOf(namespaceKind):          {Transform: slim},
		&corev1.Node{}:                     {Transform: slimNode},
		&networkingv1.NetworkPolicy{}:      {Transform: slim},
		&kubevirt.VirtualMachineInstance{}: {Transform: slimVMI},
	}
}

// slimVMI drops what only createVMI needs, which reads it from the request.
func slimVMI(object any) (any, error) {
	if vmi, ok := object.(*kubevirt.VirtualMachineInstance); ok {
		vmi.ManagedFields, vmi.Spec.Volumes, vmi.Spec.Domain.Chassis = nil, nil, nil
	}
	return object, nil
}

// Cluster reads the cluster: from the caches, and from the API server where a cache may lag behind an object that was
// made a moment ago.
type Cluster struct {
	Cached, Live client.Reader
}

// get reads key into object, live if the cache does not have what is wanted. Nothing in object may be changed: it is the
// cache's own, since each VM's create would otherwise pay for copies of what is only looked at.
func (c Cluster) get(ctx context.Context, key types.NamespacedName, object client.Object, wanted func() bool) error {
	err := c.Cached.Get(ctx, key, object, client.UnsafeDisableDeepCopy)
	if err == nil && wanted() || client.IgnoreNotFound(err) != nil {
		return err
	}
	return c.Live.Get(ctx, key, object)
}

// NamespaceLabels returns the labels of a namespace.
func (c Cluster) NamespaceLabels(ctx context.Context, namespace string) (map[string]string, error) {
	object := metadataOf(namespaceKind)
	err := c.get(ctx, types.NamespacedName{Name: namespace}, object, func() bool { return true })
	return object.Labels, err
}

// VMAnnotations returns the annotations of the VirtualMachine owner, or a not-found error if it is gone.
func (c Cluster) VMAnnotations(ctx context.Context, owner floatip.Owner) (map[string]string, error) {
	object := metadataOf(vmKind)
	same := func() bool { return string(object.UID) == owner.UID }
	if err := c.get(ctx, types.NamespacedName{Namespace: owner.Namespace, Name: owner.Name}, object, same); err != nil {
		return nil, err
	}
	if !same() {
		return nil, notFound("virtualmachines", owner.Name)
	}
	return object.Annotations, nil
}

// VMExists reports whether a VirtualMachine of that name is stored. What the cache shows is confirmed by the API server,
// since the VM may have been deleted a moment ago.
func (c Cluster) VMExists(ctx context.Context, namespace, name string) (bool, error) {
	key := types.NamespacedName{Namespace: namespace, Name: name}
	for _, reader := range []client.Reader{c.Cached, c.Live} {
		if err := reader.Get(ctx, key, metadataOf(vmKind)); err != nil {
			return false, client.IgnoreNotFound(err)
		}
	}
	return true, nil
}

// VMI returns the VirtualMachineInstance with that name and UID, or a not-found error.
func (c Cluster) VMI(ctx context.Context, namespace, name string, uid types.UID) (*kubevirt.VirtualMachineInstance, error) {
	vmi := &kubevirt.VirtualMachineInstance{}
	same := func() bool { return vmi.UID == uid }
	if err := c.get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, vmi, same); err != nil {
		return nil, err
	}
	if !same() {
		return nil, notFound("virtualmachineinstances", name)
	}
	return vmi, nil
}

// RefusedInstance implements webhook.PodSecurityReader.
func (c Cluster) RefusedInstance(ctx context.Context, vmi *kubevirt.VirtualMachineInstance) (string, error) {
	pods, err := launchers(ctx, c.Cached, vmi.Namespace)
	if err != nil {
		return "", err
	}
	if pod := launcherOf(vmi, pods); pod != nil {
		return pod.Annotations[floatip.AnnotationPodSecurity], nil
	}
	return "", nil
}

// RefusedNamespace implements webhook.PodSecurityReader.
func (c Cluster) RefusedNamespace(ctx context.Context, namespace string) (string, error) {
	pods := metadataList(podKind)
	err := c.Cached.List(ctx, pods, client.InNamespace(namespace), client.MatchingFields{indexRefused: "true"}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return "", fmt.Errorf("list pods of namespace %s without a sidecar: %w", namespace, err)
	}
	if len(pods.Items) == 0 {
		return "", nil
	}
	return pods.Items[0].Annotations[floatip.AnnotationPodSecurity], nil
}

// indexRefused finds pods that have no sidecar since the API server refused one: each new VM asks for them.
const indexRefused = "floatip.refused"

// IndexPods must be called before the caches start.
func IndexPods(ctx context.Context, indexer client.FieldIndexer) error {
	return indexer.IndexField(ctx, metadataOf(podKind), indexRefused, refusedPods)
}

func refusedPods(pod client.Object) []string {
	if pod.GetAnnotations()[floatip.AnnotationPodSecurity] == "" {
		return nil
	}
	return []string{"true"}
}

// launchers are the metadata of the virt-launcher pods of a namespace. Nothing in them may be changed.
func launchers(ctx context.Context, reader client.Reader, namespace string) ([]metav1.PartialObjectMetadata, error) {
	pods := metadataList(podKind)
	err := reader.List(ctx, pods, client.InNamespace(namespace), client.MatchingLabels{kubevirt.LabelApp: kubevirt.AppLauncher},
		client.UnsafeDisableDeepCopy)
	if err != nil {
		return nil, fmt.Errorf("list launcher pods of namespace %s: %w", namespace, err)
	}
	return pods.Items, nil
}

func notFound(resource, name string) error {
	return apierrors.NewNotFound(schema.GroupResource{Group: kubevirt.GroupVersion.Group, Resource: resource}, name)
}

// Carrier asks the API server itself what is left of the VM owner: itself, its instance, or a pod that translates its
// addresses. It is empty if nothing is. Without a resource version the answers come from a quorum of etcd.
func (c Cluster) Carrier(ctx context.Context, owner floatip.Owner) (string, error) {
	found, err := carriersOf(ctx, c.Live, types.NamespacedName{Namespace: owner.Namespace, Name: owner.Name})
	if err != nil {
		return "", err
	}
	return found.carry(owner.UID), nil
}

// stored asks the API server itself for the VM that keeps a promise: the one with the owner's UID, or the one of that
// name that shows the claim, as when somebody tried twice to create it. Nil if there is none. Where the API server was to
// generate the name, all VMs of the namespace are asked for the claim.
func (c Cluster) stored(ctx context.Context, owner floatip.Owner, claim floatip.Claim) (*metav1.PartialObjectMetadata, error) {
	if owner.Name == "" {
		return c.storedUnder(ctx, owner.Namespace, claim)
	}
	object := metadataOf(vmKind)
	err := c.Live.Get(ctx, types.NamespacedName{Namespace: owner.Namespace, Name: owner.Name}, object)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for VM %s: %w", owner, err)
	}
	if string(object.UID) == owner.UID || shows(object, claim) {
		return object, nil
	}
	return nil, nil
}

func (c Cluster) storedUnder(ctx context.Context, namespace string, claim floatip.Claim) (*metav1.PartialObjectMetadata, error) {
	vms := metadataList(vmKind)
	if err := c.Live.List(ctx, vms, client.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("look for the VM with claim %s in namespace %s: %w", claim, namespace, err)
	}
	for i := range vms.Items {
		if shows(&vms.Items[i], claim) {
			return &vms.Items[i], nil
		}
	}
	return nil, nil
}

func shows(vm *metav1.PartialObjectMetadata, claim floatip.Claim) bool {
	shown, err := floatip.ParseClaim(vm.Annotations[floatip.AnnotationClaim])
	return err == nil && !claim.IsZero() && shown == claim
}
